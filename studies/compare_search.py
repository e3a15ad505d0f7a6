"""Methods of compare_lab.py with searched settings, chosen by three rules.

    python studies/compare_search.py

Every method gets the same budget: `DRAWS` settings (the defaults, then random ones as in `isodistill compare`: a
learning rate and the options of the method's alignment and term), each trained with the same `SEEDS`, and again
without each of the surfaces `LEFT_OUT`. A rule chooses one setting per method by its mean over the seeds: on held-out
problems of the trained surfaces, cue as in training (`train_val`); likewise on the surface that was left out
(`leave_one_out`); or on the unseen surfaces of the test (`oracle`). A rule counts a seed once all methods have all of
its runs, so that a study that was stopped compares equal budgets, too. Each run is one `python -m isodistill.lab`; its
record is appended to docs/results/compare-search-runs.jsonl, and what stands there is not run again. Then writes the
records of the chosen settings in docs/results/compare.json and the tables of docs/results/compare.md. `--runs 0` only
writes these.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import compare_lab as study
import torch
from cells import difference_cell, mean_cell

import lab
from isodistill.data.files import append_log, read_log, write_between_marks
from isodistill.evaluation import mean_sd
from isodistill.evaluation.selection import Choice, Setting, choose
from isodistill.evaluation.statistics import MIN_SEEDS, paired_interval
from isodistill.lab.settings import TrainOptions
from isodistill.pipeline.search import drawn_options, drawn_rate
from isodistill.training.slots import fill_slots

RESULTS = Path("docs/results")
BEGIN, END = "<!-- search: begin, made by studies/compare_search.py from compare.json -->", "<!-- search: end -->"
STEPS = 400
SETTING = f"conflicting cues, K = 8, rho 1, width 64, {STEPS} steps"
COMMON = ["task.valid_problems=100", "train.width=64", f"train.steps={STEPS}"]
SEEDS, DRAWS, LEFT_OUT = range(3), 2, (0,)
RULES = {
    "train_val": "held-out problems of the trained surfaces",
    "leave_one_out": "a surface that was left out of training",
    "oracle": "the unseen surfaces of the test itself: an upper bound",
}
METHODS = (
    *("erm", "iga", "irm", "vrex", "group_dro", "fish", "fishr", "and_mask", "pcgrad", "random_mask"),
    *("isomer_consistency", "iga_consistency"),
)
METRICS = ("acc_ood", "all_correct_ood", "agreement_ood", "lcs_ratio_ood")

Run = dict[str, Any]


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="Searched methods, chosen by three rules.")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the log and what it gives")
    given = parser.parse_args()
    torch.set_num_threads(1)
    log = given.results / "compare-search-runs.jsonl"
    done = {run["command"] for run in read_log(log)}
    missing = [run for run in planned() if run["command"] not in done]
    for number, run in enumerate(missing[: given.runs], start=1):
        record = lab.train_and_test(run)
        append_log(log, {key: run[key] for key in ("method", "draw", "without", "command")} | {"record": record})
        print(f"{number} of {len(missing)}: {run['command']}", flush=True)
    records = collect(read_log(log))
    study.write_records(given.results / "compare.json", records, "selected by")
    page = given.results / "compare.md"
    write_between_marks(page, BEGIN, END, tables(records))


def planned() -> list[Run]:
    """Every run, what it is and the command that makes it: the first seed whole, then the others, left-out last."""
    runs = [
        _planned(method, draw, seed, without)
        for seed in SEEDS
        for draw in range(DRAWS)
        for method in METHODS
        for without in (-1, *LEFT_OUT)
    ]
    return sorted(runs, key=lambda run: run["without"] >= 0 and run["tree"]["seed"] > 0)


def _planned(method: str, draw: int, seed: int, without: int) -> Run:
    _, preset, options = study.METHODS[method]
    given = [*COMMON, *options, *draw_of(preset, draw), *([f"task.without={without}"] if without >= 0 else [])]
    command = f"python -m isodistill.lab --method {preset} --seed {seed}"
    return {
        "method": method,
        "draw": draw,
        "without": without,
        "command": command + "".join(f" --set {option}" for option in given),
        "tree": {"method": preset, "seed": seed},
        "overrides": given,
    }


def draw_of(preset: str, draw: int) -> list[str]:
    """The settings of a draw; the defaults are draw 0."""
    if draw == 0:
        return []
    slots = fill_slots(preset, None, None)[-1]
    options = [f"train.lr={drawn_rate(TrainOptions.lr, draw)}"]
    for slot in ("alignment", "term"):
        drawn = drawn_options(slots[slot]["name"], draw) if slot in slots else {}
        options += [f"{slot}.{name}={value}" for name, value in drawn.items()]
    return options


def finished(runs: list[Run], needed: tuple[int, ...]) -> list[int]:
    """The seeds that every draw of every method has been trained with, whole (-1) or without the surfaces needed."""
    done = {(run["method"], run["draw"], run["record"]["seed"], run["without"]) for run in runs}
    cells = [(method, draw) for method in METHODS for draw in range(DRAWS)]
    return [seed for seed in SEEDS if all((*cell, seed, without) in done for cell in cells for without in needed)]


def choices(runs: list[Run]) -> dict[str, dict[str, Choice]]:
    """Rule -> method -> the chosen draw."""
    found = {(run["method"], run["draw"], run["record"]["seed"], run["without"]): run["record"] for run in runs}
    reads = {"train_val": ((-1,), "valid"), "leave_one_out": (LEFT_OUT, "valid"), "oracle": ((-1,), "ood")}
    chosen = {}
    for rule, (needed, split) in reads.items():
        seeds = finished(runs, needed)
        scores = {
            method: {
                Setting(draw, STEPS): {
                    seed: sum(found[method, draw, seed, without]["splits"][split]["acc_macro"] for without in needed)
                    / len(needed)
                    for seed in seeds
                }
                for draw in range(DRAWS)
            }
            for method in METHODS
        }
        if seeds:
            chosen[rule] = choose(scores)
    return chosen


def collect(runs: list[Run]) -> list[Run]:
    """One record per rule, method and metric of the chosen settings; differences are paired by seed."""
    seeds = finished(runs, (-1,))
    whole = {
        (run["method"], run["draw"], run["record"]["seed"]): run["record"]
        for run in runs
        if run["without"] < 0 and run["record"]["seed"] in seeds
    }
    return [
        _record(rule, method, metric, chosen, whole)
        for rule, chosen in choices(runs).items()
        for method in METHODS
        for metric in METRICS
    ]


def _record(
    rule: str,
    method: str,
    metric: str,
    chosen: Mapping[str, Choice],
    whole: Mapping[tuple[str, int, int], Run],
) -> Run:
    split, name = study.METRICS[metric]

    def values(of: str) -> dict[int, float | None]:
        runs = {seed: whole.get((of, chosen[of].setting.seed_hparam, seed)) for seed in SEEDS}
        return {seed: run["splits"][split][name] for seed, run in runs.items() if run is not None}

    own = values(method)
    defined = [value for value in own.values() if value is not None]
    mean, sd = mean_sd(defined) if defined else (math.nan, math.nan)
    sign = -1 if metric in study.LOWER_IS_BETTER else 1
    differences = {}
    for rival in study.RIVALS:
        theirs = values(rival) if rival in chosen and rival != method else {}
        pairs = [(value, theirs[seed]) for seed, value in own.items() if seed in theirs]
        apart = [sign * (ours - other) for ours, other in pairs if ours is not None and other is not None]
        if len(apart) >= MIN_SEEDS:
            differences[rival] = paired_interval(apart)
    choice = chosen[method]
    preset = study.METHODS[method][1]
    first = next(record for (of, *_), record in whole.items() if of == method)
    return {
        "setting": f"selected by {rule}: {SETTING}",
        "student": f"lab transformer, {first['parameters'] / 1e6:.2f} M parameters",
        "method": method,
        "metric": metric,
        "mean": None if math.isnan(mean) else round(mean, 6),
        "sd": None if sd is None or math.isnan(sd) else round(sd, 6),
        "seeds": list(own.values()),
        "diff_to": differences,
        "chosen": " ".join(draw_of(preset, choice.setting.seed_hparam)) or "the defaults",
        "score": round(choice.score, 6),
        "draws": len(choice.scores),
        "chosen_on_seeds": choice.seeds,
        "command": "python studies/compare_search.py",
    }


def tables(records: list[Run]) -> str:
    """One table for each rule, the best mean first."""
    lines: list[str] = []
    for rule, by in RULES.items():
        found = {(r["method"], r["metric"]): r for r in records if r["setting"].startswith(f"selected by {rule}:")}
        ranked = sorted((m for m, metric in found if metric == "acc_ood"), key=lambda m: -found[m, "acc_ood"]["mean"])
        if not ranked:
            continue
        lines += [
            "",
            f"### Chosen by {rule.replace('_', ' ')}",
            "",
            f"By the accuracy on {by}.",
            "",
            "| method | chosen | score | accuracy, unseen surfaces | seeds | better than ERM by | than random mask by "
            "| all correct | agreement | LCS ratio |",
            "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for method in ranked:
            accuracy = found[method, "acc_ood"]
            cells = [
                study.METHODS[method][0],
                accuracy["chosen"],
                f"{accuracy['score']:.3f}",
                mean_cell(accuracy),
            ]
            cells.append(" / ".join(f"{value:.3f}" for value in accuracy["seeds"]))
            cells += [difference_cell(accuracy, rival) for rival in ("erm", "random_mask")]
            cells += [mean_cell(found[method, metric]) for metric in METRICS[1:]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).strip() or "No seed is finished yet; the same command goes on."


if __name__ == "__main__":
    main()
