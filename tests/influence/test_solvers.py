"""Solvers against dense float64 algebra, and what they say of systems that they cannot solve."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isodistill.influence import Influence, segment, solve, solve_many

N, BATCH, WIDTH, OUT = 24, 8, 4, 3
DELTA = 0.5


class Heads(nn.Module):
    """Two heads, one with a bias; cosine similarity makes S curved in theta."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = nn.Linear(WIDTH, OUT), nn.Linear(WIDTH, OUT, bias=False)
        for x in self.parameters():
            nn.init.normal_(x)

    def encode_a(self, items: torch.Tensor) -> torch.Tensor:
        return self.text(items)

    def encode_b(self, items: torch.Tensor) -> torch.Tensor:
        return self.image(items)


@pytest.fixture(scope="module")
def influence() -> Influence:
    torch.manual_seed(0)
    a = torch.randn(N, WIDTH, dtype=torch.float64)
    b = a + 0.5 * torch.randn(N, WIDTH, dtype=torch.float64)
    return Influence(Heads().double(), ["*"], a, b, segment(N, BATCH, 0), temperature=0.3, delta=DELTA)


@pytest.fixture(scope="module")
def gauss_newton(influence: Influence) -> torch.Tensor:
    """sum of J' H_S J without delta, from explicit Jacobians and softmax algebra."""
    P = len(influence.theta)
    total = torch.zeros(P, P, dtype=torch.float64)
    for batch in influence.segments:
        S = influence.batch_logits(influence.theta, batch)
        J = torch.autograd.functional.jacobian(lambda t, b=batch: influence.batch_logits(t, b), influence.theta)
        for softmax, jacobian in ((S.softmax(1), J), (S.T.softmax(1), J.transpose(0, 1))):
            for p, j in zip(softmax, jacobian, strict=True):
                total += j.T @ (torch.diag(p) - torch.outer(p, p)) @ j
    return total


def direction(influence: Influence) -> torch.Tensor:
    return torch.randn(len(influence.theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))


def test_iterations_end_where_the_dense_solve_does(influence: Influence, gauss_newton: torch.Tensor) -> None:
    g, identity = direction(influence), torch.eye(len(influence.theta), dtype=torch.float64)
    expected = torch.linalg.solve(gauss_newton + DELTA * identity, g)
    found = influence.inverse_product(g, "ggn_cg", tol=1e-9)
    assert torch.allclose(found.q, expected, atol=1e-6)
    assert found.converged
    assert found.residual < 1e-8

    torch.manual_seed(0)
    encoder = Heads().double()  # delta is so strong that the Hessian of this curved loss is positive definite too
    strongly = Influence(encoder, ["*"], influence.a, influence.b, influence.segments, temperature=0.3, delta=30.0)
    H = torch.stack([strongly.hessian_product(e) for e in identity])
    expected = torch.linalg.solve(H, g)
    for solver, tol, tolerance in (("exact", 1.0, 1e-10), ("cg", 1e-9, 1e-6), ("lissa", 1e-1, 1e-2)):
        found = strongly.inverse_product(g, solver, tol=tol)
        assert (found.q - expected).norm() / expected.norm() < tolerance, solver
        assert found.residual < tolerance
        assert found.converged


def test_draws_and_their_mean_diagonal_are_those_of_the_gauss_newton(
    influence: Influence, gauss_newton: torch.Tensor
) -> None:
    draws = torch.stack(list(influence.sampled_gradients(500, seed=0)))
    assert (draws.T @ draws - gauss_newton).norm() / gauss_newton.norm() < 0.1
    means = [influence.mean_diagonal(seed) for seed in range(100)]
    assert sum(means) / 100 == pytest.approx(float(gauss_newton.diagonal().mean()), rel=0.1)


def test_damping_adds_its_share_of_the_mean_diagonal(influence: Influence, gauss_newton: torch.Tensor) -> None:
    g, identity = direction(influence), torch.eye(len(influence.theta), dtype=torch.float64)
    shift = DELTA + 0.1 * influence.mean_diagonal()
    expected = torch.linalg.solve(gauss_newton + shift * identity, g)
    assert torch.allclose(influence.inverse_product(g, damping=0.1, tol=1e-9).q, expected, atol=1e-6)
    with pytest.raises(ValueError, match="damping must be 0 or more"):
        influence.inverse_product(g, damping=-0.1)


@pytest.mark.parametrize("solver", ["ekfac", "projected"])
def test_factors_invert_a_kronecker_product_that_they_are_drawn_from(solver: str) -> None:
    torch.manual_seed(3)
    wide = nn.Linear(5, 3, bias=False).double()
    theta = Influence(
        nn.ModuleDict({"x": wide}), ["*"], torch.zeros(2, 5), torch.zeros(2, 5), [], temperature=1.0, delta=0.1
    )
    L, R = torch.randn(3, 3, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    theta.sampled_gradients = lambda n, seed, removed=None: iter(  # type: ignore[method-assign]
        torch.stack([(L @ z @ R.T).reshape(-1) for z in torch.randn(n, 3, 5, dtype=torch.float64)]) / n**0.5
    )
    H = torch.kron(L @ L.T, R @ R.T)
    g = torch.randn(15, dtype=torch.float64)
    expected = torch.linalg.solve(H + 0.5 * torch.eye(15, dtype=torch.float64), g)
    found = theta.factors(solver, n_draws=4000).inverse(g, 0.5)
    assert (found - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize("solver", ["ekfac", "projected"])
def test_factors_come_nearer_to_the_solution_than_the_gradient_itself(
    influence: Influence, gauss_newton: torch.Tensor, solver: str
) -> None:
    g, identity = direction(influence), torch.eye(len(influence.theta), dtype=torch.float64)
    H = gauss_newton + (DELTA + influence.mean_diagonal()) * identity
    with pytest.warns(UserWarning, match="only approximate"):
        found = influence.inverse_product(g, solver, damping=1.0)
    expected = torch.linalg.solve(H, g)
    assert found.residual == pytest.approx(float((H @ found.q - g).norm() / g.norm()))
    assert cosine(found.q, expected) > 0.9 > cosine(g, expected)


def test_fitted_factors_serve_many_gradients(influence: Influence) -> None:
    g, fitted = direction(influence), influence.factors("ekfac", n_draws=4, seed=2)
    with pytest.warns(UserWarning, match="residual"):
        once, again = (influence.inverse_product(scale * g, fitted).q for scale in (1.0, 2.0))
    assert torch.allclose(2 * once, again)
    with pytest.warns(UserWarning, match="residual"):
        assert torch.equal(influence.inverse_product(g, "ekfac", n_draws=4, seed=2).q, once)


def test_factors_as_a_preconditioner_save_steps_and_change_no_solution() -> None:
    scales = torch.logspace(0, 6, 40, dtype=torch.float64)
    g = torch.ones(40, dtype=torch.float64)
    plain = solve(lambda x: scales * x, g, "cg", tol=1e-8, max_steps=1000)
    helped = solve(lambda x: scales * x, g, "cg", tol=1e-8, max_steps=1000, precondition=lambda x: x / scales.sqrt())
    assert torch.allclose(plain.q, 1 / scales)
    assert torch.allclose(helped.q, 1 / scales)
    assert helped.steps < plain.steps / 2
    with pytest.raises(ValueError, match="Only cg and ggn_cg"):
        solve(lambda x: scales * x, g, "exact", precondition=lambda x: x)


def test_an_influence_hands_its_factors_to_cg(influence: Influence) -> None:
    g, factors = direction(influence), influence.factors("ekfac")
    plain, helped = (influence.inverse_product(g, precondition=p, damping=0.1, tol=1e-9) for p in (None, factors))
    assert torch.allclose(plain.q, helped.q, atol=1e-6)
    assert helped.steps != plain.steps


def test_what_cannot_be_solved_is_refused_or_reported() -> None:
    g = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="not positive definite"):
        solve(lambda x: 0 * x, g, "exact")
    with pytest.raises(ValueError, match="Curvature"):
        solve(lambda x: -x, g, "cg")
    with pytest.raises(ValueError, match="diverges"):
        solve(lambda x: torch.tensor([1.0, 0.5, -0.5]).double() * x, g, "lissa")
    with pytest.raises(ValueError, match="no curvature at all"):
        solve(lambda x: 0 * x, g, "lissa")
    with pytest.raises(FloatingPointError, match="dense Hessian"):
        solve(lambda x: x / 0, g, "exact")
    with pytest.raises(ValueError, match="solver must be one of"):
        solve(lambda x: x, g, "newton")
    scales = torch.tensor([1.0, 1e3, 1e6], dtype=torch.float64)
    with pytest.warns(UserWarning, match="residual"):
        found = solve(lambda x: scales * x, g, "cg", max_steps=1)
    assert found.residual > 1e-2
    assert not found.converged
    assert solve(lambda x: x, 0 * g).converged


@pytest.mark.parametrize("solver", ["ekfac", "projected"])
def test_factors_of_a_flat_loss_are_refused_without_damping(solver: str) -> None:
    influence = Influence(nn.Linear(3, 2), ["*"], [0, 1], [0, 1], [], temperature=1.0)
    factors = influence.factors(solver)
    with pytest.raises(ValueError, match="raise delta"):
        factors.inverse(influence.theta, 0.0)
    with pytest.raises(ValueError, match="factors are one of"):
        influence.factors("cg")
    wide = Influence(nn.Linear(9000, 1), ["*"], [0, 1], [0, 1], [], temperature=1.0)
    with pytest.raises(ValueError, match="up to 8192 on a side"):
        wide.factors(solver)


def test_many_right_hand_sides_are_solved_together(influence: Influence, gauss_newton: torch.Tensor) -> None:
    P = len(influence.theta)
    G = torch.randn(3, P, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    G[1] *= 0  # nothing to solve
    found = solve_many(influence.gauss_newton_product, G, tol=1e-8)
    expected = torch.linalg.solve(gauss_newton + DELTA * torch.eye(P, dtype=torch.float64), G.T).T
    assert torch.allclose(found.Q, expected, atol=1e-7)
    assert found.residual < 1e-7
    assert found.n_open == 0
    assert 0 < found.steps < 100


def test_solves_that_stop_early_are_counted_with_the_worst_residual() -> None:
    scales = torch.tensor([1.0, 1e3, 1e6], dtype=torch.float64)
    G = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 2.0, 0.0]], dtype=torch.float64)
    with pytest.warns(UserWarning, match="2 of 3 solves stopped after 1 products"):
        found = solve_many(lambda x: scales * x, G, max_steps=1)
    assert found.n_open == 2  # the first row is an eigenvector
    worst = max(float((scales * q - g).norm() / g.norm()) for q, g in zip(found.Q, G, strict=True))
    assert found.residual == pytest.approx(worst)
    with pytest.raises(FloatingPointError, match="right-hand sides"):
        solve_many(lambda x: x, G / 0)


def test_the_curvature_of_some_batches_stands_for_that_of_all(influence: Influence) -> None:
    batches, x = influence.segments, direction(influence)
    how = {"temperature": 0.3, "delta": DELTA}
    torch.manual_seed(0)
    some = Influence(Heads().double(), ["*"], influence.a, influence.b, batches, curvature=batches[:1], **how)
    alone = Influence(Heads().double(), ["*"], influence.a, influence.b, batches[:1], **how)
    alone.theta = some.theta
    for product in ("hessian_product", "gauss_newton_product"):
        expected = 3 * (getattr(alone, product)(x) - DELTA * x) + DELTA * x  # one batch of three of equal size
        assert torch.allclose(getattr(some, product)(x), expected)
    draws = [torch.stack(list(each.sampled_gradients(4, seed=0))) for each in (some, alone)]
    assert torch.allclose(draws[0], 3**0.5 * draws[1])
    assert some.score_all(x).all()  # scores are still taken over all batches
