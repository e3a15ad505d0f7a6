"""What each phase and each strength of ang-DEN does: without it the network would end elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from isodistill.continual import AngularDEN, SplitRule

from .test_den import learner, task

NO_SPLIT = SplitRule(threshold=math.pi)


def second(rule: SplitRule, **options: Any) -> tuple[AngularDEN, list[Tensor]]:
    """After the second of two tasks, and the hidden weights before it."""
    den = learner(rule, tasks=1, **{"select_threshold": -1.0, "prune": 0.0} | options)
    before = [W.detach().clone() for W in den.model.W]
    den.learn(*task(1), n_classes=3)
    return den, before


def test_l1_pulls_all_weights() -> None:
    weak, strong = (learner(NO_SPLIT, tasks=1, l1=l1) for l1 in (0.0, 0.1))
    for a, b in zip([*weak.model.W, *weak.model.heads], [*strong.model.W, *strong.model.heads], strict=True):
        assert float(b.abs().sum()) < 0.9 * float(a.abs().sum())


def test_the_drift_penalty_holds_old_weights() -> None:
    free, held = (second(NO_SPLIT, expand=0, drift=drift) for drift in (0.0, 10.0))
    for layer in range(2):
        moved, kept = (float((den.model.W[layer] - before[layer]).norm()) for den, before in (free, held))
        assert kept < 0.5 * moved


def test_the_group_lasso_shrinks_added_units() -> None:
    plain, pulled = (second(NO_SPLIT, expand=3, group_lasso=strength)[0] for strength in (0.0, 10.0))
    for layer, size in enumerate((8, 7)):
        assert float(pulled.model.W[layer][size:].norm()) < 0.9 * float(plain.model.W[layer][size:].norm())


@pytest.mark.parametrize("short_steps", [0, 5])
def test_added_units_disturb_no_old_one(short_steps: int) -> None:
    den, _ = second(NO_SPLIT, expand=3, short_steps=short_steps)
    assert den.growth[-1]["expanded"] == 6
    assert not den.model.W[1][:7, 8:].any()


def test_added_units_are_trained() -> None:
    drawn, trained = (second(NO_SPLIT, expand=3, short_steps=steps)[0] for steps in (0, 5))
    assert torch.equal(drawn.model.W[0][:8], trained.model.W[0][:8])
    for layer, size in enumerate((8, 7)):
        assert not torch.equal(drawn.model.W[layer][size:], trained.model.W[layer][size:])


def test_copies_are_trained_and_nothing_else_is() -> None:
    rule = SplitRule(mode="quantile", quantile=0.4)
    copied, trained = (second(rule, expand=0, short_steps=steps)[0] for steps in (0, 5))
    for layer, size in enumerate((8, 7)):
        assert torch.equal(copied.model.W[layer][:size], trained.model.W[layer][:size])
        assert not torch.equal(copied.model.W[layer][size:], trained.model.W[layer][size:])
