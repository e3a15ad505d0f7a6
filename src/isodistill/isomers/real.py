"""Groups of isomers in public data sets: the same logic in other words, or with other names and numbers.

What a group is differs from set to set:

- ``prontoqa_isomers``: one deduction told with several vocabularies, so a group is an isomer set (``set_id``) and the
  vocabulary, ``meta.surface``, is the domain.
- ``gsm_symbolic``: one template with other names and numbers; without equal values it is no isomer set but a structure
  (``structure_id``).
- ``coin_flip``: one pattern of flips with other first names. All members are told in the same words, so there are no
  domains to align, and a group is a structure as well.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from isodistill.data.load import QUESTION_COLUMNS, TEMPLATE_COLUMNS, load_rows
from isodistill.data.rows import Row
from isodistill.errors import UserError

__all__ = ["SOURCES", "import_groups"]

SOURCES: dict[str, dict[str, str]] = {
    "prontoqa_isomers": {**QUESTION_COLUMNS, "structure_id": "group", "domain": "meta.surface"},
    "gsm_symbolic": TEMPLATE_COLUMNS,
    "coin_flip": TEMPLATE_COLUMNS,
}
"""Data set -> how its columns are read: our column -> theirs."""

_SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def import_groups(name: str, folder: Path) -> list[Row]:
    """All items of a data set as rows, grouped as this module says.

    The files are ``folder/name/train.jsonl.gz``, ``dev`` and ``test``, as far as they exist; rows keep their split, dev
    under the name valid. Options are listed below the question, and the completion is the item's rationale with
    "The answer is X." after it. Structures are named "<data set>/<group>"; rows that are not told in domains have none.

    Args:
        name: a name from ``SOURCES``.
        folder: the folder that holds the data sets.

    Raises:
        UserError: unknown name, no files, or an item that cannot be read, with its file and line.
    """
    if name not in SOURCES:
        raise UserError(f"no import for the data set {name!r}; there is one for {', '.join(SOURCES)}")
    files = {split: path for stem, split in _SPLITS.items() if (path := folder / name / f"{stem}.jsonl.gz").exists()}
    if not files:
        raise UserError(f"no data set {name} in {folder}: expected files such as {folder / name / 'train.jsonl.gz'}")
    columns = SOURCES[name]
    return [
        replace(
            row,
            structure_id=f"{name}/{row.structure_id}",
            domain=row.domain if "domain" in columns else None,
            split=split,
        )
        for split, path in files.items()
        for row in load_rows(path, columns, max_refused=0.0).rows
    ]
