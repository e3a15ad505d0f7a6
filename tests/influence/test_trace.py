"""A mistake traced back: by a solve per pair, and to the causes that were planted for it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from isodistill.influence import (
    Epochs,
    Fit,
    Influence,
    divide,
    fit_heads,
    leave_out,
    removal_curve,
    retrieve,
    trace_back,
)

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
    assert (traced.influence[:3].float() - expected).norm() < 0.03 * expected.norm()  # solved to 1 %
    assert traced.solution.converged
    assert torch.allclose(traced.relative, traced.influence / 2)


def test_the_curve_is_that_of_fits_without_the_first_of_the_order() -> None:
    a, b = pairs(60, seed=5)
    query = pairs(10, seed=6)
    rows = torch.arange(0, 60, 2)[torch.randperm(30, generator=torch.Generator().manual_seed(1))]  # the curve's pairs
    order = rows[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    epochs, same, given = divide(rows, HOW), torch.arange(10), []

    def fit(batches: Epochs) -> Influence:
        given.append(batches)
        return fit_heads(a, b, HOW, batches)

    curve = removal_curve(fit, epochs, {"x": order, "y": order.flip(0)}, *query, same)
    assert len(given) == 9
    out = set(order[:6].tolist())  # at 20 %
    shorter = [[torch.tensor([n for n in batch.tolist() if n not in out]) for batch in epoch] for epoch in epochs]
    again = retrieve(fit_heads(a, b, HOW, shorter), *query)
    assert curve["x"].loss[3] == pytest.approx(float(again.loss.mean()))
    assert curve["x"].accuracy[3] == pytest.approx(float((again.chosen == same).double().mean()))
    whole = retrieve(fit_heads(a, b, HOW, epochs), *query)
    assert curve["x"].loss[0] == curve["y"].loss[0] == pytest.approx(float(whole.loss.mean()))
    assert {int(n) for batch in given[0][0] for n in batch} == set(rows.tolist())
    one_answer = removal_curve(fit, epochs, {"x": order}, *query, torch.zeros(10))["x"]
    assert one_answer.accuracy == [1.0] * 5  # equal second items are right answers


def test_batches_without_two_pairs_left_go() -> None:
    epochs = [[torch.tensor([4, 1, 2]), torch.tensor([0, 3])], [torch.tensor([0, 1, 2]), torch.tensor([3, 4])]]
    left = leave_out(epochs, torch.tensor([3, 2]))
    assert [[batch.tolist() for batch in epoch] for epoch in left] == [[[4, 1]], [[0, 1]]]


def test_a_query_alone_is_not_traced() -> None:
    a, b = pairs(6, seed=7)
    influence = fit_heads(a, b, Fit(width=3, epochs=1, batch_size=3, recorded=1))
    with pytest.raises(ValueError, match="among others"):
        trace_back(influence, a[:1], b[:1], 0, torch.ones(6))
