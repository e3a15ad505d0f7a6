"""PrOntoQA isomers: ERM and IGA on made-up surfaces, tested on surfaces that were held out.

    python studies/prontoqa.py --data FOLDER

Runs examples/prontoqa.yaml for every seed into runs/prontoqa/seed-N, skips what is finished and goes on with what was
interrupted; then writes docs/results/prontoqa.json and from it the tables of docs/results/prontoqa.md.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import difference_cell, mean_cell

from isodistill.data.files import write_between_marks, write_lines
from isodistill.evaluation import PredictionLog, Record, compare_seeds, mean_sd
from isodistill.evaluation.answer import read_representations
from isodistill.pipeline import run_recipe
from isodistill.recipe import Recipe, load_recipe

RECIPE = Path("examples/prontoqa.yaml")
RESULTS = Path("docs/results")
BEGIN, END = "<!-- tables: begin, made by studies/prontoqa.py from prontoqa.json -->", "<!-- tables: end -->"

METRICS = {
    "acc_ood": ("Accuracy, held-out surfaces (mean)", "ood", ("acc_macro",)),
    "acc_ood_professions": ("Accuracy, professions", "ood", ("acc_by_domain", "professions")),
    "acc_ood_animals": ("Accuracy, animals", "ood", ("acc_by_domain", "animals")),
    "acc_ood_artifacts": ("Accuracy, artifacts", "ood", ("acc_by_domain", "artifacts")),
    "acc_id": ("Accuracy, trained surfaces (mean)", "id", ("acc_macro",)),
    "acc_id_fictional": ("Accuracy, fictional", "id", ("acc_by_domain", "fictional")),
    "acc_id_nonsense": ("Accuracy, nonsense", "id", ("acc_by_domain", "nonsense")),
    "all_correct_id": ("Solved on both trained surfaces", "id", ("all_correct",)),
    "lcs_ratio_id": ("LCS ratio (our definition, lower is better)", "id", ("lcs_ratio",)),
}
"""Metric -> label, split, place in the numbers of a split."""

LOWER_IS_BETTER = ("lcs_ratio_id",)


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="ERM and IGA on PrOntoQA isomers.")
    parser.add_argument("--data", required=True, help="folder of the real data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--out", type=Path, default=Path("runs/prontoqa"), help="folder of the runs")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="key=value, as in a recipe")
    given = parser.parse_args()
    recipe = load_recipe(RECIPE, [f"real_data={given.data}", *given.overrides])
    folders = [run_seed(recipe, seed, given.out, before=seed == given.seeds[0]) for seed in given.seeds]
    records = collect(recipe, folders)
    write_lines(RESULTS / "prontoqa.json", [json.dumps(records, indent=1, allow_nan=False)])
    page = RESULTS / "prontoqa.md"
    write_between_marks(page, BEGIN, END, tables(records))
    print(f"results: {page}")


def run_seed(recipe: Recipe, seed: int, out: Path, *, before: bool) -> Path:
    """One run with its baseline; the untrained student does not depend on the seed, so it answers once."""
    folder = out / f"seed-{seed}"
    evaluate = replace(recipe.evaluate, before=before)
    run_recipe(
        replace(recipe, seed=seed, evaluate=evaluate), folder, command=f"python studies/prontoqa.py, seed {seed}"
    )
    return folder


def collect(recipe: Recipe, folders: list[Path]) -> list[dict[str, Any]]:
    """One record per method and metric over the seeds; differences are paired, over seeds where there are three."""
    methods = {"erm": [folder / "baseline" for folder in folders], "iga": folders}
    results = {method: [_read(folder) for folder in paths] for method, paths in methods.items()}
    differences = compare_seeds(
        [_answers(folder) for folder in methods["erm"]],
        [_answers(folder) for folder in methods["iga"]],
        baseline_representations=[read_representations(folder, "after") for folder in methods["erm"]],
        method_representations=[read_representations(folder, "after") for folder in methods["iga"]],
    )
    surfaces = f"held out: {', '.join(recipe.split.held_out_domains)}"
    common = {
        "setting": f"PrOntoQA isomers, {surfaces}, {results['iga'][0]['train']['steps']} steps",
        "student": results["iga"][0]["student"],
    }
    stages = {"none": [results["iga"][0]["before"]], **{m: [r["splits"] for r in rs] for m, rs in results.items()}}
    records = []
    for method, splits in stages.items():
        for metric, (_, split, place) in METRICS.items():
            seeds = [_look_up(numbers[split], place) for numbers in splits]
            difference = _look_up(differences[split], place) if method == "iga" else None
            records.append(common | _record(method, metric, seeds, difference))
    return records


def _record(method: str, metric: str, seeds: list[float | None], difference: list[float] | None) -> dict[str, Any]:
    defined = [value for value in seeds if value is not None]
    mean, sd = mean_sd(defined) if defined else (math.nan, math.nan)
    if difference is not None and metric in LOWER_IS_BETTER:
        value, low, high = difference
        difference = [-value, -high, -low]
    return {
        "method": method,
        "metric": metric,
        "mean": None if math.isnan(mean) else round(mean, 6),
        "sd": None if math.isnan(sd) else round(sd, 6),
        "seeds": seeds,
        "diff_to": {} if difference is None else {"erm": difference},
        "command": "python studies/prontoqa.py --data FOLDER",
    }


def tables(records: list[dict[str, Any]]) -> str:
    """The tables of the page, from the records alone."""
    found = {(record["method"], record["metric"]): record for record in records}
    first = records[0]
    n_seeds = len(found["iga", "acc_ood"]["seeds"])
    lines = [
        f"{first['setting']}. Student: {first['student']}. Training seeds: {n_seeds}.",
        "",
        "| metric | before | ERM | IGA, tier F (ours) | IGA better than ERM by |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for metric, (label, _, _) in METRICS.items():
        cells = [mean_cell(found[method, metric]) for method in ("none", "erm", "iga")]
        lines.append(f"| {label} | {' | '.join(cells)} | {difference_cell(found['iga', metric], 'erm')} |")
    lines += ["", "Every seed:", "", "| metric | method | seeds |", "| --- | --- | --- |"]
    for (method, metric), record in found.items():
        if metric in ("acc_ood", "acc_id") and method != "none":
            values = ", ".join(_number(value) for value in record["seeds"])
            lines.append(f"| {METRICS[metric][0]} | {method} | {values} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _look_up(numbers: dict[str, Any] | None, place: tuple[str, ...]) -> Any:
    for key in place:
        numbers = None if numbers is None else numbers.get(key)
    return numbers


def _read(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def _answers(folder: Path) -> list[Record]:
    return [record for record in PredictionLog(folder / "predictions.jsonl").read() if record.stage == "after"]


if __name__ == "__main__":
    main()
