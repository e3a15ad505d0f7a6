"""The page of a comparison: which method wins, by how much, and how sure that is; one file that opens offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from isodistill.report import boards, plots, text
from isodistill.report.field import Field
from isodistill.report.figures import Figure
from isodistill.report.html import page_template
from isodistill.report.run import Estimate, estimate
from isodistill.report.study import BUDGET_TOLERANCE, MANY_UNFINISHED

__all__ = ["write_comparison_report"]

SURE = 0.05
RULES = {
    "defaults": ("Every method at its defaults", "There was no search, so nothing was chosen."),
    "train_val": (
        "Chosen on held-out sets of the training domains (train_val)",
        "The setting with the best accuracy on the split valid, mean over seeds; the test problems were not looked at.",
    ),
    "leave_one_out": (
        "Chosen in training domains that were left out (leave_one_out)",
        "Every setting was trained once more without each training domain and judged by the problems of that domain.",
    ),
    "oracle": (
        "Upper bound: chosen on the test problems (oracle)",
        "The setting that is best on the test itself, at its last checkpoint. Nobody can choose so: only a bound.",
    ),
}


def write_comparison_report(content: Mapping[str, Any], *, recipe: Mapping[str, Any], command: str, out: Path) -> None:
    """Write the page of a comparison; the same content gives the same bytes.

    Args:
        content: comparison.json as ``isodistill compare`` writes it.
        recipe: the resolved recipe that the methods share.
        command: shown at the end as what made it.
        out: the file to write.
    """
    page = page_template("comparison.html.j2").render(_context(Field(content), recipe, command))
    out.write_text(page, encoding="utf-8", newline="\n")


def _context(field: Field, recipe: Mapping[str, Any], command: str) -> dict[str, Any]:
    first = field.content["runs"][0]
    found = _claims(field)
    scores = [rule for rule in field.rules if rule != "defaults"]
    return {
        "title": _title(field),
        "student": first["student"],
        "n_runs": len(field.content["runs"]),
        "search": field.content["search"],
        "headline": found[0] if found else None,
        "claims": found[1:],
        "holm": _holm_sentence(field),
        "overview": _overview(field),
        "cautions": _cautions(field),
        "boards": [(*RULES[rule], boards.leaderboard(field, rule)) for rule in field.rules],
        "domains": [
            (text.split_title(s), table) for s in field.splits if (table := boards.differences_by_domain(field, s)).rows
        ],
        "consistency": _consistency(field),
        "costs": _costs(field),
        "seeds": [
            (f"{title}: {text.split_title(split)}", boards.every_seed(field, split, key))
            for split in field.splits
            for key, title in (("acc_macro", "Accuracy"), ("all_correct", "Solved everywhere"))
        ],
        "chosen": [(RULES[r][0], boards.chosen(field, r), boards.every_draw(field, r)) for r in scores],
        "failed": field.content["failed"],
        "command": command,
        "recipe": yaml.safe_dump(dict(recipe), sort_keys=False),
        "versions": sorted(first["versions"].items()),
    }


def _best(field: Field) -> str | None:
    """The most accurate method that is neither the baseline nor a control, and that can be compared."""
    rivals = [m for m in field.ranked(field.rule) if m != field.baseline and m not in field.controls]
    return next((m for m in rivals if field.difference(field.rule, m, field.splits[0])), None)


def _title(field: Field) -> str:
    best, baseline = _best(field), text.method_name(field.baseline)
    if best is None:
        return f"Nothing could be compared with {baseline}"
    difference = field.difference(field.rule, best, field.splits[0])
    assert difference is not None
    p = field.holm(field.rule, best, field.splits[0])
    if text.verdict(difference) == "better":
        sure = p is not None and p < SURE
        n = len(field.rules[field.rule]["differences"])
        rest = "" if sure else f", but not once {n} comparisons are allowed for"
        return f"{field.label(best)} is ahead of {baseline}{rest}"
    return f"No method is {'clearly ' if difference.value > 0 else ''}ahead of {baseline}"


def _claims(field: Field) -> list[text.Claim]:
    """The best method against the baseline, on every split, and against its controls."""
    best, rule = _best(field), field.rule
    if best is None:
        return []

    def claim(split: str, rival: str, difference: Estimate) -> text.Claim:
        accuracies = (field.mean(rule, rival, split, "acc_macro"), field.mean(rule, best, split, "acc_macro"))
        return text.pair_claim(split, field.short(rival), field.label(best), accuracies, difference)

    found = [claim(split, field.baseline, d) for split in field.splits if (d := field.difference(rule, best, split))]
    for control, numbers in field.rules[rule]["differences_to_controls"].get(best, {}).items():
        found.append(claim(field.splits[0], control, Estimate(*numbers[field.splits[0]]["acc_macro"])))
    return found


def _holm_sentence(field: Field) -> str:
    best = _best(field)
    p = None if best is None else field.holm(field.rule, best, field.splits[0])
    if p is None:
        return ""
    n = len(field.rules[field.rule]["differences"])
    return f"p {boards.p_text(p)} after Holm's adjustment for {n} comparison{'s' * (n > 1)}"


def _overview(field: Field) -> str | None:
    split = field.splits[0]
    rows = [(field.short(m), d) for m in field.ranked(field.rule) if (d := field.difference(field.rule, m, split))]
    if not rows:
        return None
    title = f"Difference to {text.method_name(field.baseline)}, {text.split_title(split)}, with 95 % intervals"
    return plots.differences(rows, name="overview", title=title)


def _cautions(field: Field) -> list[str]:
    search, rule = field.content["search"], field.rule
    n, seeds = len(field.rules[rule]["differences"]), len(search["seeds"])
    cover = "test problems and training seeds" if seeds >= 3 else "test problems only, not training seeds"
    found = [f"Differences are means over {seeds} training seed{'s' * (seeds > 1)}; their intervals cover {cover}."]
    if n > 1:
        found.append(
            f"What leads was found by looking at {n} methods on the test problems: the adjusted p allows for that, "
            "the interval does not."
        )
    if search["draws"] == 1:
        found.append("No hyperparameter was searched: a learning rate that suits one method may not suit another.")
    else:
        found.append(f"Every method, the baseline too, had the same budget: {search['draws']} draws of its settings.")
    found += _control_caution(field) + _incomplete(field) + _unfinished(field) + _unequal(field)
    if field.content["failed"]:
        n_failed = len(field.content["failed"])
        found.append(f"Runs that failed: {n_failed}. They are listed below and count nowhere.")
    return found


def _control_caution(field: Field) -> list[str]:
    best = _best(field)
    to_controls = field.rules[field.rule]["differences_to_controls"].get(best, {})
    alike = [
        field.short(control)
        for control, numbers in to_controls.items()
        if text.verdict(Estimate(*numbers[field.splits[0]]["acc_macro"])) != "better"
    ]
    if not alike or best is None:
        return []
    beside = " and ".join(alike)
    return [f"{field.label(best)} is not clearly ahead of {beside}: what a control shows too is not its idea."]


def _incomplete(field: Field) -> list[str]:
    seeds = len(field.content["search"]["seeds"])
    entries = field.rules[field.rule]["methods"]
    fewer = [f"{field.short(m)} ({len(e['seeds'])})" for m, e in entries.items() if len(e["seeds"]) < seeds]
    missing = [text.method_name(m) for m in field.content["search"]["methods"] if m not in entries]
    found = [f"Fewer than {seeds} seeds finished for: {', '.join(fewer)}."] if fewer else []
    return found + ([f"No run finished for: {', '.join(missing)}."] if missing else [])


def _unfinished(field: Field) -> list[str]:
    split = field.splits[0]
    shares = {m: field.mean(field.rule, m, split, "truncated") for m in field.ranked(field.rule)}
    parts = [f"{field.short(m)} {text.percent(share)}" for m, share in shares.items() if share >= MANY_UNFINISHED]
    return [f"Answers that stopped at the length limit count as not correct: {', '.join(parts)}."] if parts else []


def _unequal(field: Field) -> list[str]:
    tokens = {m: fmean(r["train"]["tokens"] for r in field.runs(field.rule, m)) for m in field.ranked(field.rule)}
    least, most = min(tokens, key=tokens.__getitem__), max(tokens, key=tokens.__getitem__)
    if tokens[most] - tokens[least] <= BUDGET_TOLERANCE * tokens[most]:
        return []
    ends = [f"{field.short(m)} {tokens[m]:,.0f}" for m in (least, most)]
    return [f"The trained tokens differ: {ends[0]}, {ends[1]}."]


def _consistency(field: Field) -> list[Figure]:
    figures = []
    for i, split in enumerate(field.splits):
        points = []
        for method in field.ranked(field.rule):
            for run in field.runs(field.rule, method):
                entry = run["splits"].get(split) or {}
                accuracy = estimate(entry, "acc_macro")
                if entry.get("lcs_ratio") is not None and accuracy is not None:
                    point = Estimate(accuracy.value)  # the intervals of many points would hide them
                    points.append((field.short(method), field.role(method), entry["lcs_ratio"], point))
        if points:
            title = text.split_title(split)
            svg = plots.accuracy_consistency(
                points, name=f"consistency-{i}", title=f"Accuracy and LCS ratio: {title}", zoom=True
            )
            figures.append(Figure(title, svg, "One point per training seed. Up and to the left is better."))
    return figures


def _costs(field: Field) -> list[Figure]:
    methods = field.ranked(field.rule)
    costs = {m: [run["train"] for run in field.runs(field.rule, m)] for m in methods}
    seconds = {m: fmean(c["seconds"] / max(c["steps"], 1) for c in costs[m]) for m in methods}
    memory = {m: max(c["peak_memory_bytes"] for c in costs[m]) / 2**20 for m in methods}
    drawn = []
    for name, title, numbers, xlabel, form in (
        ("seconds", "Time of a training step", seconds, "seconds", "{:.2f}"),
        ("memory", "Peak memory of a run", memory, "MiB", "{:,.0f}"),
    ):
        rows = [(field.short(m), numbers[m]) for m in methods]
        svg = plots.bars(rows, xlabel=xlabel, form=form, name=f"cost-{name}", title=title)
        relative = ", ".join(
            f"{field.short(m)} {numbers[m] / numbers[field.baseline]:.2f}"
            for m in methods
            if m != field.baseline and numbers.get(field.baseline)
        )
        caption = f"Relative to {text.method_name(field.baseline)}: {relative}." if relative else ""
        drawn.append(Figure(title, svg, caption))
    return drawn
