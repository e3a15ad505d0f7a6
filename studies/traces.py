"""Real teacher traces into SmolLM2-135M: verified traces alone against all of them, on held-out problems.

    python studies/traces.py --data FOLDER

Three teachers on disk: GPT-3.5 on arithmetic, PaLM on SVAMP and on CommonsenseQA. Each run is examples/traces.yaml with
other rows, teach.keep and seed; a finished run is a line of docs/results/traces-runs.jsonl and is not done again. From
these lines docs/results/traces.json and the table of docs/results/traces.md are made.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from isodistill.data.files import append_log, read_log, write_between_marks, write_lines
from isodistill.evaluation import PredictionLog, mean_sd, paired_difference
from isodistill.evaluation.statistics import ratio_of_sums
from isodistill.pipeline import run_recipe
from isodistill.recipe import Recipe, load_recipe

RECIPE, RESULTS, DATA = Path("examples/traces.yaml"), Path("docs/results"), Path("runs/traces/data")
BEGIN, END = "<!-- tables: begin, made by studies/traces.py from traces-runs.jsonl -->", "<!-- tables: end -->"
TESTS = {
    "gpt35_arithmetic": ["addsub", "singleeq", "svamp"],
    "palm_svamp": ["svamp"],
    "palm_commonsenseqa": ["commonsenseqa"],
}
"""Traces -> the sets whose test problems they are judged on."""
KEEPS = ("all", "correct")
N_TEST = 200


def main() -> None:
    """Run what is missing, then write the records and the table."""
    parser = argparse.ArgumentParser(description="Verified traces against all traces.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--out", type=Path, default=Path("runs/traces"), help="folder of the runs")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="key=value, as in a recipe")
    given = parser.parse_args()
    log = RESULTS / "traces-runs.jsonl"
    for seed in given.seeds:
        for name in TESTS:
            write_data(given.data, name)
            for keep in KEEPS:
                if (name, keep, seed) not in {(run["data"], run["keep"], run["seed"]) for run in read_log(log)}:
                    recipe = load_recipe(RECIPE, given.overrides)
                    append_log(log, one_run(recipe, name, keep, seed, given.out / name / f"{keep}-{seed}"))
            report(read_log(log))


def write_data(data: Path, name: str) -> None:
    """Problems (train without traces, test) and the traces, each ending in what the teacher itself answered."""
    test = {_asked(item): item for part in TESTS[name] for item in _items(data / part / "test.jsonl.gz")}
    picked = sorted(test, key=lambda text: hashlib.sha256(text.encode()).digest())[:N_TEST]
    traces = [t for t in _items(data / "traces" / name / "all.jsonl.gz") if _asked(t) not in test and _own_answer(t)]
    rows = [_problem(trace, "train") for trace in traces] + [_problem(test[text], "id") for text in picked]
    written = [
        _problem(trace, None) | {"completion": f"{trace['rationale'].rstrip()} The answer is {_own_answer(trace)}."}
        for trace in traces
    ]
    for file, lines in (("problems.jsonl", rows), ("traces.jsonl", written)):
        write_lines(DATA / name / file, [json.dumps(line, ensure_ascii=False) for line in lines])


def one_run(recipe: Recipe, name: str, keep: str, seed: int, folder: Path) -> dict[str, Any]:
    """Teach, train and answer; the line of the record."""
    teach = recipe.teach or {}
    teachers = {"teacher": {"kind": "replay", "files": str(DATA / name / "traces.jsonl")}}
    recipe = replace(
        recipe,
        problems=str(DATA / name / "problems.jsonl"),
        seed=seed,
        teach=teach | {"teachers": teachers, "keep": keep},
    )
    run_recipe(recipe, folder, f"python studies/traces.py, {name}, {keep}, seed {seed}")
    taught = json.loads((folder / "taught" / "teach.json").read_text(encoding="utf-8"))
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    answers = [r for r in PredictionLog(folder / "predictions.jsonl").read() if r.stage == "after"]
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {
        "data": name,
        "keep": keep,
        "seed": seed,
        "steps": results["train"]["steps"],
        "student": results["student"],
        "n_traces": taught["all"]["traces"],
        "yield": taught["all"]["yield"],
        "correct": {record.item_id: int(record.outcome == "correct") for record in answers},
    }


def report(runs: list[dict[str, Any]]) -> None:
    """``traces.json`` and the table of the page."""
    records, lines = [], []
    for name in TESTS:
        found = {(run["keep"], run["seed"]): run for run in runs if run["data"] == name}
        seeds = sorted(seed for keep, seed in found if keep == "all" and ("correct", seed) in found)
        if not seeds:
            continue
        outcomes = {keep: np.array([_outcomes(found[keep, seed]) for seed in seeds]) for keep in KEEPS}
        means = [ratio_of_sums(outcomes[keep].mean(axis=0), np.ones(outcomes[keep].shape[1])) for keep in KEEPS]
        difference = [round(float(x), 6) for x in paired_difference(*means, n_sets=outcomes["all"].shape[1])[0][:3]]
        run = found["all", seeds[0]]
        cells = []
        for keep in KEEPS:
            each = [round(float(x), 6) for x in outcomes[keep].mean(axis=1)]
            mean, sd = mean_sd(each)
            cells.append(f"{mean:.3f}" + (f" ± {sd:.3f}" if len(each) > 1 else ""))
            records.append(
                {
                    "setting": f"{name}, {run['steps']} steps",
                    "student": run["student"],
                    "method": f"traces_{keep}",
                    "metric": "acc_id",
                    "mean": round(mean, 6),
                    "sd": round(sd, 6) if len(each) > 1 else None,
                    "seeds": each,
                    "diff_to": {"traces_all": difference} if keep == "correct" else {},
                    "command": "python studies/traces.py --data FOLDER",
                }
            )
        value, low, high = difference
        counts = f"{run['n_traces']} | {run['yield']:.1%} | {len(seeds)} | {outcomes['all'].shape[1]}"
        lines.append(f"| {name} | {counts} | {' | '.join(cells)} | {value:+.3f} ({low:+.3f} to {high:+.3f}) |")
    write_lines(RESULTS / "traces.json", [json.dumps(records, indent=1, allow_nan=False)])
    head = "| traces | number | correct | seeds | test problems | all traces | correct ones | correct better by |"
    page = RESULTS / "traces.md"
    text = "\n".join([head, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", *lines])
    write_between_marks(page, BEGIN, END, text)


def _outcomes(run: dict[str, Any]) -> list[int]:
    return [run["correct"][item] for item in sorted(run["correct"])]


def _items(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _asked(item: dict[str, Any]) -> str:
    return " ".join(item["question"].casefold().split())


def _problem(item: dict[str, Any], split: str | None) -> dict[str, Any]:
    options = [f"{chr(ord('A') + i)}) {text}" for i, text in enumerate(item["choices"] or [])]
    row = {
        "id": item["id"], "prompt": "\n".join([item["question"], *options]), "answer": item["answer"],
        "answer_type": item["answer_type"], "choices": item["choices"], "split": split,
    }  # fmt: skip
    return {key: value for key, value in row.items() if value is not None}


def _own_answer(trace: dict[str, Any]) -> str | None:
    """What the teacher answered: a number, a letter, or for PaLM on SVAMP the value of its equation."""
    answer = str(trace["meta"]["model_answer"] or "").rstrip(".")
    if trace["meta"]["task_set"] != "svamp":
        return answer or None
    if not re.fullmatch(r"[\d\s.()+*/-]+", answer):
        return None
    try:
        value = Fraction(eval(answer)).limit_denominator(10**6)
    except (SyntaxError, ZeroDivisionError, TypeError):
        return None
    return f"{float(value):.4f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    main()
