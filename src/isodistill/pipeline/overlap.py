"""Overlap of training rows with evaluation rows: counted, told and written down before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from isodistill.data.files import write_lines
from isodistill.data.load import load_rows
from isodistill.data.overlap import Overlaps, find_overlaps
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.recipe import Recipe

__all__ = ["without_overlaps"]

_LISTED = 20


def without_overlaps(recipe: Recipe, rows: list[Row], path: Path, what: str = "training rows") -> list[Row]:
    """The rows as they are, or with ``overlap.drop`` those whose training set repeats nothing that is evaluated.

    The counts, the first twenty matches and how many rows were dropped go to ``path``. A row that is dropped takes its
    isomer set with it, for the rest of the set could not be aligned.

    Args:
        recipe: its group ``overlap``.
        rows: of all splits.
        path: the file of the counts.
        what: the rows that are compared, in words.

    Raises:
        UserError: a file of ``overlap.against`` cannot be read, or every row would be dropped.
    """
    train = [row for row in rows if (row.split or "train") == "train"]
    evaluation: dict[str, list[Row]] = {}
    for row in rows:
        if row.split not in (None, "train", "valid"):
            evaluation.setdefault(row.split, []).append(row)
    columns = recipe.columns if recipe.overlap.columns is None else recipe.overlap.columns
    for name in recipe.overlap.against:
        evaluation[name] = load_rows(name, columns, max_refused=recipe.max_refused).rows
    found = find_overlaps(train, evaluation, n=recipe.overlap.n)
    sets = {row.set_id for row in train if row.id in found.rows and row.set_id is not None}
    overlapping = {row.id for row in train if row.id in found.rows or row.set_id in sets}
    dropped = overlapping if recipe.overlap.drop else set()
    if train and len(dropped) == len(train):
        raise UserError(
            f"overlap.drop leaves no row to train on: all {len(train)} rows, or their sets, share {found.n} words in a "
            "row with an evaluation set. Raise overlap.n, or set overlap.drop to false."
        )
    _tell(found, len(dropped), what)
    write_lines(path, [json.dumps(_summary(found, len(dropped)), ensure_ascii=False)])
    return [row for row in rows if row.id not in dropped or (row.split or "train") != "train"]


def _summary(found: Overlaps, n_dropped: int) -> dict[str, object]:
    matches = [*found.exact, *found.ngram]
    return {
        "n": found.n,
        "n_train": found.n_train,
        "n_dropped": n_dropped,
        "sets": {
            split: {
                "n_rows": n_rows,
                "exact": sum(match.split == split for match in found.exact),
                "ngram": sum(match.split == split for match in found.ngram),
            }
            for split, n_rows in found.n_eval.items()
        },
        "matches": [asdict(match) for match in matches[:_LISTED]],
    }


def _tell(found: Overlaps, n_dropped: int, what: str) -> None:
    if not found.n_eval:
        print(f"{found.n_train} {what}: there is no evaluation set to compare them with", flush=True)
        return
    rows = f"{len(found.rows)} of {found.n_train} {what} share text with an evaluation set"
    names: Sequence[str] = sorted({match.split for match in (*found.exact, *found.ngram)})
    where = f" ({', '.join(names)}; the same prompt: {len({m.train_id for m in found.exact})})" if names else ""
    dropped = f"; {n_dropped} rows are left out with their sets" if n_dropped else ""
    print(f"{rows}, {found.n} words in a row{where}{dropped}", flush=True)
