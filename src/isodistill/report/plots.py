"""The plots of a report: numbers in, one SVG string out, nothing else touched.

Text stays text (small files, selectable, the reader's font). Every colour is written as ``var(--name, #hex)``: inside a
page the style sheet decides for light and dark, and a plot that stands alone shows the light colours. Panels are 4.4
inches wide, so that a telephone shows their text at nearly its own size; a page puts panels side by side.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from isodistill.report.run import Estimate

__all__ = ["accuracies", "accuracy_consistency", "bars", "curves", "differences", "heat_map", "histogram", "scatter"]

# The page's custom properties and their light values; c1 to c6 follow the colour-blind-safe set of Okabe and Ito.
COLOURS = {
    "ink": "#1d2126",
    "muted": "#6a7280",
    "rule": "#e2e4e8",
    "paper": "#fcfcfb",
    "accent": "#1a5fb4",
    "c1": "#0072b2",
    "c2": "#d55e00",
    "c3": "#009e73",
    "c4": "#cc79a7",
    "c5": "#b07a00",
    "c6": "#3a8fc7",
}
# Roles differ by marker as well as by colour.
ROLES: dict[str, dict[str, Any]] = {
    "before": {"color": COLOURS["muted"], "marker": "o", "markerfacecolor": COLOURS["paper"]},
    "baseline": {"color": COLOURS["ink"], "marker": "s", "markerfacecolor": COLOURS["ink"]},
    "method": {"color": COLOURS["accent"], "marker": "o", "markerfacecolor": COLOURS["accent"]},
}
MARKERS = ["o", "s", "^", "D", "v", "P"]
LINES = [COLOURS[f"c{i}"] for i in range(1, 7)]
# Many methods on one plot: six colours, and another marker for every further six.
ROLES |= {
    f"m{i}": {"color": LINES[i % 6], "marker": MARKERS[(i + i // 6) % 6], "markerfacecolor": LINES[i % 6]}
    for i in range(36)
}
DASHES = ["-", "--", ":", "-."]
WIDTH = 4.4  # inches
DARK = 0.6  # a cell of more than this share takes light ink
LEAST_SPAN = 5  # points to both sides of 0, so that a difference of nothing does not fill the plot
LABEL_WIDTH = 26  # characters of a row label before it is broken
LEGEND_WIDTH = 58  # characters of a legend line, a sample of the line counting as seven
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a domain may be called "$x$"
    "font.size": 9,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
}


def differences(rows: Sequence[tuple[str, Estimate]], *, name: str, title: str) -> str:
    """Differences in points with their intervals, one row each, top first; a line at 0.

    Args:
        rows: label and difference of two shares in [-1, 1].
        name: unique in the page; part of every id in the SVG.
        title: what a screen reader says.
    """

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
        for y, (_, difference) in enumerate(rows):
            _dot(axes, difference, y, "method")
        _rows(axes, [label for label, _ in rows])
        axes.set_xlabel("difference in points")
        axes.margins(x=0.08)
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, -LEAST_SPAN), max(right, LEAST_SPAN))

    lines = max(len(textwrap.wrap(label, LABEL_WIDTH)) for label, _ in rows)
    return _svg(draw, name, title, height=0.7 + (0.14 + 0.16 * lines) * len(rows))


def histogram(
    groups: Mapping[str, Sequence[float]],
    *,
    marks: Sequence[tuple[float, str]],
    name: str,
    title: str,
    label: str,
    counted: str,
) -> str:
    """How many values lie where, one group on top of the other, with named vertical lines.

    Args:
        groups: label -> numbers; the label is shown where there are several.
        marks: (place, label) of every line.
        name: unique in the page.
        title: what a screen reader says.
        label: of the horizontal axis.
        counted: what is counted.
    """

    def draw(axes: Axes) -> None:
        colours = [COLOURS["accent"], COLOURS["c2"], COLOURS["muted"]][: len(groups)]
        labels = list(groups) if len(groups) > 1 else None
        low, high = _span([value for values in groups.values() for value in values])
        axes.hist(list(groups.values()), bins=40, range=(low, high), stacked=True, color=colours, label=labels)
        for place, text in marks:
            axes.axvline(place, color=COLOURS["ink"], linewidth=0.8, linestyle="--", label=text)
        axes.set_xlabel(label)
        axes.set_ylabel(counted)

    return _svg(draw, name, title, height=2.4)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis for the values, apart even where these are all but equal."""
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    width = max(abs(low), abs(high)) / 2 or 0.5
    return low - width, high + width


def accuracies(
    domains: Sequence[str], series: Sequence[tuple[str, str, Mapping[str, Estimate]]], *, name: str, title: str
) -> str:
    """Accuracy per domain, a dot with its interval for every student.

    Args:
        domains: rows, top first.
        series: (label, role, domain -> share in [0, 1]) of every student; role is before, baseline or method.
        name: unique in the page.
        title: what a screen reader says.
    """

    def draw(axes: Axes) -> None:
        for i, (label, role, numbers) in enumerate(series):
            offset = 0.24 * (i - (len(series) - 1) / 2)
            for domain in numbers:
                _dot(axes, numbers[domain], domains.index(domain) + offset, role)
            axes.plot([], [], label=label, linestyle="", **ROLES[role])
        _rows(axes, domains)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("correct answers in %")

    return _svg(draw, name, title, height=1.0 + (0.16 + 0.16 * len(series)) * len(domains))


def accuracy_consistency(
    points: Sequence[tuple[str, str, float, Estimate]], *, name: str, title: str, zoom: bool = False
) -> str:
    """Accuracy (up is better) against the LCS ratio (left is better), one point for every student and seed.

    Args:
        points: (label, role, LCS ratio, accuracy as a share).
        name: unique in the page.
        title: what a screen reader says.
        zoom: fit the axis of the accuracy to the points, where many stand close together.
    """

    def draw(axes: Axes) -> None:
        shown: set[str] = set()
        for label, role, lcs_ratio, accuracy in points:
            _error_bar(axes, [lcs_ratio, lcs_ratio], accuracy, role, vertical=True)
            name_once = label if label not in shown else "_"
            axes.plot(lcs_ratio, 100 * accuracy.value, linestyle="", label=name_once, **ROLES[role])
            shown.add(label)
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.margins(x=0.15)
        if not zoom:
            axes.set_ylim(-2, 102)
        axes.set_xlabel("LCS ratio (our definition), lower is better")
        axes.set_ylabel("correct answers in %")
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))

    lines = len({label for label, *_ in points}) / 3  # of the legend
    return _svg(draw, name, title, height=2.7 + 0.2 * max(lines, 1))


def bars(rows: Sequence[tuple[str, float]], *, xlabel: str, form: str, name: str, title: str) -> str:
    """One bar per row, top first, with its value in words.

    Args:
        rows: label and value, 0 or more.
        xlabel: name of the axis.
        form: format of a value, such as ``{:.0f} s``.
        name: unique in the page.
        title: what a screen reader says.
    """

    def draw(axes: Axes) -> None:
        axes.barh(range(len(rows)), [value for _, value in rows], height=0.55, color=COLOURS["accent"])
        for y, (_, value) in enumerate(rows):
            axes.annotate(form.format(value), (value, y), (4, 0), textcoords="offset points", va="center")
        _rows(axes, [label for label, _ in rows])
        axes.set_xlim(0, 1.25 * max(value for _, value in rows) or 1)
        axes.set_xlabel(xlabel)

    return _svg(draw, name, title, height=0.7 + 0.26 * len(rows))


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    ylabel: str,
    name: str,
    title: str,
    roles: Mapping[str, str] | None = None,
    xlabel: str = "training step",
    top: float | None = None,
) -> str:
    """Lines over training steps, or over what ``xlabel`` says.

    Args:
        series: label -> (steps, values); a value that is not finite leaves a gap.
        ylabel: name of the vertical axis.
        name: unique in the page.
        title: what a screen reader says.
        roles: label -> role for lines that stand for a student; other lines get a colour and a dash of their own.
        xlabel: name of the horizontal axis.
        top: upper end of the vertical axis, which then begins at 0.
    """

    def draw(axes: Axes) -> None:
        for i, (label, (steps, values)) in enumerate(series.items()):
            role = (roles or {}).get(label)
            colour = ROLES[role]["color"] if role else LINES[i % len(LINES)]
            dash = "-" if role else DASHES[i % len(DASHES)]
            axes.plot(steps, values, color=colour, linestyle=dash, label=label)
        axes.grid(True, axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        if top:
            axes.set_ylim(0, top)

    return _svg(draw, name, title, height=2.7)


def scatter(groups: Mapping[str, Sequence[Sequence[float]]], *, name: str, title: str) -> str:
    """Points of some groups on a map whose axes mean nothing.

    Args:
        groups: label -> (x, y) of its points.
        name: unique in the page.
        title: what a screen reader says.
    """

    def draw(axes: Axes) -> None:
        for i, (label, points) in enumerate(groups.items()):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, MARKERS[i], color=LINES[i], markersize=3, linestyle="", label=label)
        axes.set_xticks([])
        axes.set_yticks([])

    return _svg(draw, name, title, height=3.2)


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], *, name: str, title: str
) -> str:
    """Shares in a grid, the first row on top: the larger, the darker; what was not measured is left blank.

    Args:
        rows: their labels.
        columns: theirs.
        values: a share in [0, 1] or None for each row and column; short rows end in blanks.
        name: unique in the page.
        title: what a screen reader says.
    """

    def draw(axes: Axes) -> None:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value is not None:
                    axes.add_patch(
                        Rectangle((x - 0.5, y - 0.5), 1, 1, color=COLOURS["accent"], alpha=value, linewidth=0)
                    )
                    ink = COLOURS["paper" if value > DARK else "ink"]
                    axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=ink)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [textwrap.fill(label, LABEL_WIDTH) for label in rows])
        axes.set_xticks(range(len(columns)), [textwrap.fill(label, LABEL_WIDTH // 2) for label in columns])
        axes.tick_params(length=0, labelcolor=COLOURS["ink"])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    return _svg(draw, name, title, height=0.6 + 0.45 * len(rows))


def _dot(axes: Axes, estimate: Estimate, y: float, role: str) -> None:
    _error_bar(axes, [y, y], estimate, role, vertical=False)
    axes.plot(100 * estimate.value, y, **ROLES[role])


def _error_bar(axes: Axes, place: list[float], estimate: Estimate, role: str, *, vertical: bool) -> None:
    if estimate.lo is None or estimate.hi is None:
        return
    span = [100 * estimate.lo, 100 * estimate.hi]
    x, y = (place, span) if vertical else (span, place)
    axes.plot(x, y, color=ROLES[role]["color"], linewidth=1.4, solid_capstyle="round")


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [textwrap.fill(label, LABEL_WIDTH) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "\N{MINUS SIGN}")))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()

    def width(ncols: int) -> int:
        lines = math.ceil(len(labels) / ncols)
        columns = [labels[i : i + lines] for i in range(0, len(labels), lines)]
        return sum(7 + max(map(len, column)) for column in columns)

    widest = next((n for n in range(len(labels), 1, -1) if width(n) <= LEGEND_WIDTH), 1)
    ncols = math.ceil(len(labels) / math.ceil(len(labels) / widest))  # as few lines, equally full
    figure.legend(handles, labels, loc="outside upper left", ncols=ncols, handlelength=1.8, columnspacing=1.4)


def _svg(draw: Callable[[Axes], None], name: str, title: str, *, height: float) -> str:
    """Draw on one set of axes and return an SVG to put into a page: no prolog, no metadata, ids of its own."""
    with matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        if axes.get_legend_handles_labels()[1]:
            _legend(figure, axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<\w+ id="|xlink:href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r"font-family: 'DejaVu Sans'[^;]*; ", "", svg)
    for colour, value in COLOURS.items():
        svg = svg.replace(value, f"var(--{colour}, {value})")
    width, tall = math.ceil(72 * WIDTH), math.ceil(72 * height)
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
    head += f'viewBox="0 0 {width} {tall}" font-family="system-ui, sans-serif"><title>{escape(title)}</title>'
    return head + re.sub(r"\s*\n\s*", "\n", svg[svg.index(">", svg.index("<svg")) + 1 :]).strip()
