"""Influence against true retraining of a convex dual encoder, per-pair gradients and dense algebra."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from isodistill.influence import Influence, segment, solve

DELTA, TEMPERATURE, N, D = 1.0, 1.0, 40, 3


class LinearText(nn.Module):
    """u = W a; b is fixed: with inner products the loss is convex in W."""

    def __init__(self, W: torch.Tensor) -> None:
        super().__init__()
        self.W = nn.Parameter(W)

    def encode_a(self, items: torch.Tensor) -> torch.Tensor:
        return items @ self.W.T

    def encode_b(self, items: torch.Tensor) -> torch.Tensor:
        return items


def data(n: int = N, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return a, a.roll(1, 1) + 0.7 * torch.randn(n, D, generator=generator, dtype=torch.float64)


def plain_loss(W: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    S = a @ W.T @ b.T / TEMPERATURE
    target = torch.arange(len(a))
    return cross_entropy(S, target, reduction="sum") + cross_entropy(S.T, target, reduction="sum")


def fit(a: torch.Tensor, b: torch.Tensor, batches: list[torch.Tensor]) -> torch.Tensor:
    """Newton to the minimum; dense Hessian by autograd."""

    def total(w: torch.Tensor) -> torch.Tensor:
        W = w.view(D, D)
        return sum(plain_loss(W, a[i], b[i]) for i in batches if len(i)) + DELTA / 2 * w @ w

    w = torch.zeros(D * D, dtype=torch.float64)
    for _ in range(30):
        g = torch.autograd.functional.jacobian(total, w)
        if g.norm() < 1e-11:
            break
        step = torch.linalg.solve(torch.autograd.functional.hessian(total, w), g)
        while total(w - step) > total(w):
            step = step / 2
        w = w - step
    assert g.norm() < 1e-9
    return w.view(D, D)


def fitted(similarity: str = "dot") -> tuple[Influence, torch.Tensor]:
    a, b = data()
    batches = segment(N, 20, seed=1)
    W = fit(a, b, batches)
    how = {"temperature": TEMPERATURE, "delta": DELTA, "similarity": similarity}
    return Influence(LinearText(W), ["W"], a, b, batches, **how), W


def only(n: int) -> torch.Tensor:
    return torch.arange(N) == n


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


def positive_gradient(influence: Influence, W: torch.Tensor, n: int) -> torch.Tensor:
    """The gradient of the pair's own two terms, as influence functions of single losses have it."""
    w = W.clone().requires_grad_()
    batch = next(batch for batch in influence.segments if n in batch)
    S, row = influence.a[batch] @ w.T @ influence.b[batch].T / TEMPERATURE, batch.tolist().index(n)
    own = -2 * S[row, row] + S[row].logsumexp(0) + S[:, row].logsumexp(0)
    return torch.autograd.grad(own, w)[0].reshape(-1)


def test_leave_one_out_against_retraining() -> None:
    influence, W = fitted()
    query = data(40, seed=9)
    g, before = influence.query_gradient(*query), plain_loss(W, *query)
    losses: list[torch.Tensor] = []
    retrained_moves: list[torch.Tensor] = []
    moves: dict[str, list[torch.Tensor]] = {name: [] for name in ("positive", "first", "exact", "reduced")}
    for n in range(N):
        retrained = fit(influence.a, influence.b, [batch[batch != n] for batch in influence.segments])
        losses.append(plain_loss(retrained, *query) - before)
        retrained_moves.append((retrained - W).reshape(-1))
        moves["positive"].append(influence.inverse_product(positive_gradient(influence, W, n), "exact").q)
        moves["first"].append(influence.change(only(n), "first_order", "exact").q)
        moves["exact"].append(influence.change(only(n), "exact", "exact").q)
        moves["reduced"].append(influence.change(only(n), "exact", "exact", removed_hessian=True).q)
    truth, true_moves = torch.stack(losses), torch.cat(retrained_moves)
    in_moves = {name: correlation(torch.cat(found), true_moves) for name, found in moves.items()}
    in_loss = {name: correlation(torch.stack(found) @ g, truth) for name, found in moves.items()}
    theta = influence.theta
    edited = torch.stack([influence.query_loss(theta + move, *query) - before for move in moves["reduced"]])
    in_loss["edited"] = correlation(edited, truth)
    assert in_moves["first"] > 0.8
    assert in_moves["reduced"] >= 0.97
    assert in_loss["edited"] >= 0.97
    assert in_moves["positive"] < in_moves["first"] < in_moves["exact"] < in_moves["reduced"]
    assert in_loss["positive"] < min(in_loss["first"], in_loss["exact"])


@pytest.mark.parametrize("mode", ["exact", "first_order"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_one_pass_scores_every_pair_as_its_own_gradient_does(mode: str, similarity: str) -> None:
    influence, _ = fitted(similarity)
    q = torch.randn(D * D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    loop = torch.stack([influence.removal_gradient(only(n), mode) @ q for n in range(N)])
    assert torch.allclose(influence.score_all(q, mode), loop, rtol=1e-8, atol=1e-10)


def test_products_and_solvers_agree_with_the_dense_hessian() -> None:
    influence, W = fitted()

    def total(w: torch.Tensor) -> torch.Tensor:
        batches = influence.segments
        return sum(plain_loss(w.view(D, D), influence.a[i], influence.b[i]) for i in batches) + DELTA / 2 * w @ w

    H = torch.autograd.functional.hessian(total, W.reshape(-1))
    g = influence.query_gradient(*data(10, seed=5))
    assert torch.allclose(influence.hessian_product(g), H @ g)
    assert torch.allclose(influence.gauss_newton_product(g), H @ g)  # S is linear in W
    expected = torch.linalg.solve(H, g)
    for solver, steps, tolerance in (
        ("exact", 1, 1e-10),
        ("cg", 100, 1e-6),
        ("ggn_cg", 100, 1e-6),
        ("lissa", 5000, 1e-2),
    ):
        found = influence.inverse_product(g, solver, tol=1e-9, max_steps=steps)
        assert (found.q - expected).norm() / expected.norm() < tolerance, solver
        assert found.residual < tolerance


def test_planted_mismatches_score_low_and_leaving_them_out_lowers_the_loss_as_predicted() -> None:
    a, b = data(64, seed=2)
    planted = torch.arange(64) % 10 == 0
    b[planted] = b[planted].roll(1, 0)
    batches, query = segment(64, 16, seed=0), data(16, seed=30)
    W = fit(a, b, batches)
    influence = Influence(LinearText(W), ["W"], a, b, batches, temperature=TEMPERATURE, delta=DELTA, similarity="dot")
    scores = influence.score_all(influence.inverse_product(influence.query_gradient(*query)).q)
    assert scores[planted].median() < 0
    assert (scores[planted][:, None] < scores[~planted]).double().mean() > 0.65
    before = plain_loss(W, *query)
    retrained = plain_loss(fit(a, b, [batch[~planted[batch]] for batch in batches]), *query) - before
    move = influence.change(planted, removed_hessian=True).q
    assert retrained < 0
    assert influence.query_loss(influence.theta + move, *query) < before


def test_removal_over_several_batches_is_the_sum_and_relative_scores_ignore_scale() -> None:
    influence, _ = fitted()
    removed = torch.zeros(N, dtype=torch.bool)
    first, second = (int(batch[0]) for batch in influence.segments[:2])
    removed[[first, second]] = True
    apart = influence.removal_gradient(only(first)) + influence.removal_gradient(only(second))
    assert torch.allclose(influence.removal_gradient(removed), apart)
    change = influence.change(only(first)).q
    assert influence.relative(2.0, change) == pytest.approx(influence.relative(6.0, 3 * change))


def test_segments_are_replayed_and_hold_every_pair_once() -> None:
    one, again = segment(10, 4, seed=3), segment(10, 4, seed=3)
    assert all(torch.equal(x, y) for x, y in zip(one, again, strict=True))
    assert sorted(torch.cat(one).tolist()) == list(range(10))


def test_what_cannot_be_scored_is_refused() -> None:
    a, b = data()
    good = {"temperature": 1.0, "delta": 1.0}
    encoder = LinearText(torch.eye(D, dtype=torch.float64))
    with pytest.raises(ValueError, match="No parameter matches"):
        Influence(encoder, ["head.*"], a, b, segment(N, 8, 0), **good)
    with pytest.raises(ValueError, match="a pair twice"):
        Influence(encoder, ["W"], a, b, [torch.tensor([1, 1])], **good)
    with pytest.raises(ValueError, match="first items"):
        Influence(encoder, ["W"], a, b[1:], segment(N, 8, 0), **good)
    with pytest.raises(ValueError, match="fp32 or fp64"):
        Influence(LinearText(torch.eye(D).half()), ["W"], a, b, segment(N, 8, 0), **good)
    influence = Influence(encoder, ["W"], a, b, segment(N, 8, 0), **good)
    with pytest.raises(ValueError, match="at least two pairs"):
        influence.query_gradient(a[:0], b[:0])
    influence.a = torch.full_like(a, torch.nan)
    with pytest.raises(FloatingPointError, match="batch 0"):
        influence.score_all(influence.theta)


def test_solvers_say_when_they_fail() -> None:
    g = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="not positive definite"):
        solve(lambda x: 0 * x, g, "exact")
    with pytest.raises(ValueError, match="Curvature"):
        solve(lambda x: -x, g, "cg")
    scales = torch.tensor([1.0, 1e3, 1e6], dtype=torch.float64)
    with pytest.warns(UserWarning, match="residual"):
        assert solve(lambda x: scales * x, g, "cg", max_steps=1).residual > 1e-2
