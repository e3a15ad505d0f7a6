"""Pairs of texts from files, for contrastive models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isodistill.data.files import Record, Refusal, read_records
from isodistill.errors import UserError

__all__ = ["Pair", "find_duplicates", "load_pairs", "refuse_shared"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts that are said to belong together; ``id`` is the row's own, else its file and line."""

    id: str
    a: str
    b: str
    line: int

    @property
    def key(self) -> tuple[str, str]:
        """The texts without case and repeated spaces: pairs with the same key are the same."""
        return " ".join(self.a.casefold().split()), " ".join(self.b.casefold().split())


def load_pairs(path: Path) -> list[Pair]:
    """The rows {"a": text, "b": text, "id"?} of a file.

    Raises:
        UserError: the file cannot be read or holds no rows, or a row lacks a column; names file, line and column.
    """
    pairs: list[Pair] = []
    refused: list[Refusal] = []
    for item in read_records(path):
        taken = item if isinstance(item, Refusal) else _pair(item)
        if isinstance(taken, Refusal):
            refused.append(taken)
        else:
            pairs.append(taken)
    if refused:
        more = f"; {len(refused) - 1} further rows are at fault, too" if len(refused) > 1 else ""
        raise UserError(f'{refused[0]}{more}. A row of pairs is {{"a": text, "b": text}}, with an id if you like.')
    return pairs


def _pair(record: Record) -> Pair | Refusal:
    for column in ("a", "b"):
        text = record.fields.get(column)
        if not isinstance(text, str) or not text.strip():
            found = "is missing" if column not in record.fields else f"holds {text!r}"
            return Refusal(record.source, record.line, column, f"{found}; expected a text")
    name = record.fields.get("id")
    return Pair(record.where if name is None else str(name), record.fields["a"], record.fields["b"], record.line)


def find_duplicates(pairs: Sequence[Pair]) -> list[list[str]]:
    """Ids of the pairs with the same texts, a list for every group of two or more."""
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
