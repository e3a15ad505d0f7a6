"""MLDG against a hand-written loop over pairs on quadratic losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isodistill.alignment import MLDG

from .bench import LEARNING_RATE
from .quadratic import QuadraticBench


def by_hand(b: QuadraticBench, steps: int, beta: float, n_test: int, inner_lr: float) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    theta, D, c, K = b.parameters(), b.D.double(), b.c.double(), len(b.c)
    for _ in range(steps):
        order = torch.randperm(K, generator=generator).tolist()
        test, train = order[:n_test], order[n_test:]
        direction = torch.zeros_like(theta)
        for pair, i in enumerate(train):
            j = test[pair % len(test)]
            g = D[i] * (theta - c[i])
            there = theta - inner_lr * g.sign()
            direction += (g + beta * D[j] * (there - c[j])) / K
        theta = theta - LEARNING_RATE * direction
    return theta


@pytest.mark.parametrize(("domains", "n_test"), [(3, 1), (3, 2), (4, 2), (5, 2), (2, 1)])
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_the_steps_are_those_of_the_loop(domains: int, n_test: int, beta: float) -> None:
    b = QuadraticBench("mldg", domains=domains, beta=beta, n_test=n_test, inner_lr=0.05)
    expected = by_hand(b, 3, beta, n_test, 0.05)
    torch.testing.assert_close(b.run(3), expected, rtol=1e-4, atol=1e-5)
    assert len(b.asked) == 3 * (domains - n_test)


def test_parameters_are_put_back_bit_for_bit() -> None:
    b = QuadraticBench("mldg", inner_lr=0.1)
    before = b.parameters()
    b.direction(torch.stack([b.gradient(k) for k in range(3)]))
    assert torch.equal(b.parameters(), before)


def test_one_domain_is_erm_and_asks_for_nothing() -> None:
    b = QuadraticBench("mldg")
    g = torch.stack([b.gradient(k) for k in range(3)])
    assert torch.equal(b.direction(g, [False, True, False]), g[1])
    assert b.asked == []


def test_a_third_test_domain_leaves_one_to_train_on() -> None:
    b = QuadraticBench("mldg", n_test=9)
    b.run(1)
    assert len(b.asked) == 1


def test_the_inner_step_does_not_depend_on_the_scale() -> None:
    reference = None
    for exponent in range(-10, 4):
        b = QuadraticBench("mldg", scale=10.0**exponent)
        found = b.direction(torch.stack([b.gradient(k) for k in range(3)])).double() / 10.0**exponent
        reference = found if reference is None else reference
        torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)


def test_the_splits_survive_a_resume(tmp_path: Path) -> None:
    whole, first, second = QuadraticBench("mldg"), QuadraticBench("mldg"), QuadraticBench("mldg")
    expected = whole.run(6)
    first.run(3)
    save_file(first.alignment.state_dict(), tmp_path / "state.safetensors")
    second.module.load_state_dict(first.module.state_dict())
    second.alignment.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(second.run(3), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, r"alignment\.beta is -1\.0"),
        ({"n_test": 0}, r"alignment\.n_test is 0"),
        ({"inner_lr": 0.0}, r"alignment\.inner_lr is 0\.0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLDG(**options)
