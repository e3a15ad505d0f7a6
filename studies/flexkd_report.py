"""The records and tables of studies/flexkd.py."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from isodistill.data.files import write_between_marks, write_lines
from isodistill.evaluation.statistics import mean_sd, paired_interval

__all__ = ["report"]

RESULTS = Path("docs/results")
BEGIN, END = "<!-- tables: begin, made by studies/flexkd.py from flexkd-runs.jsonl -->", "<!-- tables: end -->"
COMMAND = "python studies/flexkd.py --data FOLDER"
RIVAL = "projector"
_LIKELIHOOD = "log-likelihood of a gold token"
_MEASURES = {"topics": "accuracy", "summaries": _LIKELIHOOD, "instructions": _LIKELIHOOD}


def report(runs: list[dict[str, Any]]) -> None:
    """``flexkd.json`` and the tables of the page."""
    students = [run for run in runs if run["method"] not in ("teacher", "memory", "scoring")]
    memory = {run["task"]: run["bytes"] for run in runs if run["method"] == "memory"}
    scoring = {run["task"]: run["seconds"] for run in runs if run["method"] == "scoring"}
    teachers = [run for run in runs if run["method"] == "teacher"]
    records, lines = [], []
    for task, share in sorted({(run["task"], run["share"]) for run in students}, key=lambda c: (c[0], -c[1])):
        cell = [run for run in students if (run["task"], run["share"]) == (task, share)]
        found = {(run["method"], run["seed"]): run for run in cell}
        for method in dict.fromkeys(run["method"] for run in cell):
            record = _record(found, method, task, share)
            records.append(record)
            lines.append(_line(record, task, share, found, method))
    if teachers:
        write_lines(RESULTS.parent / "images" / "flexkd-dimensions.svg", [_dimensions_figure(teachers)])
    write_lines(RESULTS / "flexkd.json", [json.dumps(records, indent=1, allow_nan=False)])
    head = "| task | d_S / d_T | method | seeds | result | minus projector | r on test rows | overlap with top |"
    tables = [head, "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |", *lines, "", *_teachers(teachers)]
    tables += ["", "![what is left of a teacher without its top or bottom dimensions](../images/flexkd-dimensions.svg)"]
    tables += ["", *_costs([run for run in students if run["share"] == 4], memory, scoring)]
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


def _dimensions_figure(teachers: list[dict[str, Any]]) -> str:
    """The same as a curve for each task: what is left when the top, or the bottom, dimensions are removed."""
    tasks = list(dict.fromkeys(run["task"] for run in teachers))
    figure = Figure(figsize=(3.6 * len(tasks), 2.6), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        mine = [run for run in teachers if run["task"] == task]
        whole = sum(run["whole"] for run in mine) / len(mine)
        for end, colour in (("top", "#d55e00"), ("bottom", "#0072b2")):
            cuts = [cut for cut in mine[0]["curve"] if cut.startswith(end)]
            shares = [0.0, *(float(cut.split()[1]) for cut in cuts)]
            values = [whole, *(sum(run["curve"][cut] for run in mine) / len(mine) for cut in cuts)]
            axes.plot(
                shares, values, "o-", color=colour, markersize=3, linewidth=1.2, label=f"{end} dimensions removed"
            )
        axes.set_title(f"teacher of {task}", fontsize=8)
        axes.set_xlabel("share of the dimensions set to their mean", fontsize=7)
        axes.set_ylabel(_MEASURES[task], fontsize=7)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=6, frameon=False)
    file = io.StringIO()
    with matplotlib.style.context({"svg.hashsalt": "flexkd", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    return re.sub(r"<metadata>.*?</metadata>\s*", "", file.getvalue(), flags=re.DOTALL).rstrip("\n")


def _costs(students: list[dict[str, Any]], memory: dict[str, dict[str, int]], scoring: dict[str, float]) -> list[str]:
    """Parameters beside the student's; processor seconds and bytes of a step, and the scoring pass in such steps.

    Of fine-tuning without a teacher the median over seeds, of the others their ratio to it.
    """
    tasks = list(dict.fromkeys(run["task"] for run in students))
    columns = [f"{what} of a step, {task}" for what in ("time", "memory") for task in tasks]
    lines = [f"| method | extra parameters | {' | '.join(columns)} |", "| --- | ---: |" + " ---: |" * len(columns)]
    seconds: dict[tuple[str, str], dict[int, float]] = {}
    for run in students:
        seconds.setdefault((run["task"], run["method"]), {})[run["seed"]] = run["seconds_per_step"]
    for method in dict.fromkeys(run["method"] for run in students):
        extra = max(run["extra_parameters"] for run in students if run["method"] == method)
        cells = [_time(seconds.get((task, method), {}), seconds[task, "sft"], method == "sft") for task in tasks]
        held = (memory.get(task) for task in tasks)
        cells += ["" if known is None else _memory(known[method], known["sft"], method == "sft") for known in held]
        lines.append(f"| {method} | {extra} | {' | '.join(cells)} |")
    steps = [scoring[task] / median(seconds[task, "sft"].values()) if task in scoring else None for task in tasks]
    cells = ["" if n is None else f"{n:.0f} x, once" for n in steps]
    lines.append(f"| scoring pass, 512 rows | 0 | {' | '.join(cells)} |{' |' * len(tasks)}")
    return lines


def _time(mine: dict[int, float], sft: dict[int, float], absolute: bool) -> str:
    ratios = [seconds / sft[seed] for seed, seconds in mine.items() if seed in sft]
    return f"{1000 * median(mine.values()):.1f} ms" if absolute else f"{median(ratios):.2f} x" if ratios else ""


def _memory(mine: int, sft: int, absolute: bool) -> str:
    return f"{mine / 1e6:.1f} MB" if absolute else f"{mine / sft:.2f} x"
