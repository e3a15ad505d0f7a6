"""What each phase and each strength of ang-DEN does: without it the network would end elsewhere."""

from __future__ import annotations

import math
from typing import Any

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


def test_added_units_disturb_nothing_until_they_are_trained() -> None:
    den, _ = second(NO_SPLIT, expand=3, short_steps=0)
    assert den.growth[-1]["expanded"] == 6
    assert not den.model.W[1][:7, 8:].any()


def test_added_units_and_their_weights_into_selected_units_are_trained() -> None:
    drawn, trained = (second(NO_SPLIT, expand=3, short_steps=steps)[0] for steps in (0, 5))
    for layer, size in enumerate((8, 7)):
        assert not torch.equal(drawn.model.W[layer][size:], trained.model.W[layer][size:])
    assert trained.model.W[1][:7, 8:].all()


def test_training_added_units_moves_nothing_that_old_heads_read() -> None:
    drawn, trained = (second(NO_SPLIT, expand=3, short_steps=steps)[0] for steps in (0, 5))
    x = task(9)[0]
    assert torch.equal(drawn.model(x, 0), trained.model(x, 0))
    assert not torch.equal(drawn.model(x, 1), trained.model(x, 1))


def test_added_units_do_not_reach_units_that_were_not_selected() -> None:
    """No path through the second layer is strong enough to select a unit there, so that none of them moves."""
    den, before = second(NO_SPLIT, expand=3, short_steps=5, select_threshold=1e3)
    assert den.growth[-1]["selected"] == 0
    assert torch.equal(den.model.W[1][:7, :8], before[1])
    assert not den.model.W[1][:7, 8:].any()


def test_copies_are_trained_and_nothing_else_is() -> None:
    rule = SplitRule(mode="quantile", quantile=0.4)
    copied, trained = (second(rule, expand=0, short_steps=steps)[0] for steps in (0, 5))
    for layer, size in enumerate((8, 7)):
        assert torch.equal(copied.model.W[layer][:size], trained.model.W[layer][:size])
        assert not torch.equal(copied.model.W[layer][size:], trained.model.W[layer][size:])
