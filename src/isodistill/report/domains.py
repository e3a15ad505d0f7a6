"""How far training domains, unseen ones and the target lie apart in a student's features: fresh probes, t-SNE maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isodistill.report import plots
from isodistill.report.figures import Figure
from isodistill.report.run import read_if_there
from isodistill.report.study import Study
from isodistill.report.tables import Cell, Row, Table

__all__ = ["Apart", "read_apart"]

_NAMES = {"id": "training domains", "ood": "unseen domains", "target": "target questions"}


@dataclass(frozen=True)
class Apart:
    """What the page says: questions of every side, the probes of every student, a map of every student."""

    n: int
    table: Table
    figures: list[Figure]


def read_apart(study: Study) -> Apart | None:
    """``domains/STAGE.json`` of the runs; None where the runs have no target.

    Raises:
        UserError: a file is damaged.
    """
    asked = [("before training", study.run.path, "before")]
    asked += [(label, run.path, "after") for label, run in study.runs]
    files = ((label, path / "domains" / f"{stage}.json") for label, path, stage in asked)
    read = ((label, read_if_there(file, "isodistill evaluate")) for label, file in files)
    found = [(label, one) for label, one in read if one is not None]
    if not found:
        return None
    sides = list(found[0][1]["probes"])
    rows = [Row(label, "", [_share(one["probes"].get(side)) for side in sides]) for label, one in found]
    figures = [_map(i, label, one) for i, (label, one) in enumerate(found)]
    return Apart(found[0][1]["n"], Table([f"{_NAMES[side]}, % right" for side in sides], rows), figures)


def _share(right: float | None) -> Cell:
    return Cell("" if right is None else f"{100 * right:.1f}")


def _map(number: int, label: str, one: dict[str, Any]) -> Figure:
    groups = {_NAMES[side]: points for side, points in one["points"].items()}
    svg = plots.scatter(groups, name=f"features-{number}", title=f"t-SNE of the features: {label}")
    told = (f"{100 * share:.0f} % against {_NAMES[side]}" for side, share in one["probes"].items())
    return Figure(label, svg, f"A fresh probe is right on {' and '.join(told)}.")
