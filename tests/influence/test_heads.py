"""The norms of parameter changes by probes, against a solve per pair."""

from __future__ import annotations

import torch

from isodistill.influence import Fit, change_norms, fit_heads


def test_norms_by_probes_are_those_of_a_solve_per_pair():
    torch.manual_seed(0)
    a = torch.nn.functional.normalize(torch.randn(16, 5), dim=-1)
    b = torch.nn.functional.normalize(a + 0.3 * torch.randn(16, 5), dim=-1)
    influence = fit_heads(a, b, Fit(width=3, batch_size=8, recorded=2, epochs=4))
    solved = [influence.change(torch.arange(16) == n, tol=1e-4).q.norm() for n in range(0, 16, 3)]
    ratio = change_norms(influence, n_probes=60, seed=0)[::3] / torch.stack(solved)
    assert (ratio - 1).abs().max() < 0.25
    assert len(influence.segments) == 4
