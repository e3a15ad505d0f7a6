"""The gradient of the penalty against double backward, on quadratic losses and on others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isodistill.alignment import IGA2020

from .bench import Bench, drawn
from .quadratic import QuadraticBench


def oracle(losses: list[Tensor], theta: Tensor, lam: float) -> Tensor:
    g = torch.stack([torch.autograd.grad(L, theta, create_graph=True)[0] for L in losses])
    loss = torch.stack(losses).mean() + lam * (g - g.mean(0)).square().sum()
    return torch.autograd.grad(loss, theta)[0]


@pytest.mark.parametrize("present", [[True, True, True], [True, False, True], [False, True, False]])
@pytest.mark.parametrize("lam", [0.0, 0.1, 10.0])
def test_the_direction_is_that_of_double_backward(lam: float, present: list[bool]) -> None:
    b = QuadraticBench("iga2020", lam=lam)
    theta = b.parameters().requires_grad_()
    losses = [0.5 * (b.D[k].double() * (theta - b.c[k].double()) ** 2).sum() for k in range(3) if present[k]]
    expected = oracle(losses, theta, lam)
    found = b.direction(torch.stack([b.gradient(k) for k in range(3)]), present).double()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_central_differences_serve_losses_that_are_not_quadratic() -> None:
    b = QuadraticBench("iga2020", lam=0.5)

    def loss(k: int, theta: Tensor) -> Tensor:
        return (b.D[k] * torch.tanh(theta - b.c[k]) ** 2).sum() + (theta.sin() * b.c[k]).sum()

    def gradient(k: int) -> Tensor:
        theta = b.parameters().float().requires_grad_()
        return torch.autograd.grad(loss(k, theta), theta)[0]

    b.gradients.recompute = gradient
    theta = b.parameters().requires_grad_()
    expected = oracle([loss(k, theta) for k in range(3)], theta, 0.5)
    found = b.direction(torch.stack([gradient(k) for k in range(3)])).double()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-3 * float(expected.abs().max()))


def test_parameters_are_put_back_bit_for_bit_and_the_penalty_is_logged() -> None:
    b = QuadraticBench("iga2020")
    before = b.parameters()
    g = torch.stack([b.gradient(k) for k in range(3)])
    b.direction(g)
    assert torch.equal(b.parameters(), before)
    _, metrics = b.step(g)
    assert metrics["penalty"] == pytest.approx(float((g.double() - g.double().mean(0)).square().sum()), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1e3])
def test_domains_that_agree_are_erm_at_every_scale(scale: float) -> None:
    g = drawn(0, scale)[:1].expand(3, -1)
    bench = Bench("iga2020")
    bench.gradients.recompute = lambda k: g[k]
    torch.testing.assert_close(bench.direction(g), g[0])


def test_a_negative_strength_is_named() -> None:
    with pytest.raises(ValueError, match=r"alignment\.lam is -1"):
        IGA2020(lam=-1.0)
