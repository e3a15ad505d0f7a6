"""A mistake traced back: by a solve per pair, and to the causes that were planted for it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from isodistill.influence import Fit, fit_heads, removal_curve, retrieve, trace_back

HOW = Fit(epochs=15, batch_size=20, recorded=1, lr=3e-2, temperature=0.3, delta=1.0)


def pairs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = F.normalize(torch.randn(n, 6, generator=generator), dim=-1)
    return a, F.normalize(a.roll(1, 1) + 0.1 * torch.randn(n, 6, generator=generator), dim=-1)


def test_a_planted_cause_leads_the_trace_and_leaving_it_out_lowers_the_loss() -> None:
    a, b = pairs(60, seed=0)
    query_a, query_b = pairs(12, seed=1)
    causes = torch.tensor([3, 17, 40])
    a[causes] = F.normalize(query_a[5] + 0.05 * torch.randn(3, 6, generator=torch.Generator().manual_seed(2)), dim=-1)
    b[causes] = query_b[8]  # what is like query 5 is said to belong to the second item of query 8
    influence = fit_heads(a, b, HOW)
    found = retrieve(influence, query_a, query_b)
    traced = trace_back(influence, query_a, query_b, 5, torch.ones(60, dtype=torch.float64))
    assert set(traced.influence.argsort()[:3].tolist()) == set(causes.tolist())
    kept = torch.ones(60, dtype=torch.bool)
    kept[causes] = False
    again = retrieve(fit_heads(a[kept], b[kept], HOW), query_a, query_b)
    assert again.loss[5] < found.loss[5]


def test_a_trace_is_the_change_of_this_queries_own_terms_pair_by_pair() -> None:
    a, b = pairs(10, seed=3)
    query = pairs(4, seed=4)
    influence = fit_heads(a, b, Fit(width=3, epochs=3, batch_size=5, lr=1e-2, temperature=0.3, delta=1.0, recorded=2))

    def own(theta: torch.Tensor) -> torch.Tensor:
        S = influence.logits(theta, *query)
        return F.cross_entropy(S[2:3], torch.tensor([2])) + F.cross_entropy(S.T[2:3], torch.tensor([2]))

    theta = influence.theta.clone().requires_grad_()
    g = torch.autograd.grad(own(theta), theta)[0]
    expected = torch.stack([g @ influence.change(torch.arange(10) == n, solver="ggn_cg", tol=1e-6).q for n in range(3)])
    norms = torch.full((10,), 2.0, dtype=torch.float64)
    traced = trace_back(influence, *query, 2, norms)
    assert torch.allclose(traced.influence[:3].float(), expected, rtol=1e-2, atol=1e-5)
    assert torch.allclose(traced.relative, traced.influence / 2)


def test_the_curve_is_that_of_fits_without_the_first_of_the_order() -> None:
    a, b = pairs(40, seed=5)
    query = pairs(10, seed=6)
    order, same = torch.randperm(40, generator=torch.Generator().manual_seed(0)), torch.arange(10)
    curve = removal_curve(a, b, {"x": [order]}, *query, same, HOW)["x"]
    kept = torch.ones(40, dtype=torch.bool)
    kept[order[:8]] = False
    again = retrieve(fit_heads(a[kept], b[kept], HOW), *query)
    assert curve.loss[3] == pytest.approx(float(again.loss.mean()))  # at 20 %
    assert curve.accuracy[3] == pytest.approx(float((again.chosen == same).double().mean()))
    one_answer = removal_curve(a, b, {"x": [order]}, *query, torch.zeros(10), HOW)["x"]
    assert one_answer.accuracy == [1.0] * 5  # equal second items are right answers


def test_a_query_alone_is_not_traced() -> None:
    a, b = pairs(6, seed=7)
    influence = fit_heads(a, b, Fit(width=3, epochs=1, batch_size=3, recorded=1))
    with pytest.raises(ValueError, match="among others"):
        trace_back(influence, a[:1], b[:1], 0, torch.ones(6))
