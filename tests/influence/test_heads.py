"""The norms of parameter changes by probes, against a solve per pair."""

from __future__ import annotations

import pytest
import torch

from isodistill.influence import Fit, change_norms, fit_heads


def test_norms_by_probes_are_those_of_a_solve_per_pair():
    torch.manual_seed(0)
    a = torch.nn.functional.normalize(torch.randn(16, 5), dim=-1)
    b = torch.nn.functional.normalize(a + 0.3 * torch.randn(16, 5), dim=-1)
    influence = fit_heads(a, b, Fit(width=3, batch_size=8, recorded=2, epochs=4, lr=1e-2, temperature=0.3, delta=10.0))
    solved = [influence.change(torch.arange(16) == n, tol=1e-4).q.norm() for n in range(0, 16, 3)]
    ratio = change_norms(influence, n_probes=60, seed=0).values[::3] / torch.stack(solved)
    assert (ratio - 1).abs().max() < 0.25
    assert len(influence.segments) == 4


def test_a_short_last_batch_does_not_spoil_the_fit():
    """17 pairs in batches of 8 leave a batch of one: it has no loss, and no more weight decay than the others."""
    torch.manual_seed(1)
    a = torch.nn.functional.normalize(torch.randn(17, 5), dim=-1)
    how = Fit(batch_size=8, epochs=20, lr=1e-2, temperature=0.3, delta=10.0, recorded=1)
    short, even = (float(fit_heads(a[:n], a[:n].roll(1, 1), how).theta.norm()) for n in (17, 16))
    assert short == pytest.approx(even, rel=0.2)


def test_damping_goes_into_the_delta_of_the_influences_and_not_into_the_fit():
    torch.manual_seed(2)
    a = torch.nn.functional.normalize(torch.randn(12, 5), dim=-1)
    plain, damped = (fit_heads(a, a.roll(1, 1), Fit(batch_size=6, epochs=3, damping=x)) for x in (0.0, 0.5))
    assert torch.equal(plain.theta, damped.theta)
    assert damped.delta == pytest.approx(plain.delta + 0.5 * plain.mean_diagonal(seed=0))


def test_what_cannot_be_fitted_is_refused():
    a = torch.eye(4)
    with pytest.raises(ValueError, match="at least two pairs"):
        fit_heads(a[:1], a[:1], Fit())
    with pytest.raises(ValueError, match="damping must be 0 or more"):
        fit_heads(a, a, Fit(damping=-1))
    with pytest.raises(FloatingPointError, match="features"):
        fit_heads(a, a / 0, Fit())
