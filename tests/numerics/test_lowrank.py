"""Tangent gradient, way back to the factors and truncated SVD against dense float64 algebra with pseudo-inverses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isodistill.numerics import (
    SubspaceState,
    lora_pro,
    pull_back,
    sylvester_gauge,
    tangent_gradient,
    truncated_svd,
)

SCALE = 2.0


def layer(m: int = 20, n: int = 30, r: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((r, n), (m, r), (m, n))
    )  # A, B, G


def tangent_projection(G: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> np.ndarray:
    """P_T(G) with the orthogonal projectors from an SVD of the factors."""
    G, A, B = (x.double().numpy() for x in (G, A, B))
    P_B, P_A = B @ np.linalg.pinv(B, rcond=1e-7), np.linalg.pinv(A, rcond=1e-7) @ A
    return P_B @ G + G @ P_A - P_B @ G @ P_A


def relative_error(actual: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual.double().numpy() - expected) / np.linalg.norm(expected))


@settings(deadline=None)
@given(
    m=st.integers(6, 25),
    n=st.integers(6, 25),
    r=st.integers(1, 4),
    exponent=st.integers(-10, 3),
    scale=st.sampled_from([0.5, 1.0, 32.0]),
    seed=st.integers(0, 2**16),
)
def test_tangent_gradient_is_the_dense_projection_of_what_autograd_saw(
    m: int, n: int, r: int, exponent: int, scale: float, seed: int
) -> None:
    A, B, G = layer(m, n, r, seed)
    G = G * 10.0**exponent
    A.requires_grad_()
    B.requires_grad_()
    grad_A, grad_B = torch.autograd.grad((G * (scale * B @ A)).sum(), (A, B))
    left, right = tangent_gradient(grad_A, grad_B, A, B, scale)
    assert left.shape == (m, 2 * r)
    assert right.shape == (2 * r, n)
    assert not left.requires_grad
    assert relative_error(left @ right, tangent_projection(G, A.detach(), B.detach())) < 1e-8


@pytest.mark.parametrize("factor_scale", [1e-6, 1.0, 1e3])
def test_tangent_gradient_in_fp32_at_any_size_of_the_factors(factor_scale: float) -> None:
    A, B, G = (x.float() for x in layer(64, 48, 8))
    B = B * factor_scale
    left, right = tangent_gradient(*pull_back(G, A, B, SCALE), A, B, SCALE)
    assert left.dtype == right.dtype == torch.float32
    assert relative_error(left @ right, tangent_projection(G, A, B)) < 1e-5


def test_tangent_gradient_at_the_start_of_lora_is_the_row_space_part() -> None:
    A, B, G = layer()
    B = torch.zeros_like(B)
    left, right = tangent_gradient(*pull_back(G, A, B, SCALE), A, B, SCALE)
    assert relative_error(left @ right, G.numpy() @ np.linalg.pinv(A.numpy()) @ A.numpy()) < 1e-10


def test_tangent_gradient_of_rank_deficient_factors_is_still_the_projection() -> None:
    A, B, G = layer()
    B = torch.cat([B[:, :2], B[:, :2]], dim=1)
    left, right = tangent_gradient(*pull_back(G, A, B, SCALE), A, B, SCALE)
    assert relative_error(left @ right, tangent_projection(G, A, B)) < 1e-6


@pytest.mark.parametrize("spread", [10.0, 100.0])
def test_tangent_gradient_of_ill_conditioned_factors(spread: float) -> None:
    A, B, G = layer()
    B = B @ torch.diag(torch.logspace(0, -float(np.log10(spread)), 4, dtype=torch.float64))
    left, right = tangent_gradient(*pull_back(G, A, B, SCALE), A, B, SCALE)
    assert relative_error(left @ right, tangent_projection(G, A, B)) < 1e-6


def test_nan_in_a_factor_stops_the_factorisation() -> None:
    A, B, G = layer()
    grads = pull_back(G, A, B, SCALE)
    B[0, 0] = float("nan")
    with pytest.raises(torch.linalg.LinAlgError):
        tangent_gradient(*grads, A, B, SCALE)


def test_pull_back_is_autograd_of_a_merged_model_and_sums_over_row_blocks() -> None:
    A, B, G = layer()
    A.requires_grad_()
    B.requires_grad_()
    x, y = torch.randn(7, 30, dtype=torch.float64), torch.randn(7, 20, dtype=torch.float64)
    weight = (SCALE * B @ A).detach().requires_grad_()
    G = torch.autograd.grad(((x @ weight.T - y) ** 2).sum(), weight)[0]
    expected = torch.autograd.grad(((x @ (SCALE * B @ A).T - y) ** 2).sum(), (A, B))
    grad_A, grad_B = pull_back(G, A, B, SCALE)
    torch.testing.assert_close((grad_A, grad_B), expected)
    blocks = [pull_back(G[part], A, B[part], SCALE) for part in (slice(0, 13), slice(13, 20))]
    torch.testing.assert_close(blocks[0][0] + blocks[1][0], expected[0])
    torch.testing.assert_close(torch.cat([block[1] for block in blocks]), expected[1])


def test_projecting_first_does_not_change_the_pull_back() -> None:
    A, B, G = layer()
    projected = torch.tensor(tangent_projection(G, A, B))
    torch.testing.assert_close(pull_back(projected, A, B, SCALE), pull_back(G, A, B, SCALE))


@settings(deadline=None)
@given(seed=st.integers(0, 2**16), exponent=st.integers(-10, 3))
def test_lora_pro_steps_along_the_projection_for_any_gauge(seed: int, exponent: int) -> None:
    A, B, G = layer(seed=seed)
    G = G * 10.0**exponent
    X = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10.0**exponent
    for gauge in (None, X):
        gA, gB = lora_pro(B.T @ G, G @ A.T, A, B, SCALE, gauge)
        assert relative_error(SCALE * (B @ gA + gB @ A), tangent_projection(G, A, B)) < 1e-8


def test_lora_pro_at_the_start_of_lora_leaves_a_alone() -> None:
    A, B, G = layer()
    B = torch.zeros_like(B)
    gA, gB = lora_pro(torch.ones_like(A), G @ A.T, A, B, SCALE)
    assert torch.equal(gA, torch.zeros_like(A))
    assert relative_error(SCALE * gB @ A, G.numpy() @ np.linalg.pinv(A.numpy()) @ A.numpy()) < 1e-10


def test_gauge_of_lora_pro_solves_its_sylvester_equation_and_is_nearest_to_the_factor_gradients() -> None:
    A, B, G = layer()
    L, R = B.T @ G, G @ A.T
    X = sylvester_gauge(L, A, B, SCALE)
    residual = B.T @ B @ X + X @ A @ A.T + torch.linalg.inv(B.T @ B) @ (SCALE * L) @ A.T / SCALE**2
    assert residual.norm() < 1e-9 * X.norm() * (B.T @ B).norm()
    grad_A, grad_B = pull_back(G, A, B, SCALE)

    def distance(gauge: torch.Tensor) -> torch.Tensor:
        gA, gB = lora_pro(L, R, A, B, SCALE, gauge)
        return (gA - grad_A).square().sum() + (gB - grad_B).square().sum()

    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        assert distance(X) < distance(X + 1e-3 * torch.randn(4, 4, generator=generator, dtype=torch.float64))
    assert torch.equal(sylvester_gauge(0 * L, A, 0 * B, SCALE), torch.zeros_like(X))


def test_steps_in_weight_space_do_not_depend_on_the_basis_of_the_factors() -> None:
    A, B, G = layer()
    R = torch.randn(4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    mask = torch.rand(20, 30, generator=torch.Generator().manual_seed(8), dtype=torch.float64)

    def steps(A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        grad_A, grad_B = pull_back(G, A, B, SCALE)
        left, right = tangent_gradient(grad_A, grad_B, A, B, SCALE)
        x = mask * (left @ right)
        gA, gB = lora_pro(B.T @ x, x @ A.T, A, B, SCALE)
        half_A, half_B = 0.1 * grad_A, grad_B
        return left @ right, B @ gA + gB @ A, B @ half_A + half_B @ A

    here, there = steps(A, B), steps(torch.linalg.inv(R) @ A, B @ R)
    torch.testing.assert_close(there[:2], here[:2], rtol=1e-6, atol=1e-6)
    # The plain factor step does depend on it, so the test can tell the difference.
    assert (there[2] - here[2]).norm() > 0.1 * here[2].norm()


def decaying(m: int, n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(k, min(m, n), generator=generator).double()).Q for k in (m, n))
    return (U * torch.arange(1, min(m, n) + 1).double() ** -1.0) @ V.T


def product(triplets: tuple[torch.Tensor, torch.Tensor, torch.Tensor, SubspaceState]) -> torch.Tensor:
    U, S, Vh, _ = triplets
    return (U * S) @ Vh


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
@pytest.mark.parametrize("rank", [1, 5, 12, 40])
def test_exact_truncation_is_optimal_and_idempotent(shape: tuple[int, int], rank: int) -> None:
    G = decaying(*shape, seed=0)
    triplets = truncated_svd(G, rank)
    k = min(rank, 12)
    assert [tuple(x.shape) for x in triplets[:3]] == [(shape[0], k), (k,), (k, shape[1])]
    best = product(triplets)
    sigma = np.linalg.svd(G.numpy(), compute_uv=False)
    np.testing.assert_allclose((G - best).norm().item(), np.sqrt((sigma[k:] ** 2).sum()), atol=1e-12)
    torch.testing.assert_close(product(truncated_svd(best, rank)), best)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        Q = torch.linalg.qr(torch.randn(shape[0], k, generator=generator).double()).Q
        assert (G - best).norm() <= (G - Q @ Q.T @ G).norm() + 1e-12


def test_warm_started_truncation_approaches_the_optimum_over_slowly_moving_matrices() -> None:
    G, drift = decaying(120, 200, seed=2), decaying(120, 200, seed=3)
    state = SubspaceState()
    excess = []
    for step in range(6):
        moved = G + 0.01 * step * drift
        U, S, Vh, state = truncated_svd(moved, 8, state)
        torch.testing.assert_close(U.T @ U, torch.eye(8).double())
        torch.testing.assert_close(Vh @ Vh.T, torch.eye(8).double())
        assert (S.diff() <= 0).all()
        optimum = np.sqrt((np.linalg.svd(moved.numpy(), compute_uv=False)[8:] ** 2).sum())
        excess.append(float((moved - (U * S) @ Vh).norm()) / optimum - 1)
    assert all(e >= -1e-12 for e in excess)
    assert excess[0] < 0.1
    assert max(excess[2:]) < 0.005
    assert excess[-1] < excess[0]


def test_a_fresh_state_iterates_more_than_a_carried_one() -> None:
    G = decaying(120, 200, seed=2)
    random_basis = torch.linalg.qr(torch.randn(200, 16, generator=torch.Generator().manual_seed(7)).double()).Q
    fresh = (G - product(truncated_svd(G, 8, SubspaceState()))).norm()
    carried = (G - product(truncated_svd(G, 8, SubspaceState(random_basis)))).norm()
    assert fresh < carried
    assert torch.equal(product(truncated_svd(G, 8, SubspaceState())), product(truncated_svd(G, 8, SubspaceState())))


def test_a_matrix_of_the_block_rank_is_recovered_and_an_exact_svd_warms_the_next() -> None:
    G = decaying(40, 60, seed=4)
    low = product(truncated_svd(G, 6))
    torch.testing.assert_close(product(truncated_svd(low, 6, SubspaceState())), low)
    state = truncated_svd(low, 6)[3]
    torch.testing.assert_close(product(truncated_svd(low, 6, state)), low)


@pytest.mark.parametrize("scale", [0.0, 1e-10, 1e3])
def test_truncation_at_any_scale(scale: float) -> None:
    G = (scale * decaying(30, 40, seed=5)).float()
    state = SubspaceState()
    for _ in range(8):
        triplets = truncated_svd(G, 4, state)
        state = triplets[3]
    torch.testing.assert_close(product(triplets), product(truncated_svd(G, 4)), rtol=1e-3, atol=1e-4 * scale)


def test_svd_misuse_is_named() -> None:
    G = decaying(30, 40, seed=6)
    with pytest.raises(ValueError, match="rank"):
        truncated_svd(G, 0)
    state = truncated_svd(G, 4)[3]
    with pytest.raises(ValueError, match=r"\(40, 12\).*\(40, 13\)"):
        truncated_svd(G, 5, state)
    G[3, 4] = float("nan")
    with pytest.raises(FloatingPointError, match=r"G .*1 NaN.*\(3, 4\)"):
        truncated_svd(G, 4)
