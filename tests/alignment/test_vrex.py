"""V-REx from K gradients and K losses is the gradient of its loss by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from isodistill.alignment import VREx

from .bench import Bench, drawn

LOSSES = [0.4, 1.9, 0.8]


def oracle(g: torch.Tensor, losses: list[float], lam: float) -> torch.Tensor:
    """Gradient of Lbar + lam (1/K) sum_k (L_k - Lbar)^2 for losses that are linear in the parameters."""
    x = torch.zeros(17, dtype=torch.float64, requires_grad=True)
    L = torch.tensor(losses, dtype=torch.float64) + g.double() @ x
    (L.mean() + lam * sum((L_k - L.mean()) ** 2 for L_k in L) / len(L)).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("lam", [0.0, 0.3, 10.0])
def test_the_direction_is_the_gradient_of_the_loss(lam: float) -> None:
    found = Bench("vrex", lam=lam, anneal=0.0).direction(drawn(0), losses=LOSSES)
    torch.testing.assert_close(found.double(), oracle(drawn(0), LOSSES, lam), rtol=1e-4, atol=1e-4)


def test_the_penalty_is_over_the_domains_of_the_step() -> None:
    found = Bench("vrex", anneal=0.0).direction(drawn(0), [True, False, True], LOSSES)
    expected = oracle(drawn(0)[[0, 2]], [LOSSES[0], LOSSES[2]], 10.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("lam", "before"), [(10.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_strength_before_and_after_the_anneal_step(lam: float, before: float) -> None:
    bench = Bench("vrex", lam=lam, anneal=0.3)  # of 10 steps
    for step in range(5):
        expected = oracle(drawn(step), LOSSES, before if step < 3 else lam)
        found = bench.direction(drawn(step), losses=LOSSES)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_equal_losses_are_erm_and_weights_may_be_negative() -> None:
    torch.testing.assert_close(
        Bench("vrex").direction(drawn(0), losses=[2.0] * 3), drawn(0).mean(0), rtol=1e-5, atol=1e-5
    )
    metrics = Bench("vrex", anneal=0.0).step(drawn(0), losses=[0.0, 1.0, 2.0])[1]
    assert metrics == pytest.approx({"weight_min": (1 - 20) / 3, "weight_max": (1 + 20) / 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lam": -1.0}, r"alignment\.lam is -1\.0"), ({"anneal": 2.0}, r"alignment\.anneal is 2\.0")],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VREx(**options)
