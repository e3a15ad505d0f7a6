"""Shared by the studies of drift.md: each writes its own records of drift.json and its own section of the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isodistill.data.files import write_lines
from isodistill.evaluation import mean_sd
from isodistill.evaluation.statistics import paired_interval

__all__ = ["difference", "record", "spread", "write"]

Run = dict[str, Any]
LOWER_IS_BETTER = ("forgetting", "growth")


def write(results: Path, name: str, records: Sequence[Run], section: str) -> None:
    """Exchange the records of one study in ``drift.json``, and its section of ``drift.md``.

    Args:
        results: folder of both files.
        name: of the script, which stands in the command of its records and in the marks of its section.
        records: its records.
        section: its tables.
    """
    path, page = results / "drift.json", results / "drift.md"
    others = [one for one in json.loads(path.read_text(encoding="utf-8")) if f"studies/{name} " not in one["command"]]
    every = sorted([*others, *records], key=lambda one: "drift_stages" in one["command"])
    write_lines(path, [json.dumps(every, indent=1, allow_nan=False)])
    begin, end = f"<!-- {name}: begin, made from drift.json -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    write_lines(page, f"{before}{begin}\n\n{section}\n\n{end}{rest.partition(end)[2]}".splitlines())


def record(found: Mapping[str, Mapping[int, Run]], method: str, metric: str, rivals: Sequence[str], head: Run) -> Run:
    """One metric of a method over seeds, with its differences to the rivals, paired by seed; more is better.

    Args:
        found: method -> seed -> run.
        method: whose record it is.
        metric: key of a run.
        rivals: methods to compare it with, where they have run.
        head: setting, student and command.
    """
    own, differences = found[method], {}
    sign = -1 if metric in LOWER_IS_BETTER else 1
    for rival in rivals:
        other = found.get(rival, {})
        apart = [sign * (own[seed][metric] - other[seed][metric]) for seed in own if seed in other]
        if rival != method and len(apart) >= 3:
            differences[rival] = paired_interval(apart)
    values = [own[seed][metric] for seed in sorted(own)]
    mean, sd = mean_sd(values)
    return head | {
        "method": method,
        "metric": metric,
        "mean": round(mean, 6),
        "sd": None if math.isnan(sd) else round(sd, 6),
        "seeds": values,
        "diff_to": differences,
    }


def spread(one: Run) -> str:
    """Mean and standard deviation."""
    return f"{one['mean']:.3f}" + ("" if one["sd"] is None else f" ± {one['sd']:.3f}")


def difference(paired: Sequence[float] | None) -> str:
    """A paired difference with its interval; a dash where there is none."""
    return "-" if paired is None else f"{paired[0]:+.3f} ({paired[1]:+.3f} to {paired[2]:+.3f})"
