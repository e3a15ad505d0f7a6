"""Angles against float64 arccos and dense products; zero vectors, rescaling, and what other metrics see instead."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isodistill.numerics.angles import angle_of_products, angles, component_angles, drifts, lora_products


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arccos_angle(a: Tensor, b: Tensor) -> np.ndarray:
    x, y = a.double().numpy(), b.double().numpy()
    cosine = (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
    return np.arccos(np.clip(cosine, -1, 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_theta_is_the_arccos_of_float64(seed: int, n: int) -> None:
    a, b = drawn(seed, 20, n), drawn(seed + 1, 20, n)
    theta, _ = angles(a, b)
    expected = arccos_angle(a, b)
    inside = (expected > 0.01) & (expected < math.pi - 0.01)
    assert np.allclose(theta.numpy()[inside], expected[inside], rtol=0, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_rescaling_has_angle_zero_and_a_flip_pi(seed: int, c: float) -> None:
    w = drawn(seed, 5, 30)
    assert angles(w, c * w)[0].max() < 1e-12
    torch.testing.assert_close(angles(w, -c * w)[0], torch.full((5,), math.pi, dtype=torch.float64))
    assert torch.equal(angles(w, drawn(seed + 1, 5, 30))[0], angles(drawn(seed + 1, 5, 30), w)[0])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_triangle_inequality(seed: int) -> None:
    a, b, c = drawn(seed, 10, 3), drawn(seed + 1, 10, 3), drawn(seed + 2, 10, 3)
    assert (angles(a, c)[0] <= angles(a, b)[0] + angles(b, c)[0] + 1e-12).all()


@pytest.mark.parametrize("theta", [1e-4, 1e-3, 3e-1])
def test_small_angles_are_right_in_fp32_where_arccos_is_not(theta: float) -> None:
    a, across = torch.zeros(200), torch.zeros(200)
    a[0], across[1] = 3.0, 5.0
    b = math.cos(theta) * a / 3 + math.sin(theta) * across / 5
    assert float(angles(a, b)[0]) == pytest.approx(theta, rel=1e-5)
    if theta < 1e-3:
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
        assert float(torch.arccos(cosine.clamp(-1, 1))) == 0.0


def test_zero_vectors() -> None:
    old = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    new = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    theta, degenerate = angles(old, new)
    torch.testing.assert_close(theta, torch.tensor([0.0, math.pi / 2, math.pi / 2, 0.0]))
    assert degenerate.tolist() == [True, True, True, False]


def test_l2_fires_where_the_angle_does_not_and_the_reverse() -> None:
    sparse = torch.zeros(100)
    sparse[:3] = torch.tensor([4.0, -2.0, 1.0])
    small, turned = torch.zeros(100), torch.zeros(100)
    small[0], turned[1] = 1e-3, 1e-3
    old, new = torch.stack([sparse, small]), torch.stack([1.5 * sparse, turned])
    l2, theta = drifts(old, new, "l2")[0], drifts(old, new, "angular")[0]
    assert l2[0] > 0.05 > l2[1]
    assert theta[0] < 1e-6
    assert float(theta[1]) == pytest.approx(math.pi / 2)


def test_every_metric_against_its_formula() -> None:
    a, b = drawn(0, 6, 8), drawn(1, 6, 8)
    torch.testing.assert_close(drifts(a, b, "l1")[0], (a - b).abs().sum(1))
    torch.testing.assert_close(drifts(a, b, "l2")[0], (a - b).square().sum(1).sqrt())
    torch.testing.assert_close(drifts(a, b, "cosine")[0], 1 - torch.cos(torch.from_numpy(arccos_angle(a, b))))
    with pytest.raises(ValueError, match="metric is 'euclid'"):
        drifts(a, b, "euclid")  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1e-3, 1.0]))
def test_lora_rows_and_columns_equal_the_dense_ones(seed: int, change: float) -> None:
    W0, A, B = drawn(seed, 12, 9), drawn(seed + 1, 3, 9), drawn(seed + 2, 12, 3)
    A1, B1 = A + change * drawn(seed + 3, 3, 9), B + change * drawn(seed + 4, 12, 3)
    old, new = W0 + 0.5 * B @ A, W0 + 0.5 * B1 @ A1
    theta, degenerate = angle_of_products(lora_products(W0, (A, B), (A1, B1), 0.5))
    torch.testing.assert_close(theta, angles(old, new)[0], rtol=1e-6, atol=1e-13)
    assert not degenerate.any()
    of_columns = lora_products(W0.T, (B.T, A.T), (B1.T, A1.T), 0.5)
    torch.testing.assert_close(angle_of_products(of_columns)[0], angles(old.T, new.T)[0], rtol=1e-6, atol=1e-13)


def test_products_of_pieces_add_up() -> None:
    old, new = drawn(0, 7, 10), drawn(1, 7, 10)
    d = new - old
    pieces = zip(old.split(4, 1), d.split(4, 1), strict=True)
    parts = [torch.stack([(x * x).sum(1), (x * y).sum(1), (y * y).sum(1)]) for x, y in pieces]
    torch.testing.assert_close(angle_of_products(sum(parts[1:], parts[0]))[0], angles(old, new)[0])
    nothing = torch.zeros(3, 2, dtype=torch.float64)
    nothing[2, 1] = 1.0
    theta, degenerate = angle_of_products(nothing)
    assert theta.tolist() == [0.0, math.pi / 2]
    assert degenerate.all()


def test_components_do_not_depend_on_the_balance_of_their_halves() -> None:
    A, B, A1, B1 = drawn(0, 3, 9), drawn(1, 12, 3), drawn(2, 3, 9), drawn(3, 12, 3)
    theta, _ = component_angles((A, B), (A1, B1))
    torch.testing.assert_close(component_angles((10 * A, B / 10), (A1, 3 * B1))[0], theta)
    a = torch.cat([B[:, 0] / B[:, 0].norm(), A[0] / A[0].norm()])
    b = torch.cat([B1[:, 0] / B1[:, 0].norm(), A1[0] / A1[0].norm()])
    assert float(theta[0]) == pytest.approx(float(arccos_angle(a, b)))
