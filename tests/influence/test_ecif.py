"""Influence against true retraining of a convex dual encoder, per-pair gradients and dense algebra."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from isodistill.influence import Influence, segment

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


class Convex:
    """The loss over given batches: S is linear in W, so it is a multinomial regression per row and column."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, batches: list[torch.Tensor], delta: float) -> None:
        wide = [(b[i][None, :, :, None] * a[i][:, None, None, :]).reshape(len(i), len(i), D * D) for i in batches]
        self.problems = [side / TEMPERATURE for F in wide for side in (F, F.transpose(0, 1))]
        self.delta = delta

    def loss(self, w: torch.Tensor) -> torch.Tensor:
        losses = [((F @ w).logsumexp(1) - (F @ w).diagonal()).sum() for F in self.problems]
        return torch.stack(losses).sum() + self.delta / 2 * w @ w

    def derivatives(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        g, H = self.delta * w, self.delta * torch.eye(D * D, dtype=torch.float64)
        for F in self.problems:
            P = (F @ w).softmax(1)
            mean = torch.einsum("kj,kjp->kp", P, F)
            g = g + (mean - F.diagonal().T).sum(0)
            H = H + (P.reshape(-1, 1) * F.reshape(-1, D * D)).T @ F.reshape(-1, D * D) - mean.T @ mean
        return g, H


def fit(
    a: torch.Tensor,
    b: torch.Tensor,
    batches: list[torch.Tensor],
    delta: float = DELTA,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Newton to the minimum."""
    convex = Convex(a, b, batches, delta)
    w = torch.zeros(D * D, dtype=torch.float64) if start is None else start.reshape(-1)
    for _ in range(30):
        g, H = convex.derivatives(w)
        if g.norm() < 1e-10:
            break
        step = torch.linalg.solve(H, g)
        while convex.loss(w - step) > convex.loss(w) + 1e-12:
            step = step / 2
        w = w - step
    assert g.norm() < 1e-9
    return w.view(D, D)


def fitted(similarity: str = "dot", delta: float = DELTA) -> tuple[Influence, torch.Tensor]:
    a, b = data()
    batches = segment(N, 20, seed=1)
    W = fit(a, b, batches, delta)
    how = {"temperature": TEMPERATURE, "delta": delta, "similarity": similarity}
    return Influence(LinearText(W), ["W"], a, b, batches, **how), W


def only(n: int) -> torch.Tensor:
    return torch.arange(N) == n


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


def rival_gradients(influence: Influence, W: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the pair's own two terms, as influences of single losses have it; and with the inverse ratio of the notes."""
    w = W.clone().requires_grad_()
    batch = next(batch for batch in influence.segments if n in batch)
    S, row = influence.a[batch] @ w.T @ influence.b[batch].T / TEMPERATURE, batch.tolist().index(n)
    own = -2 * S[row, row] + S[row].logsumexp(0) + S[:, row].logsumexp(0)
    others = [k for k in range(len(batch)) if k != row]
    printed = own + (1 / S.softmax(1)[others, row]).sum() + (1 / S.softmax(0)[row, others]).sum()
    return tuple(torch.autograd.grad(loss, w, retain_graph=True)[0].reshape(-1) for loss in (own, printed))


@pytest.fixture(scope="module", params=[1.0, 64.0], ids=["weak_decay", "strong_decay"])
def left_out(request: pytest.FixtureRequest) -> tuple[float, dict[str, float], dict[str, float]]:
    """delta, and for each way the correlations with retraining: of the change of theta, and of the loss on queries."""
    influence, W = fitted(delta=request.param)
    query = data(40, seed=9)
    g, before = influence.query_gradient(*query), plain_loss(W, *query)
    losses: list[torch.Tensor] = []
    retrained_moves: list[torch.Tensor] = []
    moves: dict[str, list[torch.Tensor]] = {name: [] for name in ("positive", "printed", "first", "exact", "reduced")}
    H = Convex(influence.a, influence.b, influence.segments, request.param).derivatives(W.reshape(-1))[1]
    for n in range(N):
        others = [batch[batch != n] for batch in influence.segments]
        retrained = fit(influence.a, influence.b, others, request.param, start=W)
        losses.append(plain_loss(retrained, *query) - before)
        retrained_moves.append((retrained - W).reshape(-1))
        own, printed = rival_gradients(influence, W, n)
        first, exact = (influence.removal_gradient(only(n), mode) for mode in ("first_order", "exact"))
        for name, gradient in {"positive": own, "printed": printed, "first": first, "exact": exact}.items():
            moves[name].append(torch.linalg.solve(H, gradient))
        reduced = Convex(influence.a, influence.b, others, request.param).derivatives(W.reshape(-1))[1]
        moves["reduced"].append(torch.linalg.solve(reduced, exact))
    truth, true_moves = torch.stack(losses), torch.cat(retrained_moves)
    in_moves = {name: correlation(torch.cat(found), true_moves) for name, found in moves.items()}
    in_loss = {name: correlation(torch.stack(found) @ g, truth) for name, found in moves.items()}
    edited = [influence.loss_change(move, *query) for move in moves["reduced"]]
    in_loss["edited"] = correlation(torch.tensor(edited, dtype=torch.float64), truth)
    for name, value in in_loss.items():
        print(f"delta {request.param:g}, {name}: {in_moves.get(name, float('nan')):.3f} theta, {value:.3f} loss")
    return request.param, in_moves, in_loss


def test_leave_one_out_against_retraining(left_out: tuple[float, dict[str, float], dict[str, float]]) -> None:
    delta, in_moves, in_loss = left_out
    assert in_moves["first"] > (0.8 if delta < 10 else 0.9)
    assert in_loss["first"] > (0.8 if delta < 10 else 0.9)
    assert min(in_moves["reduced"], in_loss["reduced"], in_loss["edited"]) >= 0.97
    assert in_moves["positive"] < in_moves["first"] < in_moves["exact"] < in_moves["reduced"]
    assert in_loss["positive"] < min(in_loss["first"], in_loss["exact"])


def test_the_printed_inverse_ratio_does_not_predict_retraining(
    left_out: tuple[float, dict[str, float], dict[str, float]],
) -> None:
    _, in_moves, in_loss = left_out
    assert in_moves["printed"] < 0.2
    assert in_loss["printed"] < in_loss["positive"]


@pytest.mark.parametrize("mode", ["exact", "first_order"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_one_pass_scores_every_pair_as_its_own_gradient_does(mode: str, similarity: str) -> None:
    influence, _ = fitted(similarity)
    q = torch.randn(D * D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    loop = torch.stack([influence.removal_gradient(only(n), mode) @ q for n in range(N)])
    assert torch.allclose(influence.score_all(q, mode), loop, rtol=1e-8, atol=1e-10)


def test_products_and_changes_agree_with_the_dense_hessian() -> None:
    influence, W = fitted()
    H = Convex(influence.a, influence.b, influence.segments, DELTA).derivatives(W.reshape(-1))[1]
    g = influence.query_gradient(*data(10, seed=5))
    assert torch.allclose(influence.hessian_product(g), H @ g)
    assert torch.allclose(influence.gauss_newton_product(g), H @ g)  # S is linear in W
    expected = torch.linalg.solve(H, influence.removal_gradient(only(4)))
    assert torch.allclose(influence.change(only(4), solver="exact").q, expected)

    others = [batch[batch != 4] for batch in influence.segments]
    reduced = Convex(influence.a, influence.b, others, DELTA).derivatives(W.reshape(-1))[1]
    expected = torch.linalg.solve(reduced, influence.removal_gradient(only(4)))
    assert torch.allclose(influence.change(only(4), solver="exact", removed_hessian=True).q, expected)


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


def test_a_batch_in_another_order_and_batches_apart_have_the_same_scores() -> None:
    influence, W = fitted()
    q = torch.randn(D * D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = influence.score_all(q)
    assert expected.abs().min() > 0
    how = {"temperature": TEMPERATURE, "delta": DELTA, "similarity": "dot"}

    def scores(batches: list[torch.Tensor]) -> torch.Tensor:
        return Influence(LinearText(W), ["W"], influence.a, influence.b, batches, **how).score_all(q)

    assert torch.allclose(scores([batch.flip(0) for batch in influence.segments]), expected, rtol=1e-10)
    assert torch.allclose(sum(scores([batch]) for batch in influence.segments), expected, rtol=1e-10)


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
    with pytest.raises(ValueError, match="at least two pairs"):
        influence.query_gradient(a[:1], b[:1])
    influence.a = torch.full_like(a, torch.nan)
    with pytest.raises(FloatingPointError, match="batch 0"):
        influence.score_all(influence.theta)


def test_a_single_prediction_is_a_query_with_its_choices() -> None:
    influence, W = fitted()
    a, choices = data(6, seed=7)
    w = W.clone().requires_grad_()
    expected = torch.autograd.grad(cross_entropy(a[:1] @ w.T @ choices.T / TEMPERATURE, torch.tensor([0])), w)[0]
    assert torch.allclose(influence.query_gradient(a[:1], choices), expected.reshape(-1))


def test_an_edited_model_stands_at_theta_plus_its_change_and_the_fitted_one_stays() -> None:
    influence, W = fitted()
    query = data(10, seed=8)
    change = influence.change(only(3), solver="exact").q
    edited = influence.edited(change)
    assert isinstance(edited, LinearText)
    assert torch.equal(edited.W, W + change.view(D, D))
    assert torch.equal(influence.named(influence.theta)["W"], W)
    expected = float(plain_loss(edited.W.detach(), *query) - plain_loss(W, *query))
    assert influence.loss_change(change, *query) == pytest.approx(expected, abs=1e-10)
