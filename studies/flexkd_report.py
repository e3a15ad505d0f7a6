"""The records and tables of studies/flexkd.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from isodistill.data.files import write_between_marks, write_lines
from isodistill.evaluation.statistics import mean_sd, paired_interval

__all__ = ["report"]

RESULTS = Path("docs/results")
BEGIN, END = "<!-- tables: begin, made by studies/flexkd.py from flexkd-runs.jsonl -->", "<!-- tables: end -->"
COMMAND = "python studies/flexkd.py"
RIVAL = "projector"


def report(runs: list[dict[str, Any]]) -> None:
    """``flexkd.json`` and the tables of the page."""
    students = [run for run in runs if run["method"] != "teacher"]
    teachers = [run for run in runs if run["method"] == "teacher"]
    records, lines = [], []
    for task, share in sorted({(run["task"], run["share"]) for run in students}, key=lambda c: (c[0], -c[1])):
        cell = [run for run in students if (run["task"], run["share"]) == (task, share)]
        found = {(run["method"], run["seed"]): run for run in cell}
        for method in dict.fromkeys(run["method"] for run in cell):
            record = _record(found, method, task, share)
            records.append(record)
            lines.append(_line(record, task, share, found, method))
    write_lines(RESULTS / "flexkd.json", [json.dumps(records, indent=1, allow_nan=False)])
    head = "| task | d_S / d_T | method | seeds | result | minus projector | r on test rows | overlap with top |"
    tables = [head, "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |", *lines, "", *_teachers(teachers)]
    tables += ["", *_costs([run for run in students if run["share"] == 4])]
    write_between_marks(RESULTS / "flexkd.md", BEGIN, END, "\n".join(tables))


def _record(found: dict[tuple[str, int], dict[str, Any]], method: str, task: str, share: int) -> dict[str, Any]:
    mine = {seed: run for (name, seed), run in sorted(found.items()) if name == method}
    values = [run["value"] for run in mine.values()]
    mean, sd = mean_sd(values)
    both = [seed for seed in mine if (RIVAL, seed) in found]
    differences = {}
    if method != RIVAL and len(both) > 1:
        differences[RIVAL] = paired_interval([mine[seed]["value"] - found[RIVAL, seed]["value"] for seed in both])
    return {
        "setting": f"{task}, d_S / d_T = 1/{share}",
        "student": "lab, 2 layers trained from scratch",
        "method": method,
        "metric": next(iter(mine.values()))["metric"],
        "mean": round(mean, 6),
        "sd": round(sd, 6) if len(values) > 1 else None,
        "seeds": values,
        "diff_to": differences,
        "command": COMMAND,
    }


def _line(record: dict[str, Any], task: str, share: int, found: dict[tuple[str, int], Any], method: str) -> str:
    result = f"{record['mean']:.3f}" + ("" if record["sd"] is None else f" ± {record['sd']:.3f}")
    difference = record["diff_to"].get(RIVAL)
    against = "" if difference is None else f"{difference[0]:+.3f} ({difference[1]:+.3f} to {difference[2]:+.3f})"
    mine = [run for (name, _), run in found.items() if name == method]
    r = ""
    if mine[0]["r"]:
        first, last = (sum(run["r"][i] for run in mine) / len(mine) for i in (0, 1))
        r = f"{first:+.2f} to {last:+.2f}"
    overlap = "" if mine[0]["overlap"] is None else f"{sum(run['overlap'] for run in mine) / len(mine):.2f}"
    return f"| {task} | 1/{share} | {method} | {len(mine)} | {result} | {against} | {r} | {overlap} |"


def _teachers(teachers: list[dict[str, Any]]) -> list[str]:
    """The effective dimension: what is left of a teacher without its top or bottom dimensions."""
    if not teachers:
        return []
    cuts = list(teachers[0]["curve"])
    head = "| teacher of | seeds | whole | " + " | ".join(f"without {cut}" for cut in cuts) + " | planted found |"
    lines = [head, "| --- |" + " ---: |" * (len(cuts) + 3)]
    for task in dict.fromkeys(run["task"] for run in teachers):
        mine = [run for run in teachers if run["task"] == task]
        cells = [f"{sum(run['curve'][cut] for run in mine) / len(mine):.3f}" for cut in cuts]
        whole = sum(run["whole"] for run in mine) / len(mine)
        tried = [run["planted"] for run in mine if run["planted"] is not None]
        planted = f"{sum(tried)} of {len(tried)}" if tried else ""
        lines.append(f"| {task} | {len(mine)} | {whole:.3f} | {' | '.join(cells)} | {planted} |")
    return lines


def _costs(students: list[dict[str, Any]]) -> list[str]:
    """Seconds of a step, relative to fine-tuning without a teacher, and parameters beside the student's."""
    tasks = list(dict.fromkeys(run["task"] for run in students))
    methods = list(dict.fromkeys(run["method"] for run in students))
    head = "| method | extra parameters | " + " | ".join(f"time of a step, {task}" for task in tasks) + " |"
    lines = [head, "| --- | ---: |" + " ---: |" * len(tasks)]
    for method in methods:
        cells, extra = [], set()
        for task in tasks:
            pairs = {}
            for run in students:
                if run["task"] == task and run["method"] in (method, "sft"):
                    pairs.setdefault(run["seed"], {})[run["method"]] = run["seconds_per_step"]
                    extra |= {run["extra_parameters"]} if run["method"] == method else set()
            ratios = sorted(pair[method] / pair["sft"] for pair in pairs.values() if {method, "sft"} <= pair.keys())
            cells.append(f"{ratios[len(ratios) // 2]:.2f} x" if ratios else "")
        lines.append(f"| {method} | {max(extra)} | {' | '.join(cells)} |")
    return lines
