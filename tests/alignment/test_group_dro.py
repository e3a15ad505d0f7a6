"""GroupDRO's weights against the plain update q <- q exp(eta L) / sum, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from isodistill.alignment import GroupDRO

from .bench import Bench, drawn

LOSSES = [[0.4, 1.9, 0.8], [0.9, 0.2, 0.1], [1.5, 1.0, 3.0]]


def test_q_follows_the_plain_update() -> None:
    bench, q = Bench("group_dro", eta=0.7), [1 / 3] * 3
    for step, losses in enumerate(LOSSES):
        q = [q_k * math.exp(0.7 * L) for q_k, L in zip(q, losses, strict=True)]
        q = [q_k / sum(q) for q_k in q]
        expected = sum(q_k * g_k for q_k, g_k in zip(q, drawn(step).double(), strict=True))
        found = bench.direction(drawn(step), losses=losses)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_an_absent_domain_keeps_its_weight_against_the_others() -> None:
    bench = Bench("group_dro", eta=1.0)
    bench.step(drawn(0), losses=[0.0, math.log(2), 0.0])  # q = 1/4, 1/2, 1/4
    _, metrics = bench.step(drawn(1), [True, True, False], losses=[0.0, 0.0, 9.0])
    assert metrics == pytest.approx({"weight_min": 1 / 3, "weight_max": 2 / 3})
    _, metrics = bench.step(drawn(2), losses=[0.0] * 3)
    assert metrics == pytest.approx({"weight_min": 1 / 4, "weight_max": 1 / 2})


def test_a_thousand_high_losses_do_not_overflow() -> None:
    bench = Bench("group_dro", eta=1.0)
    for step in range(1000):
        found = bench.direction(drawn(step), losses=[50.0, 49.99, 1.0])
    assert torch.isfinite(found).all()
    assert torch.isfinite(bench.alignment.state_dict()["log_q"]).all()


def test_state_loads_into_a_fresh_object() -> None:
    first, second = Bench("group_dro", eta=2.0), Bench("group_dro", eta=2.0)
    first.step(drawn(0), losses=LOSSES[0])
    assert first.alignment.state_dict()["log_q"].shape == (3,)
    second.alignment.load_state_dict(first.alignment.state_dict())
    assert torch.equal(first.direction(drawn(1), losses=LOSSES[1]), second.direction(drawn(1), losses=LOSSES[1]))


def test_a_negative_rate_is_named() -> None:
    with pytest.raises(ValueError, match=r"alignment\.eta is -0\.1"):
        GroupDRO(eta=-0.1)
