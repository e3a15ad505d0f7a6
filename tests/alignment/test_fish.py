"""Fish against a hand-written loop of inner Adam steps on quadratic losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isodistill.alignment import Fish

from .quadratic import QuadraticBench

LR = 0.01


def bench(**options: object) -> QuadraticBench:
    made = QuadraticBench("fish", **options)
    for group in made.optimizer.param_groups:
        group["lr"] = LR
    return made


def by_hand(b: QuadraticBench, steps: int, meta_lr: float, present: list[int]) -> Tensor:
    """The same generator and plain Adam formulas in fp64; moments go on from step to step."""
    generator = torch.Generator().manual_seed(4)
    theta, D, c = b.parameters(), b.D.double(), b.c.double()
    m, v, t = torch.zeros_like(theta), torch.zeros_like(theta), 0
    for _ in range(steps):
        theta_in = theta.clone()
        for place in torch.randperm(len(present), generator=generator).tolist():
            k = present[place]
            g = D[k] * (theta - c[k])
            t += 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            theta = theta - LR * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        theta = theta_in + meta_lr * (theta - theta_in)
    return theta


@pytest.mark.parametrize("meta_lr", [0.5, 1.0])
@pytest.mark.parametrize("present", [[0, 1, 2], [0, 2], [1]])
def test_the_steps_are_those_of_the_loop(meta_lr: float, present: list[int]) -> None:
    b = bench(meta_lr=meta_lr)
    expected = by_hand(b, 4, meta_lr, present)
    found = b.run(4, [k in present for k in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(b.asked) == 4 * (len(present) - 1)


def test_the_run_s_optimizer_moves_nothing_itself() -> None:
    b = bench(meta_lr=0.5)
    b.run(1)
    assert all(p.grad is None for p in b.module.parameters())
    assert not b.optimizer.state


def test_steps_do_not_depend_on_the_scale_of_the_loss() -> None:
    moves = []
    for exponent in range(-4, 4):  # Adam's own eps of 1e-8 ends this below
        b = bench(scale=10.0**exponent)
        start = b.parameters()
        moves.append(b.run(2) - start)
    for move in moves:
        torch.testing.assert_close(move, moves[-1], rtol=2e-2, atol=1e-4)


def test_training_lowers_the_mean_loss() -> None:
    b = bench()

    def loss() -> float:
        return float((b.D.double() * (b.parameters() - b.c.double()) ** 2).mean())

    before = loss()
    b.run(60)
    assert loss() < 0.9 * before


def test_moments_and_order_survive_a_resume(tmp_path: Path) -> None:
    whole, first, second = bench(), bench(), bench()
    expected = whole.run(6)
    first.run(3)
    save_file(first.alignment.state_dict(), tmp_path / "state.safetensors")
    second.module.load_state_dict(first.module.state_dict())
    second.alignment.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(second.run(3), expected)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    b = bench()
    b.D[:] = torch.nan
    with pytest.raises(FloatingPointError, match=r"inner step of Fish.*gradient of domain \d"):
        b.run(1)


@pytest.mark.parametrize("meta_lr", [0.0, 1.5])
def test_a_share_out_of_range_is_named(meta_lr: float) -> None:
    with pytest.raises(ValueError, match=rf"alignment\.meta_lr is {meta_lr}"):
        Fish(meta_lr=meta_lr)
