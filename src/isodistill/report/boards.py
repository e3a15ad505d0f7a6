"""The tables of a comparison: leaderboard, differences per domain, every seed's value, what was chosen, costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from isodistill.report import text
from isodistill.report.field import Field
from isodistill.report.tables import DASH, METRICS, Cell, Row, Table, difference_cell, plain

__all__ = ["chosen", "differences_by_domain", "every_draw", "every_seed", "leaderboard", "p_text"]

_SHOWN = ("acc_worst", "all_correct", "agreement", "lcs_ratio")
_MIB = 2**20


def leaderboard(field: Field, rule: str) -> Table:
    """One row per method, the most accurate first; means over seeds with their standard deviation (ddof = 1)."""
    first, *others = field.splits
    columns = [f"Accuracy {first.upper()}", f"against {text.method_name(field.baseline)}", "p (Holm)"]
    columns += [METRICS[key].label for key in _SHOWN] + [f"Accuracy {split.upper()}" for split in others]
    rows = [_board_row(field, rule, method) for method in field.ranked(rule)]
    before = field.content["before"]
    if before:
        untrained = [_over_seeds([before[first].get(key)], key) for key in ("acc_macro", *_SHOWN)]
        rest = [_over_seeds([before[split].get("acc_macro")], "acc_macro") for split in others]
        cells = [untrained[0], Cell(), Cell(), *untrained[1:], *rest, Cell(), Cell()]
        rows.append(Row("Before training", "the student as it came", cells))
    notes = [
        f"{DASH} {METRICS[key].label}: {METRICS[key].why_undefined}."
        for key in _SHOWN
        if any(not field.values(rule, method, first, key) for method in field.rules[rule]["methods"])
    ]
    return Table([*columns, "Seconds", "Memory in MiB"], rows, notes)


def _board_row(field: Field, rule: str, method: str) -> Row:
    first, *others = field.splits
    name, _, rest = field.label(method).partition(", ")
    cells = [_over_seeds(field.values(rule, method, first, "acc_macro"), "acc_macro")]
    paired = field.rules[rule]["differences"].get(method, {}).get(first, {}).get("acc_macro")
    cells.append(difference_cell(paired, METRICS["acc_macro"]))
    p = field.holm(rule, method, first)
    cells.append(Cell() if p is None else Cell(p_text(p).removeprefix("= ")))
    cells += [_over_seeds(field.values(rule, method, first, key), key) for key in _SHOWN]
    cells += [_over_seeds(field.values(rule, method, split, "acc_macro"), "acc_macro") for split in others]
    costs = [run["train"] for run in field.runs(rule, method)]
    cells.append(Cell(f"{fmean(cost['seconds'] for cost in costs):,.0f}"))
    cells.append(Cell(f"{max(cost['peak_memory_bytes'] for cost in costs) / _MIB:,.0f}"))
    if method in field.controls:
        rest = f"control of {text.method_name(field.controls[method])}"
    return Row(name, "baseline" if method == field.baseline else rest, cells)


def p_text(p: float) -> str:
    """A p-value with its sign and the digits that mean something."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def differences_by_domain(field: Field, split: str) -> Table:
    """Method minus baseline in every domain of a split, by the default rule; the domain that loses most on the left."""
    methods = [m for m in field.ranked(field.rule) if field.rules[field.rule]["differences"].get(m)]
    found = {m: field.rules[field.rule]["differences"][m][split]["acc_by_domain"] for m in methods}
    domains = sorted(next(iter(found.values()), {}), key=lambda d: _mean_difference(found, d))
    rows = [
        Row(field.short(m), "", [difference_cell(found[m][d], METRICS["acc_macro"]) for d in domains]) for m in methods
    ]
    return Table(domains, rows)


def _mean_difference(found: Mapping[str, Mapping[str, Any]], domain: str) -> tuple[float, str]:
    values = [numbers[domain][0] for numbers in found.values() if numbers[domain]]
    return fmean(values) if values else math.inf, domain


def every_seed(field: Field, split: str, key: str) -> Table:
    """One metric of the chosen setting for every method and training seed, and the spread over seeds."""
    seeds = field.content["search"]["seeds"]
    rows = []
    for method in field.ranked(field.rule):
        found = {run["seed"]: run["splits"].get(split, {}).get(key) for run in field.runs(field.rule, method)}
        values = [value for value in found.values() if value is not None]
        cells = [_over_seeds([found.get(seed)], key) for seed in seeds]
        rows.append(Row(field.short(method), "", [*cells, _over_seeds(values, key)]))
    return Table([*(f"Seed {seed}" for seed in seeds), "Mean"], rows)


def chosen(field: Field, rule: str) -> Table:
    """The setting that a rule chose for every method: its draw, learning rate, searched options and score."""
    rows = []
    for method in field.ranked(rule):
        entry = field.rules[rule]["methods"][method]
        options = ", ".join(f"{name} {value}" for name, value in entry["searched"].items()) or DASH
        number = "defaults" if entry["seed_hparam"] == 0 else f"draw {entry['seed_hparam']}"
        score, seeds = f"{100 * entry['score']:.1f}", str(len(entry["seeds"]))
        cells = [number, f"{entry['learning_rate']:g}", options, score, seeds]
        rows.append(Row(field.short(method), "", [Cell(words) for words in cells]))
    return Table(["Setting", "Learning rate", "Searched options", "Score of the rule in %", "Seeds"], rows)


def every_draw(field: Field, rule: str) -> Table:
    """The score of every draw that competed, one column per method."""
    methods = field.ranked(rule)
    scores = [field.rules[rule]["methods"][method]["scores"] for method in methods]
    rows = [
        Row(
            "defaults" if d == 0 else f"draw {d}",
            "",
            [_over_seeds([by_draw.get(str(d))], "acc_macro") for by_draw in scores],
        )
        for d in range(field.content["search"]["draws"])
    ]
    return Table([field.short(m) for m in methods], rows)


def _over_seeds(values: Sequence[float | None], key: str) -> Cell:
    defined = [value for value in values if value is not None]
    if not defined:
        return Cell()
    spread = f"± {plain(stdev(defined), METRICS[key])}" if len(defined) > 1 else ""
    return Cell(plain(fmean(defined), METRICS[key]), spread)
