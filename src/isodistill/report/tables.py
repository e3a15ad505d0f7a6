"""The tables of a report as plain data: a page or a model card only lays them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isodistill.report.run import Estimate, Run, Side, estimate
from isodistill.report.text import signed, verdict

__all__ = [
    "DASH",
    "METRICS",
    "Cell",
    "Metric",
    "Row",
    "Table",
    "by_domain",
    "costs",
    "difference_cell",
    "differing_settings",
    "pass_at_k",
    "plain",
    "reasons",
    "robustness",
    "versions",
]

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Metric:
    """How a metric is printed: label, meaning, share (in %) or plain number, direction, why it may be undefined.

    ``judged`` is False where a difference is called neither better nor worse.
    """

    label: str
    meaning: str
    share: bool = True
    higher_is_better: bool = True
    why_undefined: str = "it was not measured"
    judged: bool = True


NO_SETS = "no isomer set is complete"
NO_LCS = "representations were not measured, or no isomer set is complete"
METRICS = {
    "acc_macro": Metric("Accuracy", "mean of the domains"),
    "acc_worst": Metric("Worst domain", "accuracy in the weakest domain"),
    "all_correct": Metric("Solved everywhere", "sets solved in every domain", why_undefined=NO_SETS),
    "transfer": Metric(
        "Transfer",
        "of the sets solved in some domain, those solved in all",
        why_undefined="no set was solved in any domain",
    ),
    "cons_given_correct": Metric(
        "Right again",
        "right in one domain: how often right in another",
        why_undefined="no complete set has a right answer",
    ),
    "agreement": Metric("Agreement", "pairs in a set with the same answer", why_undefined=NO_SETS),
    # A collapsed student has LCS 0, so only the ratio is judged.
    "lcs": Metric("LCS", "our definition; read it with the ratio", False, False, NO_LCS, judged=False),
    "lcs_ratio": Metric(
        "LCS ratio", "our definition; 1 = like unrelated problems, lower is better", False, False, NO_LCS
    ),
    "lcs_js": Metric(
        "LCS of answers",
        "our definition; divergence of the probabilities of the options, in bits, lower is better",
        False,
        False,
        "no complete set has answer options, or they were not measured",
        judged=False,
    ),
    "truncated": Metric("Unfinished", "answers cut at the length limit; lower is better", True, False),
    "unparsed": Metric("No answer found", "finished without a marked answer; lower is better", True, False),
}


@dataclass(frozen=True)
class Cell:
    """One number as text with its interval; ``tone`` is the verdict of a difference."""

    text: str = DASH
    interval: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    label: str
    meaning: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """Column heads, rows, and the reasons for the dashes."""

    columns: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


def robustness(
    split: str,
    sides: Sequence[Side],
    difference: Mapping[str, Any] | None,
    head: str,
    keys: Sequence[str] = tuple(METRICS),
) -> Table:
    """One split: a row per metric, a column per student, and the paired difference where there is one.

    Args:
        split: name of the split.
        sides: the students, left to right.
        difference: metric -> [difference, lo, hi], or None for no difference column.
        head: head of the difference column.
        keys: the metrics, in order.
    """
    rows, notes, unpaired = [], [], []
    for key in keys:
        metric = METRICS[key]
        found = [estimate(side.splits.get(split) or {}, key) for side in sides]
        undefined = [side.label for side, number in zip(sides, found, strict=True) if number is None]
        if undefined:
            notes.append(f"{DASH} {metric.label} ({', '.join(undefined)}): {metric.why_undefined}.")
        cells = [_cell(number, metric) for number in found]
        if difference is not None:
            cells.append(difference_cell(difference.get(key), metric))
            unpaired += [metric.label] if difference.get(key) is None else []
        rows.append(Row(metric.label, metric.meaning, cells))
    if unpaired:
        notes.append(f"{DASH} {head} ({', '.join(unpaired)}): no paired difference was computed.")
    return Table(_columns(sides, difference, head), rows, notes)


def by_domain(
    split: str, domains: Sequence[str], sides: Sequence[Side], difference: Mapping[str, Any] | None, head: str
) -> Table:
    """One split: accuracy of every domain, a column per student, and the paired difference where there is one."""
    metric = METRICS["acc_macro"]
    changes = (difference or {}).get("acc_by_domain") or {}
    rows = []
    for domain in domains:
        cells = [_cell(estimate(side.splits.get(split) or {}, "acc_by_domain", domain), metric) for side in sides]
        if difference is not None:
            cells.append(difference_cell(changes.get(domain), metric))
        rows.append(Row(domain, "", cells))
    return Table(_columns(sides, difference, head), rows)


def pass_at_k(split: str, sides: Sequence[Side]) -> Table | None:
    """One split: pass@k, a row per k and a column per student; None where every student gave one answer per problem."""
    metric = METRICS["acc_macro"]
    numbers = [side.splits.get(split) or {} for side in sides]
    ks = sorted({int(k) for of_side in numbers for k in of_side.get("pass_at_k") or {}})
    n = max((of_side.get("n_samples", 1) for of_side in numbers), default=1)
    meaning = f"one of k answers is right, estimated from {n} per problem; mean of the domains"
    rows = [
        Row(f"pass@{k}", meaning, [_cell(estimate(of_side, "pass_at_k", str(k)), metric) for of_side in numbers])
        for k in ks
    ]
    return Table(_columns(sides, None, ""), rows) if rows else None


def reasons(split: str, sides: Sequence[Side]) -> Table | None:
    """One split: why programs failed and which instructions were not followed, counted; None where none was asked."""
    counts = [(side.splits.get(split) or {}).get("reasons") or {} for side in sides]
    names = sorted(set().union(*counts), key=lambda name: (-sum(of_side.get(name, 0) for of_side in counts), name))
    rows = [Row(name, "", [Cell(str(of_side.get(name, 0))) for of_side in counts]) for name in names]
    return Table(_columns(sides, None, ""), rows) if rows else None


def costs(runs: Sequence[tuple[str, Run]]) -> Table:
    """What training took: steps, tokens, time, speed, memory."""
    formats = {
        "steps": ("Steps", "{:,.0f}", 1),
        "tokens": ("Tokens read in training", "{:,.0f}", 1),
        "seconds": ("Seconds", "{:,.0f}", 1),
        "tokens_per_second": ("Tokens per second", "{:,.0f}", 1),
        "peak_memory_bytes": ("Peak memory in MiB", "{:,.0f}", 2**20),
    }
    rows = []
    for key, (label, form, unit) in formats.items():
        values = [(run.results.get("train") or {}).get(key) for _, run in runs]
        rows.append(Row(label, "", [Cell() if v is None else Cell(form.format(v / unit)) for v in values]))
    return Table([label for label, _ in runs], rows)


def versions(runs: Sequence[tuple[str, Run]]) -> Table:
    """The versions of what ran, by name."""
    found = [run.results.get("versions") or {} for _, run in runs]
    names = sorted(set().union(*found))
    rows = [Row(name, "", [Cell(str(of_run.get(name, DASH))) for of_run in found]) for name in names]
    return Table([label for label, _ in runs], rows)


def differing_settings(runs: Sequence[tuple[str, Run]]) -> Table:
    """The settings in which the recipes differ, by their dotted names."""
    flat = [_flat(run.recipe) for _, run in runs]
    names = sorted(name for name in set().union(*flat) if len({of_run.get(name, DASH) for of_run in flat}) > 1)
    rows = [Row(name, "", [Cell(of_run.get(name, DASH)) for of_run in flat]) for name in names]
    return Table([label for label, _ in runs], rows)


def _columns(sides: Sequence[Side], difference: Mapping[str, Any] | None, head: str) -> list[str]:
    return [side.label for side in sides] + ([head] if difference is not None else [])


def _cell(number: Estimate | None, metric: Metric) -> Cell:
    if number is None:
        return Cell()
    interval = (
        "" if number.lo is None or number.hi is None else f"{plain(number.lo, metric)}{DASH}{plain(number.hi, metric)}"
    )
    return Cell(plain(number.value, metric), interval)


def difference_cell(values: Sequence[float] | None, metric: Metric) -> Cell:
    """A paired difference with its interval and its verdict; a dash where it is undefined."""
    if values is None:
        return Cell()
    change = Estimate(*values)
    scale, decimals = (100, 1) if metric.share else (1, 3)
    if change.lo is None or change.hi is None:
        return Cell(signed(scale * change.value, decimals))
    interval = f"{signed(scale * change.lo, decimals)} to {signed(scale * change.hi, decimals)}"
    tone = verdict(change, higher_is_better=metric.higher_is_better) if metric.judged else ""
    return Cell(signed(scale * change.value, decimals), interval, tone)


def plain(value: float, metric: Metric) -> str:
    """A number as it is printed: shares in %."""
    return f"{100 * value:.1f}" if metric.share else f"{value:.3f}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat
