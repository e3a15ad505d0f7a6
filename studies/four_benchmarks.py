"""SmolLM2-135M on the four benchmarks: ERM, IGA, two rivals and the random mask beside trivial answers.

    python studies/four_benchmarks.py --data FOLDER [--only NAME] [--set train.steps=70] [--runs N]
    python studies/four_benchmarks.py --data FOLDER --only NAME --select [--set train.steps=70]

Each run is the recipe of a benchmark (`isodistill.benchmarks`) with one method and seed; its answers are a line of
docs/results/benchmarks-runs.jsonl, and what stands there is not run again; another number of steps is another setting.
Seed 0 of all benchmarks comes first. From the lines alone come the records of the benchmarks in
docs/results/compare.json and their section of compare.md; `--runs 0` only writes these. `--select` trains ERM once and
answers the split valid, nothing else: what a budget is chosen by; its lines stand in the same file. `--chosen FILE`
takes for each benchmark the settings that did best there.

Processes side by side each take some `--methods` and `--seeds` and write lines to a `--log` of their own, no results;
`--merge LOG ...` then takes those lines over. A benchmark whose rows and recipe are written needs no `--data`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from benchmarks_page import BEGIN, END, LOG, SETTING, Run, collect, tables, write_results_of

from isodistill.benchmarks import BENCHMARKS, trivial_records, write_benchmark
from isodistill.data.files import append_log, read_log
from isodistill.data.load import load_rows
from isodistill.data.rows import Row
from isodistill.evaluation import PredictionLog, Record, split_results
from isodistill.models.device import choose_placement
from isodistill.pipeline import evaluate_run, train_run, write_results
from isodistill.pipeline.search import method_recipe
from isodistill.recipe import Recipe, load_recipe

__all__ = ["BEGIN", "END", "LOG", "SETTING", "collect", "main", "tables"]

RESULTS = Path("docs/results")
COMMAND = "python studies/four_benchmarks.py --data FOLDER"
SEEDS = range(3)

PLAIN = ("school-maths", "fields", "deduction", "contexthub")
"""The order in which a seed is run: those first whose ERM was above the trivial answers on the split valid."""
CORE = ("erm", "iga", "random_mask")
RIVALS = ("fish", "group_dro")
"""The two with the best mean accuracy on unseen surfaces in the laboratory's table, ERM and the control aside."""
KEPT = ("acc_macro", "acc_worst", "acc_by_domain", "all_correct", "agreement", "lcs_ratio", "truncated", "unparsed")


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    given = arguments()
    torch.set_num_threads(1)
    log = given.log or given.results / LOG
    for path in given.merge:
        append_new(log, read_log(path))
    if given.select:
        name = given.only or PLAIN[0]
        append_log(log, select(name, recipe_of(name, "erm", 0, given), given))
        return
    for name, recipe in islice(missing(given, log), given.runs):
        append_new(log, one_run(name, recipe, given))
        if given.log is None:
            write_results_of(given.results)
        print(f"{name}, {recipe.method}, seed {recipe.seed}", flush=True)
    if given.log is None:
        write_results_of(given.results)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Methods side by side on the four benchmarks.")
    parser.add_argument("--data", type=Path, help="folder of the data sets, for what is not written to --out yet")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    parser.add_argument("--only", choices=list(BENCHMARKS), help="one benchmark instead of all")
    parser.add_argument("--methods", type=_names, default=(*CORE, *RIVALS), help="only these methods, as a,b")
    parser.add_argument("--seeds", type=_numbers, default=tuple(SEEDS), help="only these seeds, as 0,1")
    parser.add_argument("--select", action="store_true", help="train ERM and answer the split valid alone")
    parser.add_argument("--chosen", type=Path, help="file of lines of --select, to take the best settings from")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines and what they give")
    parser.add_argument("--log", type=Path, help="write lines to this file and no results")
    parser.add_argument("--merge", type=Path, nargs="+", default=[], help="files of lines to take over first")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="key=value, as in a recipe")
    given = parser.parse_args()
    for path in (*given.merge, *([given.chosen] if given.chosen else [])):
        if not path.is_file():
            parser.error(f"there is no file of lines {path}")
    if unknown := {*given.methods} - {*CORE, *RIVALS}:
        parser.error(f"--methods: {', '.join(sorted(unknown))} is none of {', '.join((*CORE, *RIVALS))}")
    return given


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def append_new(log: Path, lines: Sequence[Run]) -> None:
    """Append the lines that do not stand in the log yet."""
    known = {_key(line) for line in read_log(log)}
    for line in lines:
        if _key(line) not in known:
            append_log(log, line)
            known.add(_key(line))


def _key(line: Run) -> tuple[Any, ...]:
    if line["kind"] == "select":
        return ("select", json.dumps(line, sort_keys=True))
    return line["kind"], line["benchmark"], line.get("method"), line.get("seed")


def missing(given: argparse.Namespace, log: Path) -> Iterator[tuple[str, Recipe]]:
    """Benchmark and recipe of every run that has no line yet."""
    done = {_key(line) for line in read_log(log)}
    for name, method, seed in planned():
        if given.only in (None, name) and method in given.methods and seed in given.seeds:
            recipe = recipe_of(name, method, seed, given)
            if ("run", title_of(name, recipe), method, seed) not in done:
                yield name, recipe


def planned() -> Iterator[tuple[str, str, int]]:
    """Benchmark, method and seed of every run; the four benchmarks before the version with the cue, then rivals."""
    for seed in SEEDS:
        for names, methods in ((PLAIN, CORE), (["contexthub-cue"], CORE), ([*PLAIN, "contexthub-cue"], RIVALS)):
            for name in names:
                for method in methods:
                    yield name, method, seed


def recipe_of(name: str, method: str, seed: int, given: argparse.Namespace) -> Recipe:
    """The benchmark's recipe, its rows written, with one method and no baseline beside it."""
    folder = given.out / name
    if not (folder / "recipe.yaml").is_file():
        if given.data is None:
            raise SystemExit(f"{folder} has no recipe of {name} yet, and --data, which it is made from, is not given.")
        write_benchmark(BENCHMARKS[name], given.data, folder)
    recipe = load_recipe(folder / "recipe.yaml", ["train.save_steps=1000", *overrides_of(name, given)])
    return replace(method_recipe(recipe, method), seed=seed)


def overrides_of(name: str, given: argparse.Namespace) -> list[str]:
    """What changes the recipe: the settings chosen for a benchmark, then those of the command line."""
    return [*chosen(name, read_log(given.chosen) if given.chosen else []), *given.overrides]


def chosen(name: str, lines: Sequence[Run]) -> list[str]:
    """The settings of ERM with the best mean accuracy of the domains on the split valid; the first of equal ones."""
    title = f"{BENCHMARKS[name].title},"
    own = [line for line in lines if "overrides" in line and line["benchmark"].startswith(title)]
    return max(own, key=lambda line: float(line["valid"]["acc_macro"]))["overrides"] if own else []


def title_of(name: str, recipe: Recipe) -> str:
    """Benchmark, version, steps and, above one, the groups of a step: what is compared with each other."""
    groups = recipe.train["sets_per_batch"]
    return f"{BENCHMARKS[name].title}, {recipe.train['steps']} steps" + (f" of {groups} groups" if groups > 1 else "")


def folder_of(name: str, recipe: Recipe, given: argparse.Namespace) -> Path:
    """Where a run lies."""
    train = recipe.train
    budget = f"{train['steps']}x{train['sets_per_batch']}-{float(train['learning_rate']):g}"
    folder: Path = given.out / name / f"{recipe.method}-{budget}-{recipe.seed}"
    return folder


def one_run(name: str, recipe: Recipe, given: argparse.Namespace) -> list[Run]:
    """Train and answer; the items, the lines of the trivial answers to them, and the line of the run."""
    folder, title = folder_of(name, recipe, given), title_of(name, recipe)
    cpu_seconds = train(recipe, folder)
    evaluate_run(recipe, folder)
    results = write_results(recipe, folder)
    records = [record for record in PredictionLog(folder / "predictions.jsonl").read() if record.stage == "after"]
    command = " ".join([COMMAND, "--only", name, *(f"--set {override}" for override in overrides_of(name, given))])
    line = {
        "kind": "run",
        "benchmark": title,
        "command": command,
        "method": recipe.method,
        "seed": recipe.seed,
        "student": results["student"],
        "device": device_of(recipe),
        "train": results["train"] | {"cpu_seconds": cpu_seconds},
        "settings": dict(recipe.train),
        "splits": {split: _kept(numbers) for split, numbers in results["splits"].items()},
        "answers": answers(records),
    }
    items = [[r.split, r.item_id, r.set_id, r.domain, r.canon_gold] for r in records]
    first = {"kind": "items", "benchmark": title, "items": items}
    return [first, *trivial_lines(line, load_rows(given.out / name / "rows", max_refused=0).rows, records), line]


def device_of(recipe: Recipe) -> str:
    """Device and precision of a run, with the reason."""
    bf16 = recipe.train.get("bf16")
    dtype = None if bf16 is None else "bfloat16" if bf16 else "float32"
    return choose_placement("cpu" if recipe.train.get("use_cpu") else None, dtype).reason


def train(recipe: Recipe, folder: Path) -> float:
    """Processor seconds of the training, also of one found finished; the wall clock counts others' work, too."""
    clock, start = folder / "cpu_seconds", time.process_time()
    train_run(recipe, folder)
    if not clock.is_file():
        clock.write_text(f"{time.process_time() - start:.1f}", encoding="utf-8")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return float(clock.read_text(encoding="utf-8"))


def select(name: str, recipe: Recipe, given: argparse.Namespace) -> Run:
    """ERM on the split valid, beside the trivial answers there; the test splits are not touched."""
    folder = folder_of(name, recipe, given)
    recipe = replace(recipe, evaluate=replace(recipe.evaluate, splits=["valid"]))
    train(recipe, folder)
    evaluate_run(recipe, folder)
    valid = _kept(write_results(recipe, folder)["splits"]["valid"])
    trivial = json.loads((given.out / name / "trivial.json").read_text(encoding="utf-8"))["valid"]
    line = {
        "kind": "select",
        "benchmark": title_of(name, recipe),
        "overrides": given.overrides,
        "device": device_of(recipe),
        "settings": dict(recipe.train),
        "valid": valid,
        "trivial": trivial,
    }
    print(json.dumps(line), flush=True)
    return line


def _kept(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: numbers[name] for name in KEPT}


def answers(records: Sequence[Record]) -> dict[str, list[str | None]]:
    """Split and item -> outcome and canonical answer: all that a metric of answers needs."""
    return {f"{record.split}/{record.item_id}": [record.outcome, record.canon_parsed] for record in records}


def trivial_lines(line: Run, rows: Sequence[Row], records: Sequence[Record]) -> list[Run]:
    """The lines of the two trivial baselines, on the items of the run of a line."""
    lines = []
    for method, said in trivial_records(rows, records).items():
        names = dict.fromkeys(record.split for record in said)
        splits = {name: _kept(split_results([record for record in said if record.split == name])) for name in names}
        nobody = {"seed": 0, "student": "none", "device": "none", "train": {}, "settings": {}}
        own = {"method": method, "splits": splits, **nobody}
        lines.append(line | own | {"answers": answers(said)})
    return lines


if __name__ == "__main__":
    main()
