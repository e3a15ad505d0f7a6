"""Angles of rows, hidden units and components of a LoRA student against dense weights and arccos in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from isodistill import DistillTrainer
from isodistill.guards import drift_summary, node_groups


def dense(trainer: DistillTrainer, name: str) -> Tensor:
    module: Any = trainer.model.get_submodule(name)
    A, B = (getattr(module, f"lora_{x}")["default"].weight.detach().double() for x in "AB")
    W: Tensor = module.base_layer.weight.detach().double() + module.scaling["default"] * B @ A
    return W


def arccos(old: Tensor, new: Tensor) -> Tensor:
    cosine = (old * new).sum(1) / (torch.linalg.vector_norm(old, dim=1) * torch.linalg.vector_norm(new, dim=1))
    return torch.arccos(cosine.clamp(-1, 1))


@pytest.fixture
def moved(make_stage: Callable[..., DistillTrainer]) -> tuple[DistillTrainer, dict[int, Tensor], dict[str, Tensor]]:
    """A student whose adapter was pushed away, with its factors and dense weights before that."""
    trainer = make_stage("moved", None)
    then = {id(p): p.detach().clone() for p in trainer.model.parameters() if p.requires_grad}
    names = [group.name for group in node_groups(trainer.model, "rows")]
    before = {name: dense(trainer, name) for name in names}
    generator = torch.Generator().manual_seed(5)
    for p in trainer.model.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return trainer, then, before


def test_rows_turn_as_the_dense_rows_do(moved: Any) -> None:
    trainer, then, before = moved
    groups = node_groups(trainer.model, "rows")
    assert len(groups) == 14
    for group in groups:
        drift, now = group.drift(then), dense(trainer, group.name)
        torch.testing.assert_close(drift.theta, arccos(before[group.name], now), rtol=1e-6, atol=1e-7)
        norms = torch.linalg.vector_norm(now, dim=1) / torch.linalg.vector_norm(before[group.name], dim=1)
        torch.testing.assert_close(drift.log_ratio, norms.log(), rtol=1e-6, atol=1e-9)
        change = torch.linalg.vector_norm(now - before[group.name], dim=1)
        torch.testing.assert_close(drift.moved, change, rtol=1e-6, atol=1e-9)


def test_hidden_units_are_rows_of_gate_and_up_and_a_column_of_down(moved: Any) -> None:
    trainer, then, before = moved

    def unit(weights: Callable[[str], Tensor], block: str) -> Tensor:
        parts = [weights(f"{block}.{part}") for part in ("gate_proj", "up_proj", "down_proj")]
        return torch.cat([parts[0], parts[1], parts[2].T], dim=1)

    groups = node_groups(trainer.model, "units")
    assert [group.n_nodes for group in groups] == [64, 64]
    for group in groups:
        old = unit(lambda name: before[name], group.name)
        now = unit(lambda name: dense(trainer, name), group.name)
        torch.testing.assert_close(group.drift(then).theta, arccos(old, now), rtol=1e-6, atol=1e-7)


def test_rows_that_were_zero_are_counted(moved: Any) -> None:
    trainer, then, _ = moved
    (name, *_) = (group.name for group in node_groups(trainer.model, "rows"))
    module: Any = trainer.model.get_submodule(name)
    module.base_layer.weight.data[:2] = 0
    then[id(module.lora_B["default"].weight)][:2] = 0
    told = drift_summary(node_groups(trainer.model, "rows"), then)
    assert told.pop(name)["degenerate"] == 2
    assert all(layer["degenerate"] == 0 for layer in told.values())


def test_a_summary_tells_every_layer_apart(moved: Any) -> None:
    trainer, then, _ = moved
    told = drift_summary(node_groups(trainer.model, "components"), then)
    assert len(told) == 14
    assert all(0 < layer["median"] <= layer["q90"] <= layer["max"] <= 1 for layer in told.values())
    still = {id(p): p.detach().clone() for p in trainer.model.parameters() if p.requires_grad}
    assert all(layer["max"] == 0 for layer in drift_summary(node_groups(trainer.model, "rows"), still).values())
