"""Where the teacher's pull goes: weights of VCRD over training, along the trace, and on a few traces token by token."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from isodistill.report import plots
from isodistill.report.figures import Figure, curve
from isodistill.report.run import read_lines
from isodistill.report.tables import DASH, Cell, Row, Table

__all__ = ["Validity", "read_validity"]

_BIN = re.compile(r"objective/(delta|weight)_(-?[\d.]+)_(-?[\d.]+)$")
_NAMES = {"delta": "relative validity delta", "weight": "weight w"}
_N_TRACES = 8
_SHADES = 8  # of a weight between 0 and 2, as classes w0 to w8 of the style sheet
_BORDERS = {"delta": (-1.0, -0.5, -0.05, 0.05, 0.5, 1.0), "weight": (0.0, 0.5, 1.0, 1.5, 2.0)}


@dataclass(frozen=True)
class Piece:
    """A piece of a trace: its text, its shade, its numbers in words, and what a new step begins with."""

    text: str
    shade: int
    says: str
    proposal: str


@dataclass(frozen=True)
class Validity:
    """What the page says: a summary, figures, histograms by step (what, table), traces (id, pieces) and a control."""

    summary: str
    figures: list[Figure]
    steps: list[tuple[str, Table]]
    traces: list[tuple[str, list[Piece]]]
    control: str

    @property
    def proposed(self) -> bool:
        """Something was proposed beside the traces."""
        return any(piece.proposal for _, pieces in self.traces for piece in pieces)


def read_validity(folder: Path, metrics: Sequence[Mapping[str, Any]]) -> Validity | None:
    """The section of a run folder; None where its objective weighs nothing.

    Raises:
        UserError: a file is damaged.
    """
    logged = [line for line in metrics if line.get("objective/weight") is not None]
    if not logged:
        return None
    files = {name: folder / "validity" / f"{name}.jsonl" for name in ("steps", "traces")}
    records = {name: read_lines(path) if path.exists() else [] for name, path in files.items()}
    beats = fmean(line["objective/student_beats_teacher"] for line in logged)
    summary = (
        f"Over training the weight w was {fmean(line['objective/weight'] for line in logged):.2f} on average; at "
        f"{100 * beats:.1f} % of the positions the student's step was more valid than the teacher's."
    )
    if any("validity/compared" in line for line in logged):
        counts = {name: sum(line.get(f"validity/{name}", 0) for line in logged) for name in ("compared", "failed")}
        share = counts["failed"] / max(1, counts["compared"])
        summary += f" The scorer failed at {100 * share:.1f} % of the steps compared; these have w = 1."
    figures = [*_histograms(logged), *_along(logged), _over_training(logged)]
    traces = records["traces"]
    control = next((one["control"] for one in traces if one.get("control", "none") != "none"), "")
    steps = _by_step(records["steps"]) or _tokens_by_step(traces)
    return Validity(summary, figures, steps, [_coloured(one) for one in traces[:_N_TRACES]], control)


def _histograms(logged: Sequence[Mapping[str, Any]]) -> list[Figure]:
    figures = []
    for kind, words in _NAMES.items():
        keys = [key for key in logged[0] if (found := _BIN.match(key)) and found[1] == kind]
        rows = []
        for key in sorted(keys, key=lambda key: float(key.split("_")[-2])):
            low, high = key.split("_")[-2:]
            rows.append((f"{low} to {high}".replace("-", "\N{MINUS SIGN}"), 100 * _mean(logged, key)))
        if any(value for _, value in rows):
            svg = plots.bars(rows, xlabel="% of trained tokens", form="{:.1f} %", name=f"vcrd-{kind}", title=words)
            caption = {"delta": "Above 0 the teacher's step is more valid.", "weight": "1 is plain distillation."}
            figures.append(Figure(words[0].upper() + words[1:], svg, caption[kind]))
    return figures


def _along(logged: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Weight and signal by tenths of the trace."""
    figures = []
    for key, title, words in (
        ("weight", "Weight along the trace", "mean weight w of its tokens"),
        ("signal", "Signal along the trace", "mean w D of its tokens: where the pull of the teacher goes"),
    ):
        values = [_mean(logged, f"objective/{key}_at_{i}") for i in range(10)]
        rows = [(f"{10 * i} to {10 * i + 10} %", value) for i, value in enumerate(values)]
        svg = plots.bars(rows, xlabel=words.split(":")[0], form="{:.3f}", name=f"vcrd-{key}-at", title=title)
        figures.append(Figure(title, svg, f"By tenths of the trace: {words}."))
    return figures


def _over_training(logged: Sequence[Mapping[str, Any]]) -> Figure:
    keys = {"mean weight": "objective/weight", "student better, share": "objective/student_beats_teacher"}
    series = {words: curve(logged, key) for words, key in keys.items()}
    svg = plots.curves(series, ylabel="weight, or share", name="vcrd-curves", title="Weights over training")
    return Figure("Over training", svg, "")


def _mean(logged: Sequence[Mapping[str, Any]], key: str) -> float:
    values = [line[key] for line in logged if line.get(key) is not None and math.isfinite(line[key])]
    return fmean(values) if values else 0.0


def _by_step(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, Table]]:
    """Histograms of delta and w of the steps compared, by their place in the trace."""
    if not records:
        return []
    tables = []
    for kind in _BORDERS:
        found: dict[int, list[float]] = {}
        for record in records:
            for j in record["drawn"]:
                found.setdefault(min(j, 10), []).append(record[f"{kind}s"][j])
        tables.append(
            (f"Steps compared, by their place in the trace: {_NAMES[kind]}", _places(kind, "compared", found))
        )
    return tables


def _tokens_by_step(traces: Sequence[Mapping[str, Any]]) -> list[tuple[str, Table]]:
    """Histograms of delta and w of the tokens of traces, by the step that they lie in."""
    if not any(record["firsts"] for record in traces):
        return []
    tables = []
    for kind in _BORDERS:
        found: dict[int, list[float]] = {}
        for record in traces:
            for t, value in enumerate(record[kind]):
                found.setdefault(min(bisect_right(record["firsts"], t) - 1, 10), []).append(value)
        what = f"Tokens of {len(traces)} traces at the end of training, by their step: {_NAMES[kind]}"
        tables.append((what, _places(kind, "tokens", found)))
    return tables


def _places(kind: str, counted: str, found: Mapping[int, list[float]]) -> Table:
    """A histogram for every place in the trace; the last row gathers what comes after the tenth."""
    borders, rows = _BORDERS[kind], []
    for j, values in sorted(found.items()):
        counts = [0] * (len(borders) - 1)
        for value in values:
            counts[bisect_right(borders[1:-1], value)] += 1
        shares = [Cell(f"{100 * n / len(values):.0f}") for n in counts]
        label = f"Step {j + 1}" if j < 10 else "Later steps"
        rows.append(Row(label, "", [Cell(str(len(values))), Cell(f"{fmean(values):.2f}"), *shares]))
    heads = [f"{low:g} to {high:g}, %".replace("-", "\N{MINUS SIGN}") for low, high in pairwise(borders)]
    return Table([counted, "mean", *heads], rows)


def _coloured(record: Mapping[str, Any]) -> tuple[str, list[Piece]]:
    firsts = {first: str(j) for j, first in enumerate(record["firsts"])}
    pieces = []
    numbers = zip(record["pieces"], record["weight"], record["delta"], record["signal"], strict=True)
    for t, (text, w, delta, signal) in enumerate(numbers):
        shade = min(_SHADES, max(0, round(_SHADES * w / 2)))
        says = f"w {w:.2f}, delta {delta:+.2f}, w D {signal:.3f}"
        pieces.append(Piece(text, shade, says, record["proposals"].get(firsts.get(t, DASH), "")))
    return record["row"], pieces
