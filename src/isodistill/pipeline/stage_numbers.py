"""``stages.json``: what a staged run measured, from the files of its stages and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from isodistill.data.files import write_lines
from isodistill.evaluation.accuracy_matrix import average_accuracy, backward_transfer, forgetting, forward_transfer
from isodistill.evaluation.records import PredictionLog, Record
from isodistill.evaluation.results import compare, json_text
from isodistill.pipeline.answering import name_of
from isodistill.pipeline.stamps import digest
from isodistill.pipeline.steps import resolved
from isodistill.recipe import Recipe

__all__ = ["STAGES", "asked", "write_numbers"]

STAGES = "stages.json"


def asked(recipe: Recipe, names: Sequence[str]) -> dict[str, list[str]]:
    """``before`` or a stage -> the stages whose problems the student of that moment answers.

    After a stage these are all so far and the next one: what it knew of that before is the forward transfer.
    """
    before = {"before": list(names)} if recipe.evaluate.before else {}
    return before | {name: list(names[: i + 2]) for i, name in enumerate(names)}


def write_numbers(recipe: Recipe, recipes: Mapping[str, Recipe], folder: Path) -> None:
    """Write ``stages.json``; the same files give the same bytes.

    Args:
        recipe: the whole recipe.
        recipes: those of its stages.
        folder: the run folder, every answer in it.
    """
    names = list(recipes)
    results = {after: _results(folder, after, tasks) for after, tasks in asked(recipe, names).items()}
    last = results[names[-1]]
    splits = [split for split in last[names[0]] if all(split in last[name] for name in names)]
    costs = [_cost(folder / "stages" / name) for name in names]
    content = {
        "schema": 1,
        "recipe_hash": digest(resolved(recipe)),
        "student": name_of(recipe.student),
        "method": {name: stage.method for name, stage in recipes.items()},
        "guard": resolved(recipes[names[0]])["guard"],
        "seed": recipe.seed,
        "stages": names,
        "splits": {split: _split(split, results, names) | _changes(split, folder, names) for split in splits},
        "train": costs,
        "growth": [cost["adapter_parameters"] / costs[0]["adapter_parameters"] for cost in costs],
        "drift": {name: _told(folder / "stages" / name) for name in names},
    }
    write_lines(folder / STAGES, [json_text(content).rstrip("\n")])


def _results(folder: Path, after: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Stage -> split -> numbers of one student's answers to that stage's problems."""
    found = {}
    for task in tasks:
        content = json.loads((folder / "answers" / after / task / "results.json").read_text(encoding="utf-8"))
        found[task] = content["before" if after == "before" else "splits"]
    return found


def _split(split: str, results: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """R and b of accuracy, LCS and LCS ratio, and the means over stages of what follows from the accuracies."""

    def row(after: str, key: str) -> list[Any]:
        return [results[after][name][split][key] for name in names if name in results.get(after, {})]

    R, b = [row(name, "acc_macro") for name in names], row("before", "acc_macro") or None
    return {
        "R": R,
        "R_ci95": [row(name, "acc_macro_ci95") for name in names],
        "b": b,
        **{key: [row(name, key) for name in names] for key in ("lcs", "lcs_ratio")},
        **{f"{key}_before": row("before", key) or None for key in ("lcs", "lcs_ratio")},
        "acc": average_accuracy(R),
        "bwt": backward_transfer(R),
        "fwt": None if b is None else forward_transfer(R, b),
        "forgetting": forgetting(R),
    }


def _changes(split: str, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Earlier stage -> accuracy after the last stage minus just after its own, paired, with its 95 % interval."""
    found = {}
    for name in names[:-1]:
        then, now = (_records(folder / "answers" / after / name, split) for after in (name, names[-1]))
        found[name] = compare(then, now)[split]["acc_macro"]
    return {"change": found}


def _records(folder: Path, split: str) -> list[Record]:
    return [r for r in PredictionLog(folder / "predictions.jsonl").read() if r.split == split]


def _cost(stage: Path) -> dict[str, Any]:
    """What a stage took: training, the guard's work at its end, and the adapter that it left."""
    train: dict[str, Any] = json.loads((stage / "train.json").read_text(encoding="utf-8"))
    with safe_open(stage / "student" / "adapter_model.safetensors", framework="pt") as file:
        sizes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    guard = json.loads((stage / "guard" / "drift.json").read_text(encoding="utf-8"))
    parameters = sum(rows * columns for rows, columns in sizes)
    return train | {"guard_seconds": guard["end_seconds"], "adapter_parameters": parameters}


def _told(stage: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((stage / "guard" / "drift.json").read_text(encoding="utf-8"))
    decided = told["decided"].pop("nodes", {})
    n = max(sum(group["nodes"] for group in decided.values()), 1)
    shares = {
        key: sum(group[key] * group["nodes"] for group in decided.values()) / n
        for key in ("frozen", "restored", "updated")
    }
    # A LoRA student cannot grow nodes, so none is ever duplicated; without a decision every node is updated.
    shares = shares if decided else {"frozen": 0.0, "restored": 0.0, "updated": 1.0}
    return {
        "nodes": told["nodes"],
        "layers": told["drift"],
        "shares": shares | {"duplicated": 0.0},
        "by_group": decided,
        "measured": told["decided"],
    }
