"""Plots as SVG: well-formed, deterministic, themed by the page, every number where it belongs."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from isodistill.report import plots
from isodistill.report.run import Estimate

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"
HOSTILE = 'a <script>alert("$x$")</script> & b'

DRAWINGS: dict[str, Callable[[str], str]] = {
    "differences": lambda name: plots.differences([(HOSTILE, Estimate(0.1, -0.1, 0.3))], name=name, title=HOSTILE),
    "accuracies": lambda name: plots.accuracies(
        ["law", HOSTILE],
        [("ERM", "baseline", {"law": Estimate(0.2, 0.1, 0.3)}), ("IGA", "method", {HOSTILE: Estimate(0.4)})],
        name=name,
        title=HOSTILE,
    ),
    "consistency": lambda name: plots.accuracy_consistency(
        [(HOSTILE, "method", 0.5, Estimate(0.4, 0.3, 0.5)), (HOSTILE, "method", 0.6, Estimate(0.45))],
        name=name,
        title=HOSTILE,
    ),
    "curves": lambda name: plots.curves(
        {HOSTILE: ([1, 2, 3], [0.5, math.nan, 0.3]), "law": ([1, 2], [1.0, 0.9])},
        ylabel="loss",
        name=name,
        title=HOSTILE,
        roles={HOSTILE: "method"},
    ),
    "heat_map": lambda name: plots.heat_map(
        [HOSTILE, "after law"], ["law", HOSTILE], [[0.25, None], [0.9]], name=name, title=HOSTILE
    ),
}
drawing = pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())


@drawing
def test_svg_is_well_formed_and_shows_hostile_labels_as_text(draw: Callable[[str], str]) -> None:
    root = ET.fromstring(draw("p"))
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title").text == HOSTILE
    assert not list(root.iter(f"{SVG}script"))
    shown = " ".join("".join(node.itertext()) for node in root.iter(f"{SVG}text"))
    assert "<script>" in shown
    assert "$x$" in shown


@drawing
def test_same_numbers_same_bytes(draw: Callable[[str], str]) -> None:
    assert draw("p") == draw("p")


@drawing
def test_ids_are_unique_over_plots_and_every_reference_has_its_target(draw: Callable[[str], str]) -> None:
    ids = []
    for name in ("one", "two"):
        root = ET.fromstring(draw(name))
        own = [node.get("id") for node in root.iter() if node.get("id")]
        references = [node.get(f"{XLINK}href") for node in root.iter() if node.get(f"{XLINK}href")]
        references += re.findall(r"url\((#[^)]*)\)", draw(name))
        assert {reference.removeprefix("#") for reference in references} <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


@drawing
def test_every_colour_can_be_set_by_the_page(draw: Callable[[str], str]) -> None:
    without_variables = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)", "", draw("p"))
    styles = " ".join(re.findall(r'(?:style|fill|stroke)="([^"]*)"', without_variables))
    assert "#" not in re.sub(r"url\(#[^)]*\)", "", styles)


@drawing
def test_nothing_of_the_clock_or_the_machine_is_left(draw: Callable[[str], str]) -> None:
    svg = draw("p")
    assert "metadata" not in svg
    assert "atplotlib" not in svg.replace("matplotlib.axis", "")
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"]


def test_a_value_that_is_not_finite_breaks_the_line() -> None:
    def pieces(values: list[float]) -> int:
        svg = plots.curves({"x": ([1, 2, 3, 4, 5], values)}, ylabel="y", name="p", title="t")
        axes = next(node for node in ET.fromstring(svg).iter() if node.get("id") == "p-axes_1")
        paths = [node.get("d") for node in axes.iter(f"{SVG}path") if "var(--c1" in node.get("style", "")]
        return sum(d.count("M") for d in paths)

    assert pieces([5, 4, 3, 2, 1]) == 1
    assert pieces([5, 4, math.nan, 2, 1]) == 2


def test_intervals_are_drawn_to_scale() -> None:
    """The horizontal extent of an interval is proportional to its width, and the dot sits in the right place."""
    rows = [("wide", Estimate(0.1, -0.1, 0.3)), ("narrow", Estimate(0.2, 0.1, 0.3))]
    root = ET.fromstring(plots.differences(rows, name="p", title="t"))
    bars = [node.get("d") for node in root.iter(f"{SVG}path") if "round" in node.get("style", "")]
    spans = []
    for d in bars:
        xs = [float(x) for x in re.findall(r"[ML] ([-\d.]+)", d)]
        spans.append((min(xs), max(xs)))
    assert len(spans) == 2
    (wide_lo, wide_hi), (narrow_lo, narrow_hi) = spans
    assert wide_hi == pytest.approx(narrow_hi, abs=0.01)
    assert wide_hi - wide_lo == pytest.approx(2 * (narrow_hi - narrow_lo), rel=1e-3)
