"""Interrupted and resumed is uninterrupted, bit for bit; nothing pickled; Ctrl-C saves."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from isodistill import DistillTrainer
from isodistill.errors import UserError

MakeTrainer = Callable[..., DistillTrainer]

METHODS: list[dict[str, Any]] = [
    {"method": "erm"},
    {"method": "erm_pooled"},
    {"method": "iga"},
    {"method": "iga", "alignment": {"name": "iga", "control": "random"}},
    {"method": "iga", "alignment": {"name": "iga", "space": "weight"}},
    {"method": "iga", "optim": "sgd", "alignment": {"name": "iga", "apply_to": "gradient"}},
    {"method": "iga", "alignment": {"name": "iga", "space": "tangent"}},
    {"method": "iga", "alignment": {"name": "iga", "space": "tangent", "refresh": 3, "debias": True}},
    {"method": "iga", "alignment": {"name": "iga", "space": "tangent_separable", "var_ema": 0.5, "control": "random"}},
    {"method": "iga", "alignment": {"name": "iga", "preset": "literal", "var_ema": 0.5, "grad_ema": 0.5}},
    {
        "method": "iga",
        "alignment": {"name": "iga", "apply_to": "gradient", "second_moment": "unmasked", "debias": True},
    },
]


class StopAt(TrainerCallback):
    """Stop training after a step, as a time limit would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step == self.step
        return control


def weights(trainer: DistillTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: "-".join(str(v) for v in s.values()))
@pytest.mark.parametrize("stop", [2, 5])
def test_resume_is_bit_exact(make_trainer: MakeTrainer, settings: dict[str, Any], stop: int, tmp_path: Path) -> None:
    # Four batches an epoch, so that step 5 lies in the second epoch.
    common = {**settings, "max_steps": 7, "save_steps": stop}
    whole = make_trainer(**common, output_dir=str(tmp_path / "whole"))
    whole.train()
    first = make_trainer(**common)
    first.add_callback(StopAt(stop))
    first.train()
    second = make_trainer(**common)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 7
    expected, found = weights(whole), weights(second)
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    def losses(folder: str) -> list[tuple[int, float]]:
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    assert losses("run") == losses("whole")


def test_checkpoints_hold_no_pickle_and_are_rotated(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=5, save_steps=1, save_total_limit=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-4", "checkpoint-5"]
    suffixes = {p.suffix for p in [*folder.rglob("*"), *(tmp_path / "student").rglob("*")] if p.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md", ".jinja"}


def test_unfinished_checkpoint_is_not_resumed_from(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=4, save_steps=2)
    trainer.train()
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "checkpoint-2", checkpoints / "unfinished-3")
    again = make_trainer(max_steps=4, save_steps=2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


def test_damaged_checkpoint_is_named(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(max_steps=2, save_steps=2).train()
    state = tmp_path / "run" / "checkpoints" / "checkpoint-2" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UserError, match="checkpoint-2"):
        make_trainer(max_steps=4, save_steps=2).train(resume_from_checkpoint=True)


def test_no_checkpoint_to_resume_from_is_said(make_trainer: MakeTrainer) -> None:
    with pytest.raises(UserError, match="no finished checkpoint"):
        make_trainer().train(resume_from_checkpoint=True)


def test_ctrl_c_saves_and_says_how_to_go_on(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    class PressCtrlC(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    whole = make_trainer(max_steps=6, output_dir=str(tmp_path / "whole"))
    whole.train()
    stopped = make_trainer(max_steps=6)
    stopped.add_callback(PressCtrlC())
    with pytest.raises(KeyboardInterrupt, match="step 2 of 6"):
        stopped.train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = make_trainer(max_steps=6)
    resumed.train(resume_from_checkpoint=True)
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
