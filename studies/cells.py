"""Cells of the tables that studies write from their records."""

from __future__ import annotations

from typing import Any


def mean_cell(record: dict[str, Any] | None) -> str:
    """Mean and standard deviation over seeds; a dash where there is none."""
    if record is None or record["mean"] is None:
        return "-"
    return f"{record['mean']:.3f}" + ("" if record["sd"] is None else f" ± {record['sd']:.3f}")


def difference_cell(record: dict[str, Any], rival: str) -> str:
    """The paired difference to a rival with its interval; a dash where there is none."""
    found = record["diff_to"].get(rival)
    return "-" if found is None else f"{found[0]:+.3f} ({found[1]:+.3f} to {found[2]:+.3f})"
