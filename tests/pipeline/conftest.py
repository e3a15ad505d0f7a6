"""Small recipes, a finished run to start from, and a spy on the steps that are done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill.pipeline import run_recipe
from isodistill.pipeline.stamps import Stamps
from isodistill.recipe import Recipe, parse_recipe

COMMAND = "isodistill run recipe.yaml"
SETTINGS: dict[str, Any] = {
    "student": "tiny",
    "isomers": {"n_sets": 20, "families": ["rates"], "domains": ["law", "medicine"]},
    "split": {"held_out_domains": ["sports"], "valid": 0.0, "test": 0.3},
    "lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    "train": {"steps": 3, "sets_per_batch": 2, "save_steps": 2, "logging_steps": 1, "learning_rate": 0.01,
              "use_cpu": True, "bf16": False},
    "evaluate": {"max_new_tokens": 6, "max_sets": 4},
}  # fmt: skip


def recipe_of(overrides: list[str] | None = None, **keys: Any) -> Recipe:
    """The small recipe with some of its groups replaced."""
    return parse_recipe(SETTINGS | keys, overrides or [])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of IGA with its baseline; read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_recipe(recipe_of(), folder, COMMAND)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def steps_done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that were really done, with ``baseline/`` before those of the baseline."""
    done: list[str] = []
    step = Stamps.step

    def spied(self: Stamps, name: str, inputs: str, **actions: Callable[[], None]) -> bool:
        was_done = step(self, name, inputs, **actions)
        if was_done:
            done.append(f"baseline/{name}" if self.path.parent.name == "baseline" else name)
        return was_done

    monkeypatch.setattr(Stamps, "step", spied)
    return done


@pytest.fixture
def student_folder(tmp_path: Path, tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A student as users keep theirs: a folder of ``save_pretrained``, its tokenizer with a chat template."""
    folder = tmp_path / "student"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write dicts as JSON lines."""

    def write(rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def sums(n_sets: int, domains: tuple[str, ...] = ("law", "medicine")) -> list[dict[str, Any]]:
    """Isomer sets of additions as they stand in a user's file, without ids."""
    return [
        {
            "prompt": f"In {domain}, add {s + 2} and {s + 3}.", "domain": domain, "set_id": f"s{s}",
            "completion": f"{s + 2} + {s + 3} = {2 * s + 5}. The answer is {2 * s + 5}.",
            "answer": str(2 * s + 5), "answer_type": "number",
        }
        for s in range(n_sets)
        for domain in domains
    ]  # fmt: skip
