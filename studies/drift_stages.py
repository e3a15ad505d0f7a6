"""Three reasoning tasks distilled one after the other into SmolLM2-135M, in two orders, under each guard.

    python studies/drift_stages.py --data FOLDER

Each run is examples/stages.yaml with these tasks, fewer rows, and another guard, order and seed; a finished run is a
line of docs/results/drift-stages-runs.jsonl and is not done again. From these lines the records of
docs/results/drift.json and a section of docs/results/drift.md are made. ``--runs 0`` only writes these.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import drift_page

from isodistill.data.files import append_log, read_log, write_lines
from isodistill.pipeline import run_recipe
from isodistill.recipe import Recipe, Split, load_recipe

NAME = "drift_stages.py"
RECIPE, RESULTS, DATA = Path("examples/stages.yaml"), Path("docs/results"), Path("runs/stages/data")
ORDERS = {
    "arithmetic first": ("arithmetic", "letters", "coin"),
    "coin first": ("coin", "letters", "arithmetic"),
}
SEEDS = (0, 1, 2)
GUARDS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "l2": {"name": "l2", "lam": 1.0},
    "ewc": {"name": "ewc", "lam": 100.0, "n_samples": 32},
    # The mean angle of all rows in the first stage of the first run without a guard: 0.00134 pi.
    "angular": {"name": "angular", "mode": "freeze", "threshold": 0.0042},
    "replay": {"name": "replay"},
    "lwf": {"name": "lwf"},
    "o_lora": {"name": "o_lora"},
    "si": {"name": "si"},
}
METRICS = ("acc", "bwt", "forgetting", "fwt", "growth")
RIVALS = ("l2", "none")

Run = dict[str, Any]


def main() -> None:
    """Run what is missing, seed by seed and order by order, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="Guards of a student that is distilled in stages.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    parser.add_argument("--out", type=Path, default=Path("runs/stages"), help="folder of the runs")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="key=value, as in a recipe")
    given = parser.parse_args()
    log = RESULTS / "drift-stages-runs.jsonl"
    planned = [(seed, order, guard) for seed in SEEDS for order in ORDERS for guard in GUARDS]
    done = {(run["seed"], run["order"], run["guard"]) for run in read_log(log)}
    missing = [run for run in planned if run not in done][: given.runs]
    if missing:
        for task, rows in TASKS.items():
            write_lines(DATA / f"{task}.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows(given.data)])
    for seed, order, guard in missing:
        append_log(log, one_run(load_recipe(RECIPE, given.overrides), seed, order, guard, given.out))
        report(read_log(log))
    report(read_log(log))


def arithmetic(data: Path) -> list[Run]:
    """Traces of GPT-3.5 with the right answer and at most 40 words."""
    traces = _items(data / "traces" / "gpt35_arithmetic" / "all.jsonl.gz")
    return [row(item) for item in traces if item["meta"]["correct"] and len(item["rationale"].split()) <= 40]


def letters(data: Path) -> list[Run]:
    """Last letters of two or three words, put together."""
    return [row(item) for split in ("train", "dev") for item in _items(data / "last_letters" / f"{split}.jsonl.gz")]


def coin(data: Path) -> list[Run]:
    """Is the coin still heads up after so many flips?"""
    return [row(item) for split in ("train", "dev") for item in _items(data / "coin_flip" / f"{split}.jsonl.gz")]


TASKS: dict[str, Callable[[Path], list[Run]]] = {"arithmetic": arithmetic, "letters": letters, "coin": coin}


def row(item: Run) -> Run:
    """A row to learn from or, where the hash of the question falls into the first 15 %, to be tested on."""
    bucket = int(hashlib.sha256(item["question"].encode()).hexdigest(), 16) % 1000
    return {
        "id": item["id"],
        "prompt": item["question"],
        "completion": f"{item['rationale'].rstrip()} The answer is {item['answer']}.",
        "answer": item["answer"],
        "answer_type": item["answer_type"],
        "split": "id" if bucket < 150 else "train",
    }


def one_run(recipe: Recipe, seed: int, order: str, guard: str, out: Path) -> Run:
    """One staged run; the line of the record."""
    stages = [{"name": task, "problems": str(DATA / f"{task}.jsonl")} for task in ORDERS[order]]
    train = recipe.train | {"steps": 24, "sets_per_batch": 4, "save_steps": 24}
    evaluate = replace(recipe.evaluate, max_sets=30, max_new_tokens=72)
    recipe = replace(recipe, seed=seed, guard=GUARDS[guard], stages=stages, split=Split(valid=0.0))
    recipe = replace(recipe, train=train, evaluate=evaluate)
    place = out / f"{order.partition(' ')[0]}-{seed}"
    folder = place / guard
    if guard != "none" and not folder.exists():
        _borrow(place / "none", folder, f"1-{ORDERS[order][0]}")
    run_recipe(recipe, folder, f"python studies/{NAME}, {order}, {guard}, seed {seed}")
    told = json.loads((folder / "stages.json").read_text(encoding="utf-8"))
    for left in folder.glob("stages/*/checkpoints"):
        shutil.rmtree(left)
    numbers, cost, drift = told["splits"]["id"], told["train"], list(told["drift"].values())
    return {
        "order": order,
        "guard": guard,
        "seed": seed,
        "student": told["student"],
        "options": told["guard"],
        "steps": [one["steps"] for one in cost],
        **{key: numbers[key] for key in ("R", "b", "acc", "bwt", "forgetting", "fwt")},
        "growth": told["growth"][-1],
        "frozen": [one["shares"]["frozen"] for one in drift],
        "mean_angle": [fmean(layer["mean"] for layer in one["layers"].values()) for one in drift],
        "largest_angle": [max(layer["max"] for layer in one["layers"].values()) for one in drift],
    }


def _borrow(finished: Path, folder: Path, first: str) -> None:
    """Answers that do not depend on the guard: the stamps of the run prove it, or ask again."""
    for after in ("before", first):
        if (finished / "answers" / after).exists():
            shutil.copytree(finished / "answers" / after, folder / "answers" / after)


def report(runs: list[Run]) -> None:
    """The records and the section of the page."""
    records, lines = [], list[str]()
    for order, tasks in ORDERS.items():
        found: dict[str, dict[int, Run]] = {}
        for run in (run for run in runs if run["order"] == order):
            found.setdefault(run["guard"], {})[run["seed"]] = run
        if not found:
            continue
        first = next(iter(next(iter(found.values())).values()))
        head = {
            "setting": f"{', '.join(tasks)}: {first['steps'][0]} steps each",
            "student": first["student"],
            "command": f"python studies/{NAME} --data FOLDER",
        }
        made = {
            (guard, metric): drift_page.record(found, guard, metric, RIVALS, head)
            for guard in GUARDS
            if guard in found
            for metric in METRICS
        }
        records += made.values()
        lines += ["", f"#### {', '.join(tasks)}", "", *_table(found, made, tasks)]
    drift_page.write(RESULTS, NAME, records, "\n".join(lines).strip())


def _table(found: dict[str, dict[int, Run]], made: dict[tuple[str, str], Run], tasks: tuple[str, ...]) -> list[str]:
    columns = [
        *("guard", "seeds", "ACC", *(f"{task}, at the end" for task in tasks), "BWT", "forgetting", "FWT", "growth"),
        *("frozen", "largest angle / pi", "ACC above l2 by", "ACC above none by"),
    ]
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    for guard, runs in found.items():
        apart = made[guard, "acc"]["diff_to"]
        ends = [f"{fmean(run['R'][-1][j] for run in runs.values()):.3f}" for j in range(len(tasks))]
        spreads = {m: drift_page.spread(made[guard, m]) for m in ("acc", "bwt", "forgetting", "fwt")}
        frozen = fmean(run["frozen"][-1] for run in runs.values())
        angle = fmean(max(run["largest_angle"]) for run in runs.values())
        cells = [guard, str(len(runs)), spreads["acc"], *ends, spreads["bwt"], spreads["forgetting"], spreads["fwt"]]
        cells += [f"{made[guard, 'growth']['mean']:.2f}", f"{100 * frozen:.1f} %", f"{angle:.3f}"]
        cells += [*(drift_page.difference(apart.get(rival)) for rival in RIVALS)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _items(path: Path) -> list[Run]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
