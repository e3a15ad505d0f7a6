"""IRM's closed form against the derivative of a dummy scale, and its estimators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from isodistill.alignment import IRM, SeenTokens
from isodistill.alignment.irm import scale_derivatives


def ready(**options: Any) -> IRM:
    irm = IRM(**options)
    irm.setup(layers=[], total_steps=10, adaptive=True, seed=0)
    return irm


def test_the_closed_form_is_the_derivative_of_the_scale() -> None:
    z = 5 * torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(7) % 11
    for t in range(7):
        w = torch.ones((), dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(F.cross_entropy(w * z[t : t + 1], y[t : t + 1]), w)
        torch.testing.assert_close(scale_derivatives(z, y)[t], expected, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(lambda x: scale_derivatives(x, y), z.requires_grad_())


def test_statistics_are_weighted_sums_over_sequences_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(9, 4, generator=generator, requires_grad=True)
    head = torch.randn(4, 6, generator=generator)
    targets, rows = torch.arange(9) % 6, torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    seen = SeenTokens(hidden, targets, rows, torch.tensor([1.0, 0.5, 2.0]), lambda h: h @ head, head.T)
    found = IRM().statistics(seen)
    d = scale_derivatives(hidden @ head, targets)
    expected = torch.stack([d[:3].sum(), 0.5 * d[3:5].sum(), 2 * d[5:].sum()])[:, None]
    torch.testing.assert_close(found, expected)
    monkeypatch.setattr("isodistill.alignment.irm._CHUNK", 2)
    chunked = IRM().statistics(seen)
    torch.testing.assert_close(chunked, expected)
    gradients = [torch.autograd.grad(s.square().sum(), hidden, retain_graph=True)[0] for s in (chunked, expected)]
    torch.testing.assert_close(*gradients)


def step_of(values: list[list[float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of sequences with two tokens each, one list per domain."""
    flat = [v for domain in values for v in domain]
    domains = torch.tensor([k for k, domain in enumerate(values) for _ in domain])
    return torch.tensor(flat, dtype=torch.float64)[:, None], domains, torch.full((len(flat),), 2)


def test_split_is_the_product_of_the_halves_and_squared_the_square() -> None:
    s, domains, tokens = step_of([[1.0, 3.0, 5.0], [2.0, -4.0]])  # halves: 6/4 and 3/2; 2/2 and -4/2
    assert float(ready().penalty(s, domains, tokens)) == pytest.approx((1.5 * 1.5 + 1.0 * -2.0) / 2)
    squared = ready(estimator="squared").penalty(s, domains, tokens)
    assert float(squared) == pytest.approx(((9 / 6) ** 2 + (-2 / 4) ** 2) / 2)


def test_one_sequence_is_squared_and_an_absent_domain_left_out() -> None:
    s, domains, tokens = step_of([[3.0], [], [2.0, 4.0]])
    assert float(ready().penalty(s, domains, tokens)) == pytest.approx((1.5**2 + 1.0 * 2.0) / 2)


def test_split_is_unbiased_and_squared_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, draws = 0.7, 4000
    values = truth + torch.randn(draws, 4, generator=generator, dtype=torch.float64)
    domains, tokens = torch.zeros(4, dtype=torch.long), torch.ones(4)
    means = {
        estimator: sum(float(ready(estimator=estimator).penalty(v[:, None], domains, tokens)) for v in values) / draws
        for estimator in ("split", "squared")
    }
    assert means["split"] == pytest.approx(truth**2, abs=0.04)
    assert means["squared"] == pytest.approx(truth**2 + 1 / 4, abs=0.04)


@pytest.mark.parametrize("estimator", ["split", "squared"])
def test_the_pull_is_lam_times_the_derivative(estimator: str) -> None:
    s, domains, tokens = step_of([[1.0, 3.0, 5.0], [2.0, -4.0]])
    irm = ready(estimator=estimator, lam=7.0, anneal=0.2)
    for lam in (1.0, 1.0, 7.0, 7.0):  # 0.2 of 10 steps
        found = irm.pull(s, domains, tokens, 2)
        for i in range(len(s)):
            up, down = s.clone(), s.clone()
            up[i], down[i] = up[i] + 1e-5, down[i] - 1e-5
            slope = (irm.penalty(up, domains, tokens) - irm.penalty(down, domains, tokens)) / 2e-5
            assert float(found[i]) == pytest.approx(lam * float(slope), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1.0}, r"alignment\.lam is -1\.0"),
        ({"anneal": 1.5}, r"alignment\.anneal is 1\.5"),
        ({"estimator": "mean"}, r"alignment\.estimator is 'mean'; choose one of split, squared"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IRM(**options)
