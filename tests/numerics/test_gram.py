"""Weights from a Gram matrix against full vectors, TorchJD and a general solver; scales, zero and identical rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from isodistill.numerics.gram import cagrad_weights, gram, pcgrad_weights, simplex_projection, upgrad_weights

SCALES = [10.0**e for e in range(-10, 11, 4)]


def drawn(seed: int, K: int, P: int = 9, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shared, own = torch.randn(P, generator=generator), torch.randn(K, P, generator=generator)
    sizes = torch.rand(K, 1, generator=generator) + 0.2
    return (sizes * (shared + spread * own)).double()


def in_turn(K: int) -> list[list[int]]:
    return [[j for j in range(K) if j != i] for i in range(K)]


def test_gram_is_all_inner_products() -> None:
    g = torch.randn(3, 200_000, generator=torch.Generator().manual_seed(0))
    expected = [[float(a.double() @ b.double()) for b in g] for a in g]
    torch.testing.assert_close(gram(g), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-6)


# ---- PCGrad ----


def pcgrad_on_vectors(g: Tensor, orders: list[list[int]]) -> Tensor:
    projected = []
    for i, order in enumerate(orders):
        p = g[i].clone()
        for j in order:
            if p @ g[j] < 0:
                p = p - (p @ g[j]) / (g[j] @ g[j]) * g[j]
        projected.append(p)
    return torch.stack(projected).mean(0)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_pcgrad_is_the_projection_of_whole_vectors(seed: int, K: int) -> None:
    g = drawn(seed, K)
    orders = [np.random.default_rng([seed, i]).permutation(others).tolist() for i, others in enumerate(in_turn(K))]
    found = pcgrad_weights(gram(g), orders) @ g
    torch.testing.assert_close(found, pcgrad_on_vectors(g, orders), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_sums_to_torchjd_for_two_domains(seed: int) -> None:
    from torchjd.aggregation import PCGrad

    g = drawn(seed, 2)
    torch.testing.assert_close(2 * pcgrad_weights(gram(g), in_turn(2)) @ g, PCGrad()(g), rtol=1e-9, atol=1e-10)


def test_pcgrad_follows_a_permutation_of_domains_and_orders() -> None:
    g, orders = drawn(1, 4, spread=4.0), [[3, 1, 2], [0, 2, 3], [3, 1, 0], [1, 0, 2]]
    w = pcgrad_weights(gram(g), orders)
    order = [2, 0, 3, 1]
    place = {old: new for new, old in enumerate(order)}
    moved = pcgrad_weights(gram(g[order]), [[place[j] for j in orders[old]] for old in order])
    torch.testing.assert_close(moved, w[order])


# ---- UPGrad ----


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([2, 9]))
def test_upgrad_conflicts_with_no_domain_and_no_projection_is_shorter(seed: int, K: int, P: int) -> None:
    """P = 2 makes Q singular."""
    g = drawn(seed, K, P)
    direction = upgrad_weights(gram(g)) @ g
    least = (g @ direction) / g.norm(dim=1) / max(float(direction.norm()), 1e-30)
    assert float(least.min()) >= -1e-6 or float(direction.norm()) < 1e-9 * float(g.norm())


@pytest.mark.parametrize("seed", range(8))
def test_upgrad_is_that_of_torchjd(seed: int) -> None:
    from torchjd.aggregation import UPGrad
    from torchjd.linalg import QuadprogProjector

    g = drawn(seed, 4, spread=3.0)
    theirs = UPGrad(projector=QuadprogProjector(norm_eps=1e-12, reg_eps=1e-10))(g)
    torch.testing.assert_close(upgrad_weights(gram(g)) @ g, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_upgrad_is_the_projection_found_by_a_general_solver(seed: int) -> None:
    g = drawn(seed, 3, spread=3.0).numpy()
    projections = []
    for row in g:
        found = minimize(
            lambda x, row=row: 0.5 * ((x - row) ** 2).sum(), row, jac=lambda x, row=row: x - row,
            constraints=[LinearConstraint(g, lb=0)], method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        projections.append(found.x)
    expected = torch.tensor(np.mean(projections, axis=0))
    rows = torch.tensor(g)
    torch.testing.assert_close(upgrad_weights(gram(rows)) @ rows, expected, rtol=1e-5, atol=1e-6)


# ---- CAGrad ----


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 6), st.floats(0.05, 0.95))
def test_cagrad_stays_on_its_radius_and_no_weights_on_the_simplex_do_better(seed: int, K: int, c: float) -> None:
    g = drawn(seed, K)
    gbar = g.mean(0)
    d = cagrad_weights(gram(g), c) @ g
    assert float((d - gbar).norm()) == pytest.approx(c * float(gbar.norm()), rel=1e-6)
    # By duality the worst domain's gain is the least value over the simplex, so no simplex point lies below it.
    worst = float((g @ d).min())
    samples = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(K, 0.5), size=500))
    g_w = samples @ g
    values = g_w @ gbar + c * gbar.norm() * g_w.norm(dim=1)
    assert worst <= float(values.min()) + 1e-9
    assert worst == pytest.approx(least_over_simplex(g, c), rel=1e-4, abs=1e-5 * float(gbar.norm() * g.norm()))


def least_over_simplex(g: Tensor, c: float) -> float:
    """The dual value by a general solver, from several starts, on whole vectors."""
    G = g.numpy()
    gbar, K = G.mean(0), len(g)
    radius = c * np.linalg.norm(gbar)
    found = [
        minimize(
            lambda w: (w @ G) @ gbar + radius * np.linalg.norm(w @ G), start, method="SLSQP",
            bounds=[(0, 1)] * K, constraints=[LinearConstraint(np.ones((1, K)), 1, 1)],
            options={"ftol": 1e-14, "maxiter": 500},
        ).fun
        for start in [np.full(K, 1 / K), *(0.9 * np.eye(K) + 0.1 / K)]
    ]  # fmt: skip
    return float(min(found))


def test_cagrad_helps_the_worst_domain() -> None:
    g = torch.tensor([[1.0, 0.0], [-0.4, 0.3]], dtype=torch.float64)
    gain = {c: float((g @ (cagrad_weights(gram(g), c) @ g)).min()) for c in (0.0, 0.4, 0.8)}
    assert gain[0.0] < gain[0.4] < gain[0.8]


# ---- what all three owe ----

WEIGHTS = {
    "pcgrad": lambda Q: pcgrad_weights(Q, in_turn(len(Q))),
    "upgrad": upgrad_weights,
    "cagrad": lambda Q: cagrad_weights(Q, 0.5),
}
each = pytest.mark.parametrize("name", WEIGHTS)


@each
@pytest.mark.parametrize(("K", "seed"), [(2, 2), (4, 3)])
def test_weights_do_not_depend_on_the_scale(name: str, K: int, seed: int) -> None:
    Q = gram(drawn(seed, K, spread=4.0))
    expected = WEIGHTS[name](Q)
    assert not torch.allclose(expected, torch.full_like(expected, 1 / K), atol=1e-3)
    for scale in SCALES:
        torch.testing.assert_close(WEIGHTS[name](scale**2 * Q), expected, rtol=1e-6, atol=1e-8)


@each
def test_a_zero_row_identical_rows_and_one_row(name: str) -> None:
    g = drawn(5, 2, spread=4.0)
    zero = torch.cat([g, torch.zeros(1, 9, dtype=torch.float64)])
    assert torch.isfinite(WEIGHTS[name](gram(zero)) @ zero).all()
    same = g[:1].expand(3, -1)
    alike = WEIGHTS[name](gram(same)) @ same
    assert float(torch.cosine_similarity(alike, g[0], dim=0)) == pytest.approx(1.0)
    assert WEIGHTS[name](gram(g[:1])).tolist() == [1.0]
    nothing = torch.zeros(3, 9, dtype=torch.float64)
    assert not (WEIGHTS[name](gram(nothing)) @ nothing).any()


@pytest.mark.parametrize("name", ["pcgrad", "upgrad"])
def test_without_conflict_the_mean_is_left_alone(name: str) -> None:
    g = torch.rand(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(WEIGHTS[name](gram(g)), torch.full((4,), 0.25, dtype=torch.float64))


@each
def test_opposite_gradients_leave_a_finite_direction(name: str) -> None:
    g = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    assert (WEIGHTS[name](gram(g)) @ g).abs().max() < 1e-6


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_simplex_projection_is_the_nearest_point(v: list[float]) -> None:
    x = torch.tensor(v, dtype=torch.float64)
    found = simplex_projection(x)
    assert float(found.sum()) == pytest.approx(1.0)
    assert float(found.min()) >= 0
    for i, j in itertools.permutations(range(len(v)), 2):  # no shift of mass from i to j comes nearer
        if found[i] > 1e-9:
            assert float(x[i] - found[i]) >= float(x[j] - found[j]) - 1e-9
