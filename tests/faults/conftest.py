"""The command line called in this process, in an empty folder, with small data beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

DOMAINS = ("law", "medicine")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the commands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def isodistill(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Call ``isodistill ARGUMENTS`` as the console script does."""
    from isodistill.cli import main

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["isodistill", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return Ended(int(stop.value.code or 0), *capsys.readouterr())

    return call


def records(n_sets: int = 10, domains: tuple[str, ...] = DOMAINS) -> list[dict[str, Any]]:
    """Isomer sets as they stand in a user's file."""
    return [
        {
            "id": f"{s}/{domain}", "prompt": f"In {domain}, add {s + 2} and {s + 3}.", "domain": domain,
            "completion": f"{s + 2} + {s + 3} = {2 * s + 5}. The answer is {2 * s + 5}.", "set_id": f"s{s}",
            "answer": str(2 * s + 5), "answer_type": "number",
        }
        for s in range(n_sets)
        for domain in domains
    ]  # fmt: skip


@pytest.fixture
def write_data(folder: Path) -> Callable[..., Path]:
    """Write records as ``data.jsonl``."""

    def write(rows: list[dict[str, Any]] | None = None) -> Path:
        path = folder / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in (records() if rows is None else rows)))
        return path

    return write


@pytest.fixture
def write_recipe(folder: Path) -> Callable[..., Path]:
    """Write ``recipe.yaml``: two steps of ERM on ``data.jsonl``; a key that is given replaces the whole group."""

    def write(**keys: Any) -> Path:
        settings: dict[str, Any] = {
            "student": "tiny",
            "problems": "data.jsonl",
            "method": "erm",
            "baseline": None,
            "split": {"valid": 0.0, "test": 0.3},
            "lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
            "train": {"steps": 2, "sets_per_batch": 2, "save_steps": 1, "logging_steps": 1, "use_cpu": True},
            "evaluate": {"max_new_tokens": 4},
        }
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(settings | keys))  # JSON is YAML
        return path

    return write
