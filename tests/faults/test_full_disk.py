"""No space on the disk: a clear error, what was there before survives, and the run goes on once there is room."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.faults

Call = Callable[..., Any]


def test_no_room_for_a_checkpoint(isodistill: Call, write_recipe: Call, write_data: Call, folder: Path) -> None:
    """Files of a limited size stand in for a full disk: the first checkpoint does not fit, all before it does."""
    write_data()
    write_recipe(lora={"r": 16, "target_modules": "all-linear"})
    assert isodistill("run", "recipe.yaml", "--out", "whole").code == 0
    command = [sys.executable, "-m", "isodistill", "run", "recipe.yaml", "--out", "run"]
    limit = 50_000
    assert (folder / "whole/student/adapter_model.safetensors").stat().st_size > limit
    full = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert full.returncode == 2
    message = full.stderr[full.stderr.index("error: ") :]
    assert "The step train of run was stopped by a file" in message
    assert "File too large" in message
    assert "Traceback" not in full.stderr
    assert not list((folder / "run").glob("checkpoints/checkpoint-*"))
    assert isodistill("run", "recipe.yaml", "--out", "run").code == 0
    adapter = "student/adapter_model.safetensors"
    assert (folder / "run" / adapter).read_bytes() == (folder / "whole" / adapter).read_bytes()
    assert not list((folder / "run").glob("checkpoints/unfinished-*"))


def test_no_room_for_answers_and_results(
    isodistill: Call, write_recipe: Call, write_data: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data()
    write_recipe()
    assert isodistill("run", "recipe.yaml", "--out", "run").code == 0
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    fsync, left = os.fsync, 0

    def full_soon(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    ended = None
    for room in range(40):  # room for so many files or lines
        left = room
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full_soon)
            ended = isodistill("run", "recipe.yaml", "--out", "run", "--set", "evaluate.max_new_tokens=5")
        if ended.code == 0:
            break
        assert ended.code == 2
        assert "No space left on device" in ended.err
        assert "Traceback" not in ended.err
        lines = (folder / "run/predictions.jsonl").read_text().splitlines()
        keys = [(record["stage"], record["item_id"]) for record in map(json.loads, lines)]
        assert len(keys) == len(set(keys))
    assert ended is not None
    assert ended.code == 0
    kept = ("student/adapter_model.safetensors", "metrics.jsonl", "problems/train.jsonl", "train.json")
    assert all((folder / "run" / name).read_bytes() == before[folder / "run" / name] for name in kept)
    assert len((folder / "run/predictions.jsonl").read_text().splitlines()) == len(
        before[folder / "run/predictions.jsonl"].splitlines()
    )
