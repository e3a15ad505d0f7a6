"""DANN's schedule, its adversary, and what a resume needs; the gradients are in tests/training/test_penalties.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from isodistill.alignment import DANN


def ready(total_steps: int = 10, **options: Any) -> DANN:
    dann = DANN(**options)
    dann.setup(layers=[], total_steps=total_steps, adaptive=True, seed=0)
    return dann


def drawn(step: int = 0) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(step)
    domains = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    s = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    s[:, 0] += 3 * domains
    return s, domains, torch.ones(8), 2


def test_the_strength_rises_from_nothing_to_lam() -> None:
    dann, strengths = ready(total_steps=2, lam=3.0), []
    for _ in range(3):
        dann.pull(*drawn())
        strengths.append(dann._metrics["lam"] / 3)
    assert strengths == pytest.approx([0.0, 0.9866, 0.9999], abs=1e-4)


def test_the_pull_climbs_the_loss_that_the_classifier_descends() -> None:
    dann = ready()
    dann._step = 5
    s, domains, tokens, K = drawn()
    dann._make(4, K)
    phi = s.float().requires_grad_()
    losses = F.cross_entropy(dann._classifier(phi), domains, reduction="none")
    CE = (losses[:3].mean() + losses[3:].mean()) / 2
    (slope,) = torch.autograd.grad(CE, phi)
    c = dann.pull(s, domains, tokens, K)
    torch.testing.assert_close(c.float(), -dann._metrics["lam"] * slope)
    after = F.cross_entropy(dann._classifier(phi), domains, reduction="none")
    assert float((after[:3].mean() + after[3:].mean()).detach() / 2) < float(CE.detach())


def test_without_strength_nothing_is_pulled_or_learned() -> None:
    dann = ready(lam=0.0)
    dann._make(4, 2)
    before = [p.detach().clone() for p in dann._classifier.parameters()]
    for group in dann._optimizer.param_groups:
        group["weight_decay"] = 0.0
    assert not dann.pull(*drawn()).any()
    assert all(torch.equal(p, b) for p, b in zip(dann._classifier.parameters(), before, strict=True))


def test_state_makes_a_resume_exact(tmp_path: Path) -> None:
    whole, first, second = ready(), ready(), ready()
    pulls = [whole.pull(*drawn(step)) for step in range(6)]
    for step in range(3):
        first.pull(*drawn(step))
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    second.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert all(torch.equal(second.pull(*drawn(step)), pulls[step]) for step in range(3, 6))
    fresh = ready()
    fresh.load_state_dict(ready().state_dict())
    assert torch.equal(fresh.pull(*drawn(0)), pulls[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1.0}, r"alignment\.lam is -1\.0"),
        ({"width": 0}, r"alignment\.width is 0"),
        ({"learning_rate": 0.0}, r"alignment\.learning_rate is 0\.0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DANN(**options)
