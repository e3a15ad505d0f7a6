"""Correlation against numpy, its invariances, gradients, degenerate columns, and a step in pieces against one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isodistill.numerics.correlation import (
    PairMoments,
    correlation_loss,
    linear_cka,
    off_diagonal,
    pearson,
    standardise,
)


def features(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    F_S = torch.randn(n, d, generator=generator, dtype=torch.float64) * 3 + 5
    return F_S, 0.5 * F_S + torch.randn(n, d, generator=generator, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 40), d=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_r_is_the_diagonal_of_numpys_corrcoef(n: int, d: int, seed: int) -> None:
    F_S, F_T = features(n, d, seed)
    r, live = pearson(F_S, F_T)
    expected = np.corrcoef(F_S.numpy().T, F_T.numpy().T)[:d, d:]
    np.testing.assert_allclose(r.numpy(), expected.diagonal(), rtol=1e-10)
    assert bool(live.all())
    both = (expected**2).sum() - (expected.diagonal() ** 2).sum()
    np.testing.assert_allclose(float(off_diagonal(F_S, F_T)), both, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(float(correlation_loss(r, live)), ((1 - expected.diagonal()) ** 2).mean(), rtol=1e-9)


def test_loss_is_blind_to_scale_and_shift_zero_at_one_and_four_at_minus_one() -> None:
    F_S, F_T = features(20, 4, 0)
    scale, shift = torch.tensor([0.01, 1.0, 3.0, 1e4]).double(), torch.tensor([1.0, -50.0, 0.0, 7.0]).double()
    loss = correlation_loss(*pearson(F_S, F_T))
    torch.testing.assert_close(correlation_loss(*pearson(F_S * scale + shift, F_T)), loss)
    assert float(correlation_loss(*pearson(F_T * scale + shift, F_T))) < 1e-20
    torch.testing.assert_close(float(correlation_loss(*pearson(-F_T, F_T))), 4.0)


def test_gradients_by_finite_differences() -> None:
    F_S, F_T = features(7, 3, 1)
    F_S.requires_grad_()
    assert torch.autograd.gradcheck(lambda F: correlation_loss(*pearson(F, F_T)), F_S)
    assert torch.autograd.gradcheck(lambda F: off_diagonal(F, F_T), F_S)
    assert torch.autograd.gradcheck(lambda F: linear_cka(F, F_T[:, :2]), F_S)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_columns_and_single_rows_are_left_out(dtype: torch.dtype) -> None:
    F_S, F_T = (F.to(dtype) for F in features(16, 3, 2))
    F_S[:, 1] = 300.0
    F_S.requires_grad_()
    r, live = pearson(F_S, F_T)
    assert live.tolist() == [True, False, True]
    correlation_loss(r, live).backward()
    assert bool(torch.isfinite(F_S.grad).all())
    assert not F_S.grad[:, 1].any()
    assert F_S.grad[:, 0].any()
    alone = torch.randn(1, 3).requires_grad_()
    loss = correlation_loss(*pearson(alone, F_T[:1].float()))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not alone.grad.any()


def test_nan_is_seen_not_dropped() -> None:
    F_S, F_T = features(8, 3, 3)
    F_T[2, 1] = torch.nan
    r, live = pearson(F_S, F_T)
    assert bool(live[1])
    assert bool(torch.isnan(correlation_loss(r, live)))


def test_standardised_columns_have_mean_0_and_variance_1() -> None:
    z, _ = standardise(features(30, 4, 4)[0])
    torch.testing.assert_close(z.mean(0), torch.zeros(4).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(z.square().mean(0), torch.ones(4).double())


@pytest.mark.parametrize("pieces", [[30], [7, 23], [1, 2, 27], [10, 0, 20]])
def test_a_step_in_pieces_has_the_loss_and_gradient_of_one_batch(pieces: list[int]) -> None:
    F_S, F_T = features(30, 4, 5)
    F_S[:, 3] = 2.0  # constant
    F_S.requires_grad_()
    r, live = pearson(F_S, F_T)
    correlation_loss(r, live).backward()
    moments, others = PairMoments(4), PairMoments(4)
    parts = list(zip(F_S.detach().split(pieces), F_T.split(pieces), strict=True))
    for number, part in enumerate(parts):
        (moments if number % 2 else others).update(*part)
    moments.merge(others.packed())
    torch.testing.assert_close(moments.pearson()[0], torch.where(live, r, 0.0).detach())
    assert torch.equal(moments.pearson()[1], live)
    torch.testing.assert_close(torch.cat([moments.pull(*part) for part in parts]), F_S.grad)


def test_cka_is_one_for_rotations_and_small_for_noise() -> None:
    F_S, _ = features(200, 5, 6)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())[0]
    torch.testing.assert_close(float(linear_cka(F_S, 7 * F_S @ rotation + 3)), 1.0)
    noise = torch.randn(200, 5, generator=torch.Generator().manual_seed(1)).double()
    assert float(linear_cka(F_S, noise)) < 0.1
    assert float(linear_cka(F_S, torch.ones(200, 5).double())) == 0.0
