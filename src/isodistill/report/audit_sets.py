"""The page of an audit of isomer sets: how alike members are to their set, and those that are flagged beside others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isodistill.report.html import page_template
from isodistill.report.plots import histogram

__all__ = ["write_set_audit_page"]

_N_SHOWN = 30


def write_set_audit_page(
    summary: Mapping[str, Any],
    similarities: Sequence[float],
    flagged: Sequence[Mapping[str, Any]],
    *,
    command: str,
    out: Path,
) -> None:
    """Write the page; the same audit gives the same bytes.

    Args:
        summary: ``model``, ``n_sets``, ``flag``, ``n_longer`` and ``context``.
        similarities: of all members to their set.
        flagged: the members, the least alike first: ``id``, ``set_id``, ``domain``, ``text``, ``similarity``,
            ``reader`` (what the check says of the set), ``n_others`` and some ``others`` of the set.
        command: shown at the end.
        out: the file.
    """
    marks = [(flagged[-1]["similarity"], f"lowest {100 * summary['flag']:g} %")] if flagged else []
    plot = histogram(
        {"members": similarities},
        marks=marks,
        name="similarities",
        title="Similarity of all members to their set",
        label="mean cosine to the others of the set",
        counted="members",
    )
    page = page_template("audit_sets.html.j2").render(
        summary=summary,
        n_members=len(similarities),
        n_flagged=len(flagged),
        flagged=flagged[:_N_SHOWN],
        plot=plot,
        command=command,
    )
    out.write_text(page, encoding="utf-8", newline="\n")
