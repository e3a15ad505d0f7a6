"""The traces that a student learned from, where teachers were asked for them in the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isodistill.report.run import read_if_there
from isodistill.report.tables import DASH, Cell, Row, Table

__all__ = ["Taught", "read_taught"]

_OTHERS = {
    "wrong": "wrong answer",
    "bad_step": "a wrong sum",
    "truncated": "cut off",
    "unparsed": "no final answer",
    "other_language": "another language",
    "unverified": "not verified",
}


@dataclass(frozen=True)
class Taught:
    """What the page says of them: requests and money, the table of verdicts, sentences, an example of each verdict."""

    asked: str
    table: Table
    notes: list[str]
    examples: Mapping[str, str]


def read_taught(folder: Path) -> Taught | None:
    """``taught/teach.json`` of a run folder; None where no teacher was asked.

    Raises:
        UserError: the file is damaged.
    """
    numbers = read_if_there(folder / "taught" / "teach.json", "isodistill teach")
    if numbers is None:
        return None
    asked = f"{numbers['answered']} of {numbers['requests']} requests were answered, {numbers['refused']} refused"
    if numbers["completion_tokens"] is not None:
        asked += f"; {numbers['prompt_tokens']} tokens of prompts, {numbers['completion_tokens']} of answers"
    if numbers["cost"] is not None:
        asked += f"; {numbers['cost']:.4f} in money"
    kinds = [kind for kind in _OTHERS if kind in numbers["all"]["verdicts"]]
    rows = [_row("All traces", numbers["all"], kinds)]
    rows += [_row(name, one, kinds) for name, one in numbers["by_domain"].items()]
    rows += [_row(name, one, kinds) for name, one in numbers["by_teacher"].items()]
    notes = [
        f"{pair}: their answers differ in {one['differ']} of {one['problems']} problems."
        for pair, one in numbers["disagreement"].items()
        if one["problems"]
    ]
    columns = ["traces", "correct, %", *(_OTHERS[kind] for kind in kinds), "words"]
    return Taught(f"{asked}.", Table(columns, rows), notes, {_OTHERS[k]: e for k, e in numbers["examples"].items()})


def _row(name: str, one: Mapping[str, Any], kinds: list[str]) -> Row:
    share = DASH if one["yield"] is None else f"{100 * one['yield']:.1f}"
    words = DASH if one["mean_words"] is None else f"{one['mean_words']:.0f}"
    counts = [Cell(str(one["verdicts"].get(kind, 0))) for kind in kinds]
    return Row(name, "", [Cell(str(one["traces"])), Cell(share), *counts, Cell(words)])
