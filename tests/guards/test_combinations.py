"""Guards beside objectives that ask a teacher and beside terms: both act, a neutral guard is none, the rest refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from isodistill.errors import UserError

from .conftest import adapter, finish, make_rows
from .test_stages import MakeStage, same

SLOTS: dict[str, dict[str, Any]] = {
    "fkl": {"objective": {"name": "fkl"}, "teacher_model": "self"},
    "vcrd": {"objective": {"name": "vcrd"}, "teacher_model": "self"},
    "isomer_consistency": {"term": {"name": "isomer_consistency"}},
    "flexkd": {"term": {"name": "flexkd"}, "teacher_model": "self"},
    "prada": {"term": {"name": "prada", "adapt": "lora"}, "target_dataset": make_rows(5)},
}
ACTIVE: list[dict[str, Any]] = [{"name": "l2", "lam": 30.0}, {"name": "lwf"}, {"name": "replay"}]


def test_a_guard_and_a_term_or_a_teacher_both_act(make_stage: MakeStage) -> None:
    def second(guard: dict[str, Any], first: Path, **slots: Any) -> dict[str, Tensor]:
        trainer = make_stage("second", guard, first, task=1, method="erm", max_steps=2, warmup_steps=0, **slots)
        trainer.train()
        return adapter(trainer)

    firsts = {guard["name"]: finish(make_stage(guard["name"], guard)) for guard in [{"name": "none"}, *ACTIVE]}
    bare = {guard["name"]: second(guard, firsts[guard["name"]]) for guard in ACTIVE}
    for name, slots in SLOTS.items():
        plain = second({"name": "none"}, firsts["none"], **slots)
        assert same(second({"name": "lwf", "alpha": 0.0}, firsts["lwf"], **slots), plain), name
        for guard in ACTIVE:
            found = second(guard, firsts[guard["name"]], **slots)
            assert all(bool(torch.isfinite(value).all()) for value in found.values()), (name, guard)
            assert not same(found, plain), (name, guard)
            assert not same(found, bare[guard["name"]]), (name, guard)


def test_a_prompt_is_not_handed_on(make_stage: MakeStage) -> None:
    with pytest.raises(UserError, match="a guard hands an adapter to the next stage, and no prompt of prada"):
        make_stage("first", {"name": "l2"}, method="prada", target_dataset=make_rows(5))
