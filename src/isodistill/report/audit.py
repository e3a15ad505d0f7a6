"""The page of an audit: the scores, what leaving pairs out gains, a mistake with its causes, and the worst pairs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from isodistill.data.files import Refusal
from isodistill.report.html import page_template
from isodistill.report.plots import curves, histogram

__all__ = ["write_audit_page"]

_N_WORST = 30
_N_UNREAD = 30
_ROUGH = 0.1  # residual of a solve above which the page says so
_THUMBNAIL = 128  # pixels of the longer side
_RANKINGS = {"score": "lowest score", "similarity": "lowest similarity", "random": "random"}


def write_audit_page(
    summary: Mapping[str, Any],
    ranked: Sequence[Mapping[str, Any]],
    unread: Sequence[Refusal],
    *,
    command: str,
    out: Path,
) -> None:
    """Write the page; the same audit gives the same bytes.

    Args:
        summary: what stands in ``audit.json``.
        ranked: the lines of ``audit-pairs.jsonl``, the most suspicious first.
        unread: the rows that could not be read.
        command: shown at the end.
        out: the file.
    """
    page = page_template("audit.html.j2").render(
        summary=summary,
        n_out=sum(not pair["keep"] for pair in ranked),
        worst=ranked[:_N_WORST],
        unread=unread[:_N_UNREAD],
        n_unread=len(unread),
        scores=_scores(summary, ranked),
        removal=_removal(summary["removal"]),
        thumbnail=_thumbnail,
        rough=_ROUGH,
        command=command,
    )
    out.write_text(page, encoding="utf-8", newline="\n")


def _scores(summary: Mapping[str, Any], ranked: Sequence[Mapping[str, Any]]) -> str:
    """The histogram: planted pairs apart where they are known, a line at the end of the share that is not kept."""
    n_out = sum(not pair["keep"] for pair in ranked)
    groups = {"pairs": [pair["score"] for pair in ranked]}
    if summary["planted"] is not None:
        groups = {
            "other pairs": [pair["score"] for pair in ranked if not pair["planted"]],
            f"{summary['planted']['n_planted']} planted": [pair["score"] for pair in ranked if pair["planted"]],
        }
    return histogram(
        groups,
        marks=[(ranked[n_out - 1]["score"], f"lowest {100 * summary['remove']:g} %")] if n_out else [],
        name="scores",
        title="Scores of all pairs",
        label="influence; left of 0 is harmful",
        counted="pairs",
    )


def _removal(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Title and plot of the loss and of the accuracy of the judging queries, against the share left out."""
    if found is None:
        return []
    shares = [100 * share for share in found["shares"]]
    plots = []
    for key, title, label_y, factor in (
        ("loss", "Loss on the queries", "loss", 1),
        ("accuracy", "Queries that find their own second item", "queries, %", 100),
    ):
        series = {label: (shares, [factor * y for y in found[name][key]]) for name, label in _RANKINGS.items()}
        svg = curves(series, ylabel=label_y, xlabel="pairs left out, %", name=f"removal-{key}", title=title)
        plots.append((title, svg))
    return plots


def _thumbnail(path: str) -> str:
    """A small copy of an image as a data URI; tiny images stay as they are and are enlarged by the page."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    small.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
