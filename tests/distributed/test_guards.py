"""Two processes under a guard: the same decisions, the same weights, and what one process alone would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from .ranks import launch
from .test_two_ranks import make_inputs

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("ranks")]


@pytest.mark.parametrize(
    "guard",
    [
        {"name": "angular", "mode": "freeze", "threshold": 0.01, "every": 1},
        {"name": "ewc", "lam": 10.0},
        {"name": "lwf"},
        {"name": "replay", "share": 0.5},
        {"name": "o_lora"},
    ],
    ids=lambda guard: guard["name"],
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
