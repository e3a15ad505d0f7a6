"""Removal from a contrastive batch against cross-entropies of the smaller batch, finite differences and autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from isodistill.numerics.contrastive import (
    all_removal_derivatives,
    contrastive_loss,
    loss_curvature,
    removal_gain,
    sampled_logit_gradient,
)

SIDES = ["both", "a_to_b", "b_to_a"]


def logits(n: int, extra: int = 0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, n + extra, generator=generator, dtype=torch.float64)


def loss_of(S: torch.Tensor, sides: str = "both") -> torch.Tensor:
    target = torch.arange(len(S))
    rows = cross_entropy(S, target, reduction="sum") if len(S) else S.sum()
    columns = cross_entropy(S[:, : len(S)].T, target, reduction="sum") if len(S) else S.sum()
    return {"both": rows + columns, "a_to_b": rows, "b_to_a": columns}[sides]


def without(S: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    columns = torch.ones(S.shape[1], dtype=torch.bool)
    columns[: len(S)] = ~removed
    return S[~removed][:, columns]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), extra=st.integers(0, 3), seed=st.integers(0, 10**6), sides=st.sampled_from(SIDES))
def test_exact_removal_is_the_loss_without_the_pairs(n: int, extra: int, seed: int, sides: str) -> None:
    S = logits(n, extra, seed)
    removed = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.4
    expected = loss_of(S, sides) - loss_of(without(S, removed), sides)
    assert contrastive_loss(S, sides) == pytest.approx(float(loss_of(S, sides)), abs=1e-10)
    assert removal_gain(S, removed, "exact", sides) == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize("sides", SIDES)
def test_columns_that_pairs_own_leave_with_them(sides: str) -> None:
    S, removed = logits(5, 10, seed=7), torch.tensor([False, True, False, True, False])
    rest = S[~removed][:, (~removed).repeat(3)]
    expected = loss_of(S, sides) - loss_of(rest, sides)
    assert removal_gain(S, removed, "exact", sides, owned=True) == pytest.approx(float(expected), abs=1e-10)
    with pytest.raises(ValueError, match="as many further columns"):
        removal_gain(S[:, :14], removed, owned=True)


def test_the_whole_batch_and_a_batch_of_one() -> None:
    S = logits(5)
    assert removal_gain(S, torch.ones(5, dtype=torch.bool)) == pytest.approx(float(loss_of(S)), abs=1e-12)
    assert removal_gain(S[:1, :1], torch.ones(1, dtype=torch.bool)) == pytest.approx(0, abs=1e-12)


def test_the_first_order_is_the_derivative_in_the_weight_of_the_negatives_and_the_printed_inverse_is_not() -> None:
    S, n = logits(7), 2
    others = [k for k in range(7) if k != n]

    def loss_at(zeta: float) -> torch.Tensor:
        T = S.clone()
        shift = torch.tensor(zeta, dtype=torch.float64).log()
        T[others, n] += shift
        T[n, others] += shift
        rows, columns = T.logsumexp(1) - T.diagonal(), T.logsumexp(0) - T.diagonal()
        return (rows + columns)[others].sum()

    derivative = float(loss_at(1 + 1e-5) - loss_at(1 - 1e-5)) / 2e-5
    removed = torch.arange(7) == n
    positive = float(-2 * S[n, n] + S[n].logsumexp(0) + S[:, n].logsumexp(0))
    ours = float(removal_gain(S, removed, "first_order")) - positive
    printed = float((1 / S.softmax(1)[others, n] + 1 / S.T.softmax(1)[others, n]).sum())
    assert ours == pytest.approx(derivative, rel=1e-7)
    assert printed > 10 * derivative


@pytest.mark.parametrize("mode", ["exact", "first_order"])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("extra", [2, 6])
def test_all_pairs_at_once_are_the_derivatives_pair_by_pair(mode: str, sides: str, extra: int) -> None:
    S, dS, owned = logits(6, extra), logits(6, extra, seed=1), extra == 6
    expected = []
    for n in range(6):
        T = S.clone().requires_grad_()
        gradient = torch.autograd.grad(removal_gain(T, torch.arange(6) == n, mode, sides, owned), T)[0]
        expected.append((gradient * dS).sum())
    assert torch.allclose(all_removal_derivatives(S, dS, mode, sides, owned), torch.stack(expected), atol=1e-10)


def test_a_sure_softmax_keeps_its_digits() -> None:
    S = torch.tensor([[0.0, 12.0, 1.0], [0.0, 3.0, 1.0], [2.0, 0.0, 5.0]], dtype=torch.float64)
    dS = logits(3, seed=2)
    T = S.clone().requires_grad_()
    gradient = torch.autograd.grad(removal_gain(T, torch.tensor([False, True, False])), T)[0]
    assert all_removal_derivatives(S, dS)[1] == pytest.approx(float((gradient * dS).sum()), rel=1e-9)


@pytest.mark.parametrize("sides", SIDES)
def test_the_curvature_is_the_hessian_in_the_logits(sides: str) -> None:
    S, dS = logits(4, 1), logits(4, 1, seed=3)
    hessian = torch.autograd.functional.hessian(lambda x: loss_of(x, sides), S)
    assert torch.allclose(loss_curvature(S, dS, sides), torch.einsum("ijkl,kl->ij", hessian, dS), atol=1e-10)


@pytest.mark.parametrize("sides", SIDES)
def test_gradients_with_drawn_answers_have_mean_0_and_the_hessian_as_covariance(sides: str) -> None:
    S, generator = logits(3, 1) / 2, torch.Generator().manual_seed(5)
    hessian = torch.autograd.functional.hessian(lambda x: loss_of(x, sides), S).reshape(12, 12)
    draws = torch.stack([sampled_logit_gradient(S, generator, sides).reshape(-1) for _ in range(4000)])
    assert draws.mean(0).abs().max() < 0.05
    assert torch.allclose(draws.T @ draws / len(draws), hessian, atol=0.05)


def test_shapes_modes_and_sides_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="one positive per row"):
        contrastive_loss(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="sides must be"):
        contrastive_loss(torch.zeros(2, 2), "up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode must be"):
        removal_gain(torch.zeros(2, 2), torch.tensor([True, False]), "second")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="removed must be bool"):
        removal_gain(torch.zeros(2, 2), torch.tensor([1, 0]))
