"""Records and tables of the study of ECIF."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from isodistill.data.files import write_between_marks, write_lines
from isodistill.evaluation import mean_sd
from isodistill.evaluation.statistics import paired_interval

RESULTS = Path("docs/results")
BEGIN, END = "<!-- tables: begin, made by studies/ecif.py from ecif.json -->", "<!-- tables: end -->"
SETTINGS = {
    "digits": "digits with captions, 1,000 pairs",
    "snli": "SNLI entailment pairs, all-MiniLM-L6-v2 features, 700 pairs",
}
STUDENTS = {"digits": "two linear heads of width 16", "snli": "two residual linear heads of width 64"}
LABELS = {
    "exact": "ECIF, exact",
    "exact_relative": "ECIF, exact, relative to the change of theta",
    "first_order": "ECIF, first order",
    "ekfac": "ECIF, exact, solved by EK-FAC",
    "projected": "ECIF, exact, solved by projection",
    "positive_only": "positive part only",
    "ekfac_positive": "EK-FAC influence (positive part)",
    "trak": "TRAK-like",
    "tracin": "TracIn-like, 3 checkpoints",
    "loss": "loss",
    "self_confidence": "self-confidence",
    "similarity": "similarity",
    "random": "random",
    "none": "no removal",
}
WAYS = {
    "none": "nothing",
    "retrain": "retrained from the start",
    "retrain_from_fit": "retrained from the fit",
    "edit": "edited",
    "edit_remaining": "edited, Hessian of the remaining pairs",
    "edit_ekfac": "edited by EK-FAC",
}
LOOKS = {
    "exact": "ECIF, exact",
    "relative": "ECIF, exact, relative to the change of theta",
    "positive_only": "positive part only",
    "ekfac_positive": "EK-FAC influence (positive part)",
    "trak": "TRAK-like",
    "nearest": "nearest first item",
    "loss": "loss",
    "random": "random",
}
METRICS = ("auroc", "precision_at_k", "accuracy", "accuracy_best")

LOWER_IS_BETTER = ("gap", "seconds")
"""Their differences are turned round, so that more is better in all."""

Run = dict[str, Any]
Values = dict[int, dict[str, dict[str, float]]]
"""Seed -> method -> metric -> value."""


def write(runs: list[Run]) -> None:
    """``ecif.json`` and the tables of ``ecif.md``."""
    found = [r for r in runs if r["kind"] == "find"]
    edited = [r for r in runs if r["kind"] == "edit"]
    traced = [r for r in runs if r["kind"] == "trace" and r["mispredicted"]]
    records: list[Run] = []
    lines: list[str] = []
    for setting, share in sorted({(r["setting"], r["share"]) for r in found}):
        here = [r for r in found if (r["setting"], r["share"]) == (setting, share)]
        label = f"{SETTINGS[setting]}, {share:.0%} shuffled"
        made = collect(
            {r["seed"]: r["methods"] for r in here}, setting, label, METRICS, ("similarity", "random", "none")
        )
        records += made
        lines += [*heading(label, len(here)), *found_table(made)]
    for setting in sorted({r["setting"] for r in edited}):
        here = [r for r in edited if r["setting"] == setting]
        for size in here[0]["edit"]:
            label = f"{SETTINGS[setting]}, 10% shuffled, worst {float(size):.0%} out"
            values = {r["seed"]: r["edit"][size] for r in here}
            made = collect(values, setting, label, ("accuracy", "gap", "seconds"), ("retrain", "none"))
            records += made
            lines += [*heading(label, len(here)), *edit_table(made)]
    for setting in sorted({r["setting"] for r in traced}):
        here = [r for r in traced if r["setting"] == setting]
        label = f"{SETTINGS[setting]}, wrong copies of test items planted"
        made = collect(
            {r["seed"]: r["methods"] for r in here}, setting, label, ("hits", "cured"), ("nearest", "random")
        )
        records += made
        missed = f"{sum(r['mispredicted'] for r in here)} of {sum(r['targets'] for r in here)} items mispredicted"
        lines += [*heading(f"{label}, {missed}", len(here)), *trace_table(made)]
    write_lines(RESULTS / "ecif.json", [json.dumps(records, indent=1, allow_nan=False)])
    write_between_marks(RESULTS / "ecif.md", BEGIN, END, "\n".join([*lines, *damping_table(found)]).strip())


def collect(found: Values, setting: str, label: str, metrics: tuple[str, ...], rivals: tuple[str, ...]) -> list[Run]:
    """One record per method and metric, with differences to the rivals that have this metric, paired by seed."""
    seeds, records = sorted(found), []
    for method in next(iter(found.values())):
        for metric in [m for m in metrics if m in found[seeds[0]][method]]:
            values = [found[seed][method][metric] for seed in seeds]
            others = [r for r in rivals if r != method and metric in found[seeds[0]].get(r, {})]
            pairs = {r: [x - found[seed][r][metric] for x, seed in zip(values, seeds, strict=True)] for r in others}
            if metric in LOWER_IS_BETTER:
                pairs = {r: [-x for x in differences] for r, differences in pairs.items()}
            mean, sd = mean_sd(values)
            records.append(
                {
                    "setting": label,
                    "student": STUDENTS[setting],
                    "method": method,
                    "metric": metric,
                    "mean": round(mean, 6),
                    "sd": None if math.isnan(sd) else round(sd, 6),
                    "seeds": [round(value, 6) for value in values],
                    "diff_to": {r: paired_interval(x) for r, x in pairs.items() if len(seeds) >= 3},
                    "command": "python studies/ecif.py --data FOLDER --encoder FOLDER",
                }
            )
    return records


def heading(label: str, n_seeds: int) -> list[str]:
    """The heading of a table, with an empty line on both sides."""
    seeds = "1 seed" if n_seeds == 1 else f"{n_seeds} seeds"
    return ["", f"### {label[0].upper()}{label[1:]} ({seeds})", ""]


def found_table(records: list[Run]) -> list[str]:
    """One row per method: what it finds, and the models without the worst and without the best tenth."""
    head = ["method", "AUROC", "above similarity by", "above random by", "precision at k"]
    head += ["accuracy without worst tenth", "above random removal by", "above no removal by"]
    head += ["accuracy without best tenth", "above random removal by"]
    columns = [("auroc", ""), ("auroc", "similarity"), ("auroc", "random"), ("precision_at_k", ""), ("accuracy", "")]
    columns += [("accuracy", "random"), ("accuracy", "none"), ("accuracy_best", ""), ("accuracy_best", "random")]
    return table(records, head, LABELS, columns)


def edit_table(records: list[Run]) -> list[str]:
    """One row per way to be rid of the worst pairs by ECIF, exact."""
    head = [
        "the model",
        "accuracy",
        "above retraining by",
        "above nothing by",
        "gap",
        "processor seconds",
    ]
    columns = [("accuracy", ""), ("accuracy", "retrain"), ("accuracy", "none"), ("gap", ""), ("seconds", "")]
    return table(records, head, WAYS, columns)


def trace_table(records: list[Run]) -> list[str]:
    """One row per look at the causes of a misprediction."""
    head = ["looked for by", "planted among the lowest", "above nearest by", "cured without these", "above nearest by"]
    return table(records, head, LOOKS, [("hits", ""), ("hits", "nearest"), ("cured", ""), ("cured", "nearest")])


def table(records: list[Run], head: list[str], rows: dict[str, str], columns: list[tuple[str, str]]) -> list[str]:
    """A table; a column is a metric with its deviation, or with a rival the difference to it."""
    found = {(r["method"], r["metric"]): r for r in records}
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * len(columns)}"]
    for method, name in rows.items():
        cells = [cell(found.get((method, metric)), rival) for metric, rival in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def cell(record: Run | None, rival: str) -> str:
    """Mean and standard deviation, or a paired difference with its interval; a dash where there is none."""
    if record is None or (rival and rival not in record["diff_to"]):
        return "-"
    if rival:
        mean, low, high = record["diff_to"][rival]
        return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"{record['mean']:.3f}" + ("" if record["sd"] is None else f" ± {record['sd']:.3f}")


def damping_table(found: list[Run]) -> list[str]:
    """Rank correlation of the scores under damping with those without."""
    lines = ["", "### Damping: Spearman correlation of the scores with those without damping, 10% shuffled", ""]
    lines += ["| setting | .01 of the mean diagonal | .1 | 1 |", "| --- | ---: | ---: | ---: |"]
    for setting in sorted({r["setting"] for r in found if r["damping"]}):
        rows = [r["damping"] for r in found if r["setting"] == setting and r["damping"]]
        cells = [f"{min(row[x] for row in rows):.3f} to {max(row[x] for row in rows):.3f}" for x in rows[0]]
        lines.append(f"| {SETTINGS[setting]} | {' | '.join(cells)} |")
    return lines
