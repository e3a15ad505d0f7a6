"""SmolLM2-135M on the four benchmarks: ERM, IGA, two rivals and the random mask beside trivial answers.

    python studies/four_benchmarks.py --data FOLDER [--only NAME] [--set train.steps=70] [--runs N]
    python studies/four_benchmarks.py --data FOLDER --only NAME --select [--set train.steps=70]

Each run is the recipe of a benchmark (`isodistill.benchmarks`) with one method and seed; its answers are a line of
docs/results/benchmarks-runs.jsonl, and what stands there is not run again; another number of steps is another setting.
Seed 0 of all benchmarks comes first. From the lines alone come the records of the benchmarks in
docs/results/compare.json and their section of compare.md; `--runs 0` only writes these. `--select` trains ERM once and
answers the split valid, nothing else: what steps are chosen by; its lines stand in the same file.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from cells import difference_cell, mean_cell

from isodistill.benchmarks import BENCHMARKS, trivial_records, write_benchmark
from isodistill.data.files import append_log, read_log, write_between_marks, write_lines
from isodistill.data.rows import Row
from isodistill.evaluation import PredictionLog, Record, compare_seeds, mean_sd, split_results
from isodistill.evaluation.statistics import MIN_SEEDS, paired_interval
from isodistill.pipeline import evaluate_run, train_run, write_results
from isodistill.pipeline.search import method_recipe
from isodistill.recipe import Recipe, load_recipe

RESULTS = Path("docs/results")
LOG = "benchmarks-runs.jsonl"
BEGIN = "<!-- benchmarks: begin, made by studies/four_benchmarks.py from benchmarks-runs.jsonl -->"
END = "<!-- benchmarks: end -->"
SETTING = "benchmark "
COMMAND = "python studies/four_benchmarks.py --data FOLDER"
SEEDS = range(3)

PLAIN = ("school-maths", "fields", "deduction", "contexthub")
"""The order in which a seed is run: those first whose ERM was above the trivial answers on the split valid."""
CORE = ("erm", "iga", "random_mask")
RIVALS = ("fish", "group_dro")
"""The two with the best mean accuracy on unseen surfaces in the laboratory's table, ERM and the control aside."""
TRIVIAL = {"majority": "most frequent answer", "naive_bayes": "naive Bayes on words"}
LABELS = {
    **TRIVIAL,
    "erm": "ERM",
    "iga": "IGA",
    "random_mask": "random mask, density and step ratio of IGA",
    "fish": "Fish",
    "group_dro": "GroupDRO",
}

METRICS: dict[str, tuple[str | None, str]] = {
    "acc_id": ("id", "acc_macro"),
    "acc_ood": ("ood", "acc_macro"),
    "acc_worst_ood": ("ood", "acc_worst"),
    "all_correct_id": ("id", "all_correct"),
    "all_correct_ood": ("ood", "all_correct"),
    "agreement_id": ("id", "agreement"),
    "agreement_ood": ("ood", "agreement"),
    "lcs_ratio_id": ("id", "lcs_ratio"),
    "lcs_ratio_ood": ("ood", "lcs_ratio"),
    "acc_cue_random": ("cue_random", "acc_macro"),
    "cpu_seconds": (None, "cpu_seconds"),
}
"""Metric -> split and name in a line."""
LOWER_IS_BETTER = ("lcs_ratio_id", "lcs_ratio_ood", "cpu_seconds")
KEPT = ("acc_macro", "acc_worst", "acc_by_domain", "all_correct", "agreement", "lcs_ratio", "truncated", "unparsed")

Run = dict[str, Any]


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="Methods side by side on the four benchmarks.")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    parser.add_argument("--only", choices=list(BENCHMARKS), help="one benchmark instead of all")
    parser.add_argument("--select", action="store_true", help="train ERM and answer the split valid alone")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines and what they give")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="key=value, as in a recipe")
    given = parser.parse_args()
    if given.data is None and given.runs != 0:
        parser.error("--data names the folder of the data sets; only --runs 0 does without")
    torch.set_num_threads(1)
    log = given.results / LOG
    if given.select:
        name = given.only or PLAIN[0]
        append_log(log, select(name, recipe_of(name, "erm", 0, given), given))
        return
    for name, recipe in islice(missing(given, log), given.runs):
        for line in one_run(name, recipe, given):
            append_log(log, line)
        write_results_of(given.results)
        print(f"{name}, {recipe.method}, seed {recipe.seed}", flush=True)
    write_results_of(given.results)


def missing(given: argparse.Namespace, log: Path) -> Iterator[tuple[str, Recipe]]:
    """Benchmark and recipe of every run that has no line yet."""
    done = {(run["benchmark"], run["method"], run["seed"]) for run in read_log(log) if run["kind"] == "run"}
    for name, method, seed in planned():
        if given.only in (None, name):
            recipe = recipe_of(name, method, seed, given)
            if (title_of(name, recipe), method, seed) not in done:
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
        write_benchmark(BENCHMARKS[name], given.data, folder)
    recipe = load_recipe(folder / "recipe.yaml", ["train.save_steps=1000", *given.overrides])
    return replace(method_recipe(recipe, method), seed=seed)


def title_of(name: str, recipe: Recipe) -> str:
    """Benchmark, version and steps: what is compared with each other."""
    return f"{BENCHMARKS[name].title}, {recipe.train['steps']} steps"


def folder_of(name: str, recipe: Recipe, given: argparse.Namespace) -> Path:
    """Where a run lies."""
    folder: Path = given.out / name / f"{recipe.method}-{recipe.train['steps']}-{recipe.seed}"
    return folder


def one_run(name: str, recipe: Recipe, given: argparse.Namespace) -> list[Run]:
    """Train and answer; the line of the run, before it those of the trivial answers where the run is the first."""
    folder, title = folder_of(name, recipe, given), title_of(name, recipe)
    cpu_seconds = train(recipe, folder)
    evaluate_run(recipe, folder)
    results = write_results(recipe, folder)
    records = [record for record in PredictionLog(folder / "predictions.jsonl").read() if record.stage == "after"]
    command = " ".join([COMMAND, "--only", name, *(f"--set {override}" for override in given.overrides)])
    line = {
        "kind": "run",
        "benchmark": title,
        "command": command,
        "method": recipe.method,
        "seed": recipe.seed,
        "student": results["student"],
        "train": results["train"] | {"cpu_seconds": cpu_seconds},
        "settings": dict(recipe.train),
        "splits": {split: _kept(numbers) for split, numbers in results["splits"].items()},
        "answers": answers(records),
    }
    if recipe.method != "erm" or recipe.seed != 0:
        return [line]
    items = [[r.split, r.item_id, r.set_id, r.domain, r.canon_gold] for r in records]
    first = {"kind": "items", "benchmark": title, "items": items}
    trivial = trivial_lines(line, BENCHMARKS[name].rows(given.data), records)
    return [first, *trivial, line]


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
    line = {"kind": "select", "benchmark": title_of(name, recipe), "settings": dict(recipe.train), "valid": valid,
            "trivial": trivial}  # fmt: skip
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
        own = {"method": method, "student": "none", "train": {}, "settings": {}, "splits": splits}
        lines.append(line | own | {"answers": answers(said)})
    return lines


def write_results_of(results: Path) -> None:
    """The records of the benchmarks in ``compare.json``, those of other studies kept; and their section of the page."""
    runs = read_log(results / LOG)
    records = collect(runs)
    path, page = results / "compare.json", results / "compare.md"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    others = [record for record in known if not record["setting"].startswith(SETTING)]
    write_lines(path, [json.dumps([*others, *records], indent=1, allow_nan=False)])
    write_between_marks(page, BEGIN, END, tables(records, runs))


def collect(runs: Sequence[Run]) -> list[Run]:
    """One record per benchmark, method and metric; differences are paired by item and, from three seeds on, by seed."""
    records = []
    for title in dict.fromkeys(run["benchmark"] for run in runs if run["kind"] == "run"):
        found: dict[str, dict[int, Run]] = {}
        for run in runs:
            if run["kind"] == "run" and run["benchmark"] == title:
                found.setdefault(run["method"], {})[run["seed"]] = run
        items = next(run["items"] for run in runs if run["kind"] == "items" and run["benchmark"] == title)
        for method in (name for name in LABELS if name in found):
            rivals = ("majority", "naive_bayes") if method == "erm" else ("erm", "random_mask")
            rivals = () if method in TRIVIAL else tuple(r for r in rivals if r != method and r in found)
            apart = {rival: _differences(found[rival], found[method], items) for rival in rivals}
            records += [_record(title, found, method, metric, apart) for metric in METRICS]
    return [record for record in records if any(value is not None for value in record["seeds"])]


def _differences(rival: dict[int, Run], method: dict[int, Run], items: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Split -> metric -> method minus rival over the seeds of both; trivial answers are the same for every seed."""
    if rival[min(rival)]["method"] in TRIVIAL:
        rival = dict.fromkeys(method, rival[min(rival)])
    seeds = sorted({*rival} & {*method})
    left, right = ([_records(side[seed], items) for seed in seeds] for side in (rival, method))
    return compare_seeds(left, right) if seeds else {}


def _records(run: Run, items: Sequence[Sequence[Any]]) -> list[Record]:
    """The records of a line, as far as metrics of answers look at them."""
    made = []
    for split, item, set_id, domain, gold in items:
        outcome, said = run["answers"][f"{split}/{item}"]
        made.append(
            Record(
                run_id=f"{run['benchmark']}, {run['method']}, seed {run['seed']}", method=run["method"], tier=None,
                stage="after", split=split, item_id=item, set_id=set_id, structure_id=None, domain=domain,
                answer_type="string", seed_train=run["seed"], seed_data=0, seed_hparam=None, step=0, prompt_hash="",
                output="", n_new_tokens=0, finish="eos", parsed=said, gold=gold or "", canon_parsed=said,
                canon_gold=gold, outcome=outcome, parser_version="", sampling={},
            )
        )  # fmt: skip
    return made


def _record(title: str, found: dict[str, dict[int, Run]], method: str, metric: str, apart: dict[str, Any]) -> Run:
    split, name = METRICS[metric]
    runs = dict(sorted(found[method].items()))
    values = [_value(run, metric) for run in runs.values()]
    defined = [value for value in values if value is not None]
    mean, sd = mean_sd(defined) if defined else (math.nan, math.nan)
    differences = {}
    for rival, found_apart in apart.items():
        if metric in LOWER_IS_BETTER:
            shared = [seed for seed in runs if seed in found[rival]]
            pairs = [(_value(runs[seed], metric), _value(found[rival][seed], metric)) for seed in shared]
            falls = [theirs - ours for ours, theirs in pairs if ours is not None and theirs is not None]
            difference = paired_interval(falls) if len(falls) >= MIN_SEEDS else None
        else:
            difference = found_apart.get(split, {}).get(name)
        if difference is not None:
            differences[rival] = [round(number, 6) for number in difference]
    first = next(iter(runs.values()))
    return {
        "setting": f"{SETTING}{title}",
        "student": first["student"],
        "method": method,
        "metric": metric,
        "mean": None if math.isnan(mean) else round(mean, 6),
        "sd": None if math.isnan(sd) else round(sd, 6),
        "seeds": values,
        "diff_to": differences,
        "command": first["command"],
    }


def _value(run: Run, metric: str) -> float | None:
    """None where the number is undefined."""
    split, name = METRICS[metric]
    value: float | None = run["train"].get(name) if split is None else run["splits"].get(split, {}).get(name)
    return value


def tables(records: Sequence[Run], runs: Sequence[Run]) -> str:
    """One table per benchmark and number of steps, in the order of ``BENCHMARKS``."""
    titles = dict.fromkeys(record["setting"].removeprefix(SETTING) for record in records)
    parts = [
        _section(title, [record for record in records if record["setting"] == f"{SETTING}{title}"], runs)
        for benchmark in BENCHMARKS.values()
        for title in titles
        if title.startswith(f"{benchmark.title},")
    ]
    return "\n\n".join(parts) or "No run yet."


def _section(title: str, records: Sequence[Run], runs: Sequence[Run]) -> str:
    found = {(record["method"], record["metric"]): record for record in records}
    methods = [name for name in LABELS if (name, "acc_ood") in found]
    in_sets, cue = ("erm", "all_correct_id") in found, ("erm", "acc_cue_random") in found
    columns = ["accuracy ID", "accuracy OOD", "OOD better than ERM by", "than random mask by", "worst domain OOD"]
    metrics = ["acc_id", "acc_ood", "", "", "acc_worst_ood"]
    if in_sets:
        sets = "ood" if ("erm", "all_correct_ood") in found else "id"
        columns += [f"all correct {sets.upper()}", f"agreement {sets.upper()}", f"LCS ratio {sets.upper()}"]
        metrics += [f"all_correct_{sets}", f"agreement_{sets}", f"lcs_ratio_{sets}"]
    columns += [*["ID, cue random"] * cue, "training against ERM, CPU", "seeds"]
    metrics += [*["acc_cue_random"] * cue, "", ""]
    lines = [
        f"### {title}",
        "",
        f"{_verdict(found)} {_shape(title, runs)}",
        "",
        f"| method | {' | '.join(columns)} |",
        f"| --- {'| ---: ' * len(columns)}|",
    ]
    for method in methods:
        cells = [mean_cell(found.get((method, metric))) for metric in metrics]
        cells[2], cells[3] = (difference_cell(found[method, "acc_ood"], rival) for rival in ("erm", "random_mask"))
        cells[-2] = _ratio(found, method)
        cells[-1] = str(len(found[method, "acc_ood"]["seeds"])) if method not in TRIVIAL else "-"
        lines.append(f"| {LABELS[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(found: dict[tuple[str, str], Run], method: str) -> str:
    costs = [found.get((name, "cpu_seconds")) for name in (method, "erm")]
    return "-" if None in costs else f"{costs[0]['mean'] / costs[1]['mean']:.2f}"


def _verdict(found: dict[tuple[str, str], Run]) -> str:
    """Whether the benchmark counts: ERM above both trivial answers, its interval without 0."""
    parts = []
    for metric, where in (("acc_id", "ID"), ("acc_ood", "OOD")):
        best = max(TRIVIAL, key=lambda name: found[name, metric]["mean"])
        value, low, high = found["erm", metric]["diff_to"][best]
        word = "counts" if low > 0 else "does not count"
        parts.append(
            f"{where} it {word}: ERM less the better trivial baseline is {value:+.3f} ({low:+.3f} to {high:+.3f})"
        )
    return f"{'; '.join(parts)}."


def _shape(title: str, runs: Sequence[Run]) -> str:
    """Items and trained tokens of a benchmark."""
    items = next(run["items"] for run in runs if run["kind"] == "items" and run["benchmark"] == title)
    counts = {split: sum(item[0] == split for item in items) for split in dict.fromkeys(item[0] for item in items)}
    train = next(r["train"] for r in runs if r["kind"] == "run" and r["benchmark"] == title and r["method"] == "erm")
    told = ", ".join(f"{n} {split}" for split, n in counts.items())
    return f"Items: {told}. Tokens of a training: {train['tokens']}."


if __name__ == "__main__":
    main()
