"""The page of an audit: the most suspicious pairs with their texts, and where the scores lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isodistill.report.html import page_template
from isodistill.report.plots import histogram

__all__ = ["write_audit_page"]

_N_WORST = 30


def write_audit_page(
    summary: Mapping[str, Any], ranked: Sequence[Mapping[str, Any]], *, command: str, out: Path
) -> None:
    """Write the page; the same audit gives the same bytes.

    Args:
        summary: what stands in ``audit.json``.
        ranked: the lines of ``audit-pairs.jsonl``, the most suspicious first.
        command: shown at the end.
        out: the file.
    """
    n_out = sum(not pair["keep"] for pair in ranked)
    plot = histogram(
        [pair["score"] for pair in ranked],
        marks=[(ranked[n_out - 1]["score"], f"lowest {100 * summary['remove']:g} %")] if n_out else [],
        name="scores",
        title="Scores of all pairs",
        label="relative influence; left of 0 is harmful",
    )
    page = page_template("audit.html.j2").render(
        summary=summary, n_out=n_out, worst=ranked[:_N_WORST], plot=plot, command=command
    )
    out.write_text(page, encoding="utf-8", newline="\n")
