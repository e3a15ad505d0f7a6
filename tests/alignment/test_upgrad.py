"""UPGrad's direction conflicts with no domain."""

from __future__ import annotations

import torch

from .bench import Bench, drawn


def test_no_loss_rises_to_first_order() -> None:
    for seed in range(5):
        g = drawn(seed)
        g = g - 1.3 * g.mean(0)
        assert float((g @ g.T).min()) < 0
        d = Bench("upgrad").direction(g)
        assert float(d.norm()) > 0
        assert float((g @ d).min()) >= -1e-5 * float(g.norm() * d.norm())


def test_the_weights_are_logged() -> None:
    metrics = Bench("upgrad").step(torch.eye(3, 17))[1]
    assert metrics == {"weight_min": 1 / 3, "weight_max": 1 / 3}
