"""A run killed with SIGKILL and started again ends as if nothing had happened: same bytes, no line lost or doubled.

The processes are forked from one that has imported torch already, so that a run takes seconds; the reference is made by
the command itself.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isodistill.recipe import Recipe, load_recipe

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("sigkill")]

RECIPE = """
student: tiny
method: iga
baseline: erm
isomers: {n_sets: 24, families: [rates], domains: [law, medicine]}
split: {held_out_domains: [sports], valid: 0.0, test: 0.3}
lora: {r: 2, lora_alpha: 4, target_modules: all-linear}
train: {steps: 4, sets_per_batch: 2, save_steps: 1, logging_steps: 1, learning_rate: 1e-2, use_cpu: true}
evaluate: {max_new_tokens: 6, batch_size: 2}
"""
TIMINGS = ("seconds", "tokens_per_second", "peak_memory_bytes")
FRACTIONS = [random.Random(seed).random() for seed in range(10)]


@dataclass(frozen=True)
class Lab:
    """The recipe, what it leaves when nothing happens, and how long it takes in seconds and in changes of files."""

    recipe: Recipe
    reference: Path
    seconds: float
    changes: int


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "isodistill", "run", "recipe.yaml", "--out", "reference"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    recipe = load_recipe(folder / "recipe.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        start(recipe, folder / "warm")  # pays for the imports
        begin = time.monotonic()
        code, changes = start(recipe, folder / "timed")
        assert code == 0
        yield Lab(recipe, folder / "reference", time.monotonic() - begin, changes)


def start(
    recipe: Recipe, folder: Path, place: str = "", die_at: int = 0, die_after: float | None = None
) -> tuple[int, int]:
    """Walk the recipe in a process of its own; returns its exit code and, if it ended well, the number of changes."""
    from mortal import walk

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isodistill.pipeline"])
    changes = context.SimpleQueue()
    process = context.Process(target=walk, args=(recipe, folder, place, die_at, changes))
    process.start()
    process.join(die_after)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, 0 if changes.empty() else changes.get()


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without what tells the time."""
    left: dict[str, Any] = {"files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))}
    for run in (folder, folder / "baseline"):
        left |= {str(p.relative_to(folder)): p.read_bytes() for p in run.glob("student/*.safetensors")}
        left |= {str(p.relative_to(folder)): p.read_bytes() for p in run.glob("problems/*.jsonl")}
        left |= {str(p.relative_to(folder)): p.read_bytes() for p in run.glob("representations/*/*")}
        left[f"{run.name == 'baseline'} predictions"] = sorted((run / "predictions.jsonl").read_text().splitlines())
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        left[f"{run.name == 'baseline'} metrics"] = [
            {k: v for k, v in line.items() if k not in TIMINGS} for line in metrics if "loss" in line
        ]
        left[f"{run.name == 'baseline'} ends"] = [line["step"] for line in metrics if "loss" not in line]
        results = json.loads((run / "results.json").read_text())
        results["train"] = {k: v for k, v in results["train"].items() if k not in TIMINGS}
        left[f"{run.name == 'baseline'} results"] = results
    left["report"] = (folder / "report.html").read_text().rstrip().endswith("</html>")
    return left


def finish(lab: Lab, folder: Path) -> None:
    """Start the run again, and compare what it leaves."""
    assert start(lab.recipe, folder)[0] == 0
    found, expected = outcome(folder), outcome(lab.reference)
    assert found["report"]
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    shutil.rmtree(folder)


@pytest.mark.parametrize("fraction", FRACTIONS, ids=lambda f: f"{f:.2f}")
def test_killed_at_a_random_moment(lab: Lab, tmp_path: Path, fraction: float) -> None:
    start(lab.recipe, tmp_path / "run", die_after=fraction * lab.seconds)
    finish(lab, tmp_path / "run")


@pytest.mark.parametrize("fraction", FRACTIONS, ids=lambda f: f"{f:.2f}")
def test_killed_between_two_changes_of_files(lab: Lab, tmp_path: Path, fraction: float) -> None:
    folder = tmp_path / "run"
    assert start(lab.recipe, folder, die_at=1 + int(fraction * lab.changes))[0] == -signal.SIGKILL
    finish(lab, folder)


@pytest.mark.parametrize(
    ("place", "die_at"),
    [
        ("unfinished-2/", 3),  # inside a checkpoint
        ("unfinished-3", 9),  # before a checkpoint gets its name
        ("student/", 1),  # after the last step, before the adapter is saved
        ("student/", 3),  # inside the saved adapter
        ("train.json", 1),
        ("representations/after", 1),  # before the first answers after training
        ("predictions.jsonl", 6),  # between two answers of one block
        ("results.json", 1),
        ("report.html", 1),
    ],
)
def test_killed_inside_a_step(lab: Lab, tmp_path: Path, place: str, die_at: int) -> None:
    folder = tmp_path / "run"
    assert start(lab.recipe, folder, place, die_at)[0] == -signal.SIGKILL
    finish(lab, folder)


def test_killed_again_and_again(lab: Lab, tmp_path: Path) -> None:
    """Every start gets a few changes further than the last one, until one ends."""
    folder, starts = tmp_path / "run", 0
    while start(lab.recipe, folder, die_at=lab.changes // 5 + starts * 7)[0] == -signal.SIGKILL:
        starts += 1
    assert starts >= 2
    finish(lab, folder)
