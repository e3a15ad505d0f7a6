"""Rivals of ECIF against loops over single pairs that share no code with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from isodistill.influence import Influence, plain_scores, positive_part, segment, tracin, trak

N, BATCH, WIDTH, T = 18, 6, 4, 0.5


class Head(nn.Linear):
    def encode_a(self, items: torch.Tensor) -> torch.Tensor:
        return self(items)

    def encode_b(self, items: torch.Tensor) -> torch.Tensor:
        return items


@pytest.fixture(scope="module")
def influence() -> Influence:
    torch.manual_seed(0)
    a, b = torch.randn(2, N, WIDTH, dtype=torch.float64)
    head = Head(WIDTH, WIDTH, bias=False).double()
    return Influence(head, ["*"], a, b, segment(N, BATCH, 3), temperature=T, similarity="dot")


def queries() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(2, 5, WIDTH, generator=generator, dtype=torch.float64))


def logits(w: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ w.view(WIDTH, WIDTH).T @ b.T / T


def pair_alone(influence: Influence, n: int) -> tuple[list[int], int]:
    """The batch of a pair and its place there."""
    batch = next(batch.tolist() for batch in influence.segments if n in batch)
    return batch, batch.index(n)


def own_gradient(influence: Influence, n: int, theta: torch.Tensor) -> torch.Tensor:
    w = theta.clone().requires_grad_()
    batch, row = pair_alone(influence, n)
    S = logits(w, influence.a[batch], influence.b[batch])
    target = torch.tensor([row])
    loss = cross_entropy(S[row : row + 1], target) + cross_entropy(S[:, row][None], target)
    return torch.autograd.grad(loss, w)[0]


def test_plain_scores_are_those_of_each_pair_in_its_batch(influence: Influence) -> None:
    found = plain_scores(influence)
    for n in range(N):
        batch, row = pair_alone(influence, n)
        S = logits(influence.theta, influence.a[batch], influence.b[batch])
        p, q = S[row].softmax(0)[row], S[:, row].softmax(0)[row]
        assert found.similarity[n] == pytest.approx(float(S[row, row]))
        assert found.loss[n] == pytest.approx(float(p.log() + q.log()))
        assert found.confidence[n] == pytest.approx(float(p + q))


def test_the_positive_part_is_the_gradient_of_the_pairs_own_terms(influence: Influence) -> None:
    q = torch.randn(WIDTH**2, dtype=torch.float64)
    expected = torch.stack([own_gradient(influence, n, influence.theta) @ q for n in range(N)])
    assert torch.allclose(positive_part(influence, q), expected)


def test_tracin_sums_products_of_gradients_over_checkpoints(influence: Influence) -> None:
    checkpoints = [influence.theta, 0.5 * influence.theta]
    expected = torch.zeros(N, dtype=torch.float64)
    for theta in checkpoints:
        w = theta.clone().requires_grad_()
        S, target = logits(w, *queries()), torch.arange(5)
        loss = cross_entropy(S, target, reduction="sum") + cross_entropy(S.T, target, reduction="sum")
        g = torch.autograd.grad(loss, w)[0]
        expected += torch.stack([own_gradient(influence, n, theta) @ g for n in range(N)])
    assert torch.allclose(tracin(influence, checkpoints, *queries()), expected)


def margin_gradient(a: torch.Tensor, b: torch.Tensor, row: int, theta: torch.Tensor) -> torch.Tensor:
    w = theta.clone().requires_grad_()
    S = logits(w, a, b)
    p, q = S[row].softmax(0)[row], S[:, row].softmax(0)[row]
    return torch.autograd.grad((p / (1 - p)).log() + (q / (1 - q)).log(), w)[0]


def test_trak_is_a_ridge_regression_on_projected_margins(influence: Influence) -> None:
    rank = 7
    R = torch.randn(WIDTH**2, rank, generator=torch.Generator().manual_seed(2)).double()
    places = [pair_alone(influence, n) for n in range(N)]
    rows = [margin_gradient(influence.a[batch], influence.b[batch], row, influence.theta) for batch, row in places]
    phi = torch.stack(rows) @ R
    target = sum(margin_gradient(*queries(), row, influence.theta) for row in range(5)) @ R
    K = phi.T @ phi
    solved = torch.linalg.inv(K + K.trace() / rank * torch.eye(rank)) @ target
    expected = (1 - plain_scores(influence).confidence / 2) * (phi @ solved)
    assert torch.allclose(trak(influence, *queries(), rank=rank, seed=2), expected)


def test_a_pair_alone_in_its_batch_has_no_influence_by_any_of_them() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, WIDTH)
    influence = Influence(Head(WIDTH, WIDTH), ["*"], a, b, [torch.tensor([0, 1]), torch.tensor([2])], temperature=T)
    scores = [trak(influence, a, b, rank=4), tracin(influence, [influence.theta], a, b)]
    assert all(x[2] == 0 and x[:2].abs().min() > 0 for x in scores)


def test_a_single_prediction_has_a_trak_score_too(influence: Influence) -> None:
    a, choices = queries()
    assert trak(influence, a[:1], choices, rank=7).isfinite().all()
