"""Pairs of two texts, or of an image and its caption, from files, for contrastive models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isodistill.data.files import Record, Refusal, read_records
from isodistill.errors import UserError

__all__ = ["Pair", "find_duplicates", "load_pairs", "refuse_shared"]

_KINDS = {False: ("a", "b"), True: ("image", "caption")}
"""Whether the first items are images -> the columns of a pair."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two items that are said to belong together.

    Attributes:
        id: the row's own, else its file and line.
        a: a text, or the path of an image.
        b: a text.
        line: in its file.
        image: ``a`` is the path of an image.
        planted: whether the pair is known to be wrong, in a study; None where nothing is known.
        fields: the whole row, as it stood in the file.
    """

    id: str
    a: str
    b: str
    line: int
    image: bool
    planted: bool | None
    fields: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """The texts without case and repeated spaces, and the path of an image: equal for the same pair."""
        return self.a if self.image else _plain(self.a), _plain(self.b)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def load_pairs(path: Path) -> list[Pair]:
    """The rows {"a": text, "b": text} or {"image": path, "caption": text} of a file; "id" and "planted" are optional.

    The path of an image is relative to the folder of the file. Whether the image is there is seen when it is read.

    Raises:
        UserError: the file cannot be read, holds no rows or both kinds of them, or a row lacks a column; names file,
            line and column.
    """
    pairs: list[Pair] = []
    refused: list[Refusal] = []
    for item in read_records(path):
        taken = item if isinstance(item, Refusal) else _pair(item, path.parent)
        if isinstance(taken, Refusal):
            refused.append(taken)
        else:
            pairs.append(taken)
    if refused:
        more = f"; {len(refused) - 1} further rows are at fault, too" if len(refused) > 1 else ""
        raise UserError(
            f'{refused[0]}{more}. A row of pairs is {{"a": text, "b": text}} or {{"image": path, "caption": text}}, '
            "with an id if you like."
        )
    other = next((pair for pair in pairs if pair.image != pairs[0].image), None)
    if other is not None:
        first, second = ("image and caption" if pair.image else "texts" for pair in (pairs[0], other))
        raise UserError(
            f"{path} begins with a pair of {first}, but line {other.line} holds one of {second}: "
            "put the two kinds into files of their own."
        )
    return pairs


def _pair(record: Record, folder: Path) -> Pair | Refusal:
    image = "image" in record.fields
    for column in _KINDS[image]:
        text = record.fields.get(column)
        if not isinstance(text, str) or not text.strip():
            found = "is missing" if column not in record.fields else f"holds {text!r}"
            expected = "the path of an image" if column == "image" else "a text"
            return Refusal(record.source, record.line, column, f"{found}; expected {expected}")
    planted = record.fields.get("planted")
    if planted is not None and not isinstance(planted, bool):
        return Refusal(record.source, record.line, "planted", f"holds {planted!r}; expected true or false")
    name = record.fields.get("id")
    a, b = (record.fields[column] for column in _KINDS[image])
    return Pair(
        id=record.where if name is None else str(name),
        a=str(folder / a) if image else a,
        b=b,
        line=record.line,
        image=image,
        planted=planted,
        fields=record.fields,
    )


def find_duplicates(pairs: Sequence[Pair]) -> list[list[str]]:
    """Ids of the pairs with the same items, a list for every group of two or more."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for pair in pairs:
        groups[pair.key].append(pair.id)
    return [ids for ids in groups.values() if len(ids) > 1]


def refuse_shared(pairs: Sequence[Pair], queries: Sequence[Pair], names: tuple[Path, Path]) -> None:
    """Queries judge the pairs, so none may be one of them.

    Raises:
        UserError: a query is among the pairs; counts them and names the first, by file and line.
    """
    lines = {pair.key: pair.line for pair in pairs}
    shared = [query for query in queries if query.key in lines]
    if shared:
        first = shared[0]
        raise UserError(
            f"{len(shared)} of {len(queries)} queries are among the pairs that they judge: {names[1]}, "
            f"line {first.line}, is {names[0]}, line {lines[first.key]}. Take these rows out of one of the two files."
        )
