"""Two processes under a guard: the same decisions, the same weights, and what one process alone would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from .ranks import launch
from .test_two_ranks import make_inputs

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("ranks")]


FREEZE = {"name": "angular", "mode": "freeze", "threshold": 0.01, "every": 1}


@pytest.mark.parametrize(
    "guard",
    [
        FREEZE,
        {"name": "angular", "mode": "bands", "nodes": "units", "lower": 0.005, "threshold": 0.01, "every": 1},
        {"name": "l2", "lam": 10.0},
        {"name": "ewc", "lam": 10.0},
        {"name": "si", "c": 100.0},
        {"name": "lwf"},
        {"name": "replay", "share": 0.5},
        {"name": "o_lora"},
    ],
    ids=lambda guard: "-".join(str(guard[key]) for key in ("name", "mode") if key in guard),
)
def test_two_ranks_guard_as_one(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, guard: dict[str, Any]) -> None:
    make_inputs(tmp_path, tokenizer)
    common: dict[str, Any] = {"max_steps": 2, "learning_rate": 1e-2, "method": "erm", "guard": guard}
    launch(tmp_path, "first", 1, sets_per_batch=2, ends=str(tmp_path / "stage"), **common)
    second = common | {"max_steps": 3, "earlier": str(tmp_path / "stage"), "seed": 4}
    (alone,) = launch(tmp_path, "alone", 1, sets_per_batch=2, ends=str(tmp_path / "one"), **second)
    left, right = launch(tmp_path, "both", 2, sets_per_batch=1, ends=str(tmp_path / "two"), **second)
    for name, value in alone.items():
        assert torch.equal(left[name], right[name]), f"ranks disagree on {name}"
        torch.testing.assert_close(left[name], value, rtol=1e-3, atol=5e-5)
    states = [load_file(tmp_path / name / "guard" / "state.safetensors") for name in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        scale = float(value.double().abs().max()) or 1.0
        torch.testing.assert_close(states[1][name] / scale, value / scale, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["freeze", "bands"])
def test_the_first_process_decides_for_all(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, mode: str) -> None:
    make_inputs(tmp_path, tokenizer)
    guard = FREEZE if mode == "freeze" else FREEZE | {"mode": "bands", "lower": 0.1, "threshold": 1.0}
    common: dict[str, Any] = {"learning_rate": 1e-2, "method": "erm", "guard": guard}
    launch(tmp_path, "first", 1, sets_per_batch=2, max_steps=2, ends=str(tmp_path / "stage"), **common)
    second = common | {"sets_per_batch": 1, "max_steps": 3, "earlier": str(tmp_path / "stage")}
    left, right = launch(tmp_path, "both", 2, astray=1, ends=str(tmp_path / "end"), **second)
    assert all(torch.equal(left[name], right[name]) for name in left)
    decided = json.loads((tmp_path / "end" / "guard" / "drift.json").read_text())["decided"]["nodes"]
    assert any(group["frozen" if mode == "freeze" else "restored"] > 0 for group in decided.values())
