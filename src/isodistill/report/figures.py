"""Which plots a page shows, drawn from a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from isodistill.report import plots, text
from isodistill.report.run import Estimate, estimate
from isodistill.report.study import Study

__all__ = [
    "Figure",
    "accuracy_figure",
    "consistency_figures",
    "curve",
    "difference_figure",
    "domain_order",
    "overview_figure",
    "training_figures",
]

CURVE_POINTS = 200
TELEMETRY = {
    "mask_density": "mask density",
    "keep_rate": "keep rate",
    "step_ratio": "step ratio",
    "cosine": "cosine",
    "tangent_kept": "tangent energy kept",
    "noise_share": "noise share",
}
CONFLICT = "conflict_cosine/"

MASK_CAPTION = (
    "Mask density: mean of M. Keep rate: share of entries with M of at least one half. "
    "Step ratio: length of the masked step over the unmasked one. Cosine: of the angle between the two. "
    "Tangent energy kept: share of the masked step that A and B can follow. Noise share: part of the variance over "
    "domains that was put down to noise within them."
)
CONFLICT_CAPTION = (
    "Mean cosine between the gradients of two domains, per kind of layer. "
    "1: the domains agree; below 0: they pull apart."
)


@dataclass(frozen=True)
class Figure:
    """A drawn plot with its heading and what it shows in words."""

    title: str
    svg: str
    caption: str


def overview_figure(claims: Sequence[text.Claim]) -> str | None:
    """All differences of the headline section in one plot; None when there are none."""
    rows = [
        (f"{claim.split.upper()}: {claim.contrast}", claim.difference)
        for claim in claims
        if claim.difference is not None
    ]
    if not rows:
        return None
    return plots.differences(rows, name="overview", title="Differences in accuracy with 95 % intervals")


def domain_order(study: Study, split: str) -> list[str]:
    """Domains of a split, the one where the run is weakest first."""
    accuracy: Mapping[str, float] = study.run.results["splits"][split].get("acc_by_domain") or {}
    return sorted(accuracy, key=lambda domain: (accuracy[domain], domain))


def accuracy_figure(study: Study, split: str) -> Figure:
    """Accuracy per domain of every student, weakest domain first."""
    domains = domain_order(study, split)
    series = []
    for side in study.sides:
        numbers = {d: estimate(side.splits.get(split) or {}, "acc_by_domain", d) for d in domains}
        series.append((side.label, side.role, {d: e for d, e in numbers.items() if e is not None}))
    title = f"Accuracy per domain: {text.split_title(split)}"
    svg = plots.accuracies(domains, series, name=f"accuracy-{study.splits.index(split)}", title=title)
    return Figure("Accuracy per domain", svg, "Dots are accuracies, lines their 95 % intervals. Weakest domain first.")


def difference_figure(study: Study, split: str) -> Figure | None:
    """Paired difference per domain, worst first; None when no paired differences were computed."""
    by_domain = (study.difference(split) or {}).get("acc_by_domain") or {}
    rows = sorted(((d, Estimate(*v)) for d, v in by_domain.items() if v), key=lambda row: (row[1].value, row[0]))
    if not rows:
        return None
    contrast = "After minus before" if study.baseline is None else f"{study.label} minus {study.baseline_label}"
    title = f"Difference per domain: {contrast}, {text.split_title(split)}"
    svg = plots.differences(rows, name=f"difference-{study.splits.index(split)}", title=title)
    caption = f"{contrast}, on the same problems. Right of 0 is better; a line that crosses 0 is no clear difference."
    return Figure("Difference per domain", svg, caption)


def consistency_figures(study: Study) -> list[Figure]:
    """Accuracy beside the LCS ratio, one panel per split that has both."""
    figures = []
    for i, split in enumerate(study.splits):
        points = _consistency_points(study, split)
        if points:
            title = text.split_title(split)
            svg = plots.accuracy_consistency(points, name=f"consistency-{i}", title=f"Accuracy and LCS ratio: {title}")
            figures.append(Figure(title, svg, "Up and to the left is better: more right answers, closer isomers."))
    return figures


def _consistency_points(study: Study, split: str) -> list[tuple[str, str, float, Estimate]]:
    numbers = [(side.label, side.role, side.splits.get(split) or {}) for side in study.sides]
    shown = {run.results["recipe_hash"] for _, run in study.runs}
    labels = {run.results["method"]: label for label, run in study.runs}
    roles = {side.label: side.role for side in study.sides}
    for results in study.all_results:  # the other seeds
        label = labels.get(results["method"])
        if label is not None and results["recipe_hash"] not in shown:
            numbers.append((label, roles[label], results["splits"].get(split) or {}))
    found = [(label, role, entry.get("lcs_ratio"), estimate(entry, "acc_macro")) for label, role, entry in numbers]
    return [(label, role, ratio, acc) for label, role, ratio, acc in found if ratio is not None and acc is not None]


def training_figures(study: Study) -> list[Figure]:
    """Loss, loss per domain, gradient norm, and what the mask did."""
    figures = []
    roles = {side.label: side.role for side in study.sides}
    for key, title in (("loss", "Training loss"), ("grad_norm", "Gradient norm")):
        series = {label: curve(run.metrics, key) for label, run in study.runs}
        shown = {label: curve for label, curve in series.items() if curve[0]}
        if shown:
            svg = plots.curves(shown, ylabel=title.lower(), name=f"curve-{key}", title=title, roles=roles)
            figures.append(Figure(title, svg, ""))
    keys = sorted({key for line in study.run.metrics for key in line if key.startswith("loss/")})
    if keys:
        losses = {key.removeprefix("loss/"): curve(study.run.metrics, key) for key in keys}
        svg = plots.curves(losses, ylabel="training loss", name="curve-domains", title="Training loss per domain")
        figures.insert(1, Figure("Loss per domain", svg, f"{study.label}."))
    for i, (label, run) in enumerate(study.runs):
        mask = {words: curve(run.metrics, key) for key, words in TELEMETRY.items()}
        mask = {words: curve for words, curve in mask.items() if curve[0]}
        if mask:
            svg = plots.curves(mask, ylabel="share, or cosine", name=f"curve-mask-{i}", title=f"Mask of {label}")
            figures.append(Figure("What the mask did", svg, f"{label}. {MASK_CAPTION}"))
        kinds = sorted({key for line in run.metrics for key in line if key.startswith(CONFLICT)})
        if kinds:
            cosines = {key.removeprefix(CONFLICT): curve(run.metrics, key) for key in kinds}
            title = f"Conflict between domains in {label}"
            svg = plots.curves(cosines, ylabel="cosine", name=f"curve-conflict-{i}", title=title)
            figures.append(Figure("Conflict between domains", svg, f"{label}. {CONFLICT_CAPTION}"))
    return figures


def curve(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, at most 200 points: each the mean of equally many log events."""
    events = [(line["step"], math.nan if line[key] is None else line[key]) for line in metrics if key in line]
    size = max(1, math.ceil(len(events) / CURVE_POINTS))
    bins = [events[i : i + size] for i in range(0, len(events), size)]
    return [fmean(step for step, _ in b) for b in bins], [fmean(value for _, value in b) for b in bins]
