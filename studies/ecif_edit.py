"""The model edited to theta + dtheta where the worst pairs were, against retraining without them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from ecif_data import BATCH, Features, Heads, accuracy, drawn, fit, influence_of
from torch import Tensor

from isodistill.influence import Factors, Influence, Solution, segment

SIZES = (0.01, 0.1)


def solved(influence: Influence, g: Tensor, factors: Factors, **how: Any) -> Solution:
    """H^-1 g by conjugate gradients, preconditioned by EK-FAC, to a residual of 1e-3."""
    return influence.inverse_product(g, precondition=factors, tol=1e-3, max_steps=200, **how)


def edits(setting: str, features: Features, share: float, seed: int) -> dict[str, Any]:
    """Share of worst pairs that leave -> way -> accuracy, processor seconds, gap.

    The gap is norm(theta - theta of retraining from the fit) / norm(what that retraining moved). The factors that
    precondition an edit are there already and not in its seconds.
    """
    pairs = drawn(setting, features, share, seed)
    segments = segment(len(pairs.a), BATCH, seed)
    heads, _ = fit(pairs, segments, setting, seed)
    for _ in range(3):  # an edit is a step from a minimum
        heads, _ = fit(pairs, segments, setting, seed, start=heads)
    influence = influence_of(heads, pairs, segments, setting)
    factors = influence.factors("ekfac")
    g = influence.query_gradient(pairs.query_a, pairs.query_b)
    worst = influence.score_all(solved(influence, g, factors).q).argsort()
    found: dict[str, Any] = {}
    for size in SIZES:
        removed = torch.zeros(len(pairs.a), dtype=torch.bool)
        removed[worst[: round(size * len(pairs.a))]] = True
        remaining = [batch[~removed[batch]] for batch in segments]
        gradient = influence.removal_gradient(removed)
        ways: dict[str, Callable[[], Any]] = {
            "retrain_from_fit": lambda r=remaining: fit(pairs, r, setting, seed, start=heads)[0],
            "retrain": lambda r=remaining: fit(pairs, r, setting, seed)[0],
            "edit": lambda g=gradient: influence.edited(solved(influence, g, factors).q),
            "edit_remaining": lambda g=gradient, r=removed: influence.edited(
                solved(influence, g, factors, removed=r).q
            ),
            "edit_ekfac": lambda g=gradient: influence.edited(influence.inverse_product(g, factors).q),
        }
        measured: dict[str, dict[str, float]] = {"none": {"accuracy": accuracy(heads, pairs), "gap": 1.0}}
        target = None
        for way, make in ways.items():
            started = time.process_time()
            model: Heads = make()
            seconds = time.process_time() - started
            theta = torch.cat([model.A.detach().reshape(-1), model.B.detach().reshape(-1)])
            target = theta if target is None else target
            gap = float((theta - target).norm() / (target - influence.theta).norm())
            measured[way] = {"accuracy": accuracy(model, pairs), "gap": gap, "seconds": seconds}
        found[str(size)] = measured
    return {"edit": found}
