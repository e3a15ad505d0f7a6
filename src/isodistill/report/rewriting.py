"""The page about a rewriting: how many sets hold, why the others do not, and examples of both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from isodistill.data.rows import Row as Problem
from isodistill.isomers.rewrite import Rewriting
from isodistill.report.html import page_template
from isodistill.report.tables import Cell, Row, Table

__all__ = ["write_rewriting_page"]

_N_SETS = 5


def write_rewriting_page(made: Rewriting, *, command: str, out: Path) -> None:
    """Write the page; the same rewriting gives the same bytes."""
    sets: dict[str, list[Problem]] = {}
    for row in made.rows:
        sets.setdefault(str(row.set_id), []).append(row)
    first = {attempt.reason: attempt for attempt in reversed([*made.attempts, *made.rejected.values()])}
    page = page_template("rewriting.html.j2").render(
        n_problems=made.n_problems,
        n_accepted=made.n_problems - len(made.rejected),
        rate=f"{100 * made.rejection_rate:.1f} %",
        reasons=_reasons(made),
        examples=[first[row.label] for row in _reasons(made).rows],
        sets=list(sets.items())[:_N_SETS],
        command=command,
    )
    out.write_text(page, encoding="utf-8", newline="\n")


def _reasons(made: Rewriting) -> Table:
    """Reason -> sets that it cost, and texts refused for it, those that a repair saved among them."""
    texts = Counter(attempt.reason for attempt in made.attempts)
    sets = Counter(attempt.reason for attempt in made.rejected.values())
    rows = [Row(name, "", [Cell(str(sets[name])), Cell(str(count))]) for name, count in texts.most_common()]
    return Table(["sets rejected", "texts refused"], rows)
