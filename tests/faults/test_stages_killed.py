"""A staged run killed with SIGKILL inside a stage or between two goes on with the right one and ends as if nothing was.

Each stage starts from the student, and from the guard's state, that the one before it left.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isodistill.recipe import Recipe, load_recipe

from .test_sigkill import TIMINGS, start

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("sigkill")]

RECIPE = """
student: tiny
method: erm
guard: {name: ewc, lam: 10, n_samples: 4}
isomers: {n_sets: 8, domains: [law, medicine], difficulty: [1]}
split: {held_out_domains: [cooking], valid: 0.0, test: 0.4}
lora: {r: 2, lora_alpha: 4, target_modules: all-linear}
train: {steps: 3, sets_per_batch: 2, save_steps: 1, logging_steps: 1, learning_rate: 1e-2, use_cpu: true}
evaluate: {max_new_tokens: 3, max_sets: 2, before: false}
stages:
  - {name: rates, isomers: {families: [rates]}}
  - {name: sharing, isomers: {families: [sharing]}}
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recipe, Path]]:
    folder = tmp_path_factory.mktemp("stages")
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(folder / "recipe.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        assert start(recipe, folder / "run")[0] == 0
        yield recipe, folder / "run"


def outcome(folder: Path) -> dict[str, Any]:
    """Students, guard states, answers and the matrix of all stages; not what tells the time."""
    left: dict[str, Any] = {"files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))}
    for pattern in ("stages/*/student/*.safetensors", "stages/*/guard/state.*", "stages/*/problems/*.jsonl"):
        left |= {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob(pattern)}
    told = json.loads((folder / "stages.json").read_text())
    left |= {"matrix": told["splits"], "drift": told["drift"]}
    left["train"] = [{k: v for k, v in one.items() if k not in TIMINGS and "seconds" not in k} for one in told["train"]]
    return left


@pytest.mark.parametrize(
    ("place", "die_at"),
    [
        ("1-rates/guard", 1),  # after the last step, before the guard writes what it knows
        ("1-rates/guard", 3),  # inside the guard's state
        ("2-sharing/checkpoints", 1),  # before the first checkpoint of the second stage
        ("2-sharing/checkpoints/unfinished-2", 2),  # inside a checkpoint of a guarded stage
        ("2-sharing/student", 1),
        ("stages.json", 1),
    ],
)
def test_killed_between_and_inside_stages(
    reference: tuple[Recipe, Path], tmp_path: Path, place: str, die_at: int
) -> None:
    recipe, whole = reference
    folder = tmp_path / "run"
    assert start(recipe, folder, place, die_at)[0] == -signal.SIGKILL
    first = folder / "stages/1-rates/student/adapter_model.safetensors"
    seen = first.stat().st_mtime_ns if "1-" not in place else None
    assert start(recipe, folder)[0] == 0
    assert seen in (None, first.stat().st_mtime_ns), "a finished stage is not trained again"
    found, expected = outcome(folder), outcome(whole)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
