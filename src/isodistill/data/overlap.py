"""Training rows that repeat evaluation rows: found before training, by whole prompts and by runs of words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from isodistill.data.rows import Row

__all__ = ["Match", "Overlaps", "find_overlaps"]

_LEAST_WORDS = 5
"""Shortest run of words that can show an overlap; shorter prompts are compared whole."""


@dataclass(frozen=True)
class Match:
    """A training row and an evaluation row that share text.

    Attributes:
        train_id: id of the training row.
        split: evaluation set of the other.
        eval_id: id of the first evaluation row that matches.
        shared: the shared words; the whole prompt where the prompts are equal.
    """

    train_id: str
    split: str
    eval_id: str
    shared: str


@dataclass(frozen=True)
class Overlaps:
    """What was found.

    Attributes:
        n: longest run of words that was asked for.
        n_train: training rows.
        n_eval: evaluation set -> its rows.
        exact: one match per (training row, evaluation set) with equal prompts, after normalisation.
        ngram: likewise for rows that share a run of words but not the whole prompt.
    """

    n: int
    n_train: int
    n_eval: Mapping[str, int]
    exact: tuple[Match, ...]
    ngram: tuple[Match, ...]

    @property
    def rows(self) -> frozenset[str]:
        """Ids of all training rows with an overlap."""
        return frozenset(match.train_id for match in (*self.exact, *self.ngram))


def find_overlaps(train: Sequence[Row], evaluation: Mapping[str, Iterable[Row]], *, n: int = 13) -> Overlaps:
    """Compare every training row (prompt and completion) with the prompts of evaluation sets.

    Texts are compared as words: NFKC, lower case, without punctuation. A row overlaps when its prompt is the other's
    (exact), or when ``n`` words in a row stand in both. A prompt of fewer than ``n`` words is looked for as a whole;
    one of fewer than five only as the whole prompt.

    Args:
        train: rows to train on.
        evaluation: name -> rows.
        n: words in a row; 13 after GPT-3 (arXiv 2005.14165).

    Raises:
        ValueError: n is below 5, where chance phrases would count.
    """
    if n < _LEAST_WORDS:
        raise ValueError(f"n = {n}; a run of fewer than {_LEAST_WORDS} words is shared by chance")
    exact: list[Match] = []
    ngram: list[Match] = []
    n_eval = {}
    texts = [(row.id, _words(_text(row)), _words(_text(row) + "\n" + (row.completion or ""))) for row in train]
    for split, rows in evaluation.items():
        wholes, runs, n_eval[split] = _index(rows, n)
        sizes = sorted({len(run) for run in runs}, reverse=True)
        for train_id, prompt, words in texts:
            if prompt in wholes:
                exact.append(Match(train_id, split, wholes[prompt], " ".join(prompt)))
            elif (run := _first_shared(words, runs, sizes)) is not None:
                ngram.append(Match(train_id, split, runs[run], " ".join(run)))
    return Overlaps(n, len(train), n_eval, tuple(exact), tuple(ngram))


_Words = tuple[str, ...]


def _index(rows: Iterable[Row], n: int) -> tuple[dict[_Words, str], dict[_Words, str], int]:
    """Whole prompts and runs of words, each with the first row that has it; and the number of rows."""
    wholes: dict[_Words, str] = {}
    runs: dict[_Words, str] = {}
    rows = list(rows)
    for row in rows:
        words = _words(_text(row))
        wholes.setdefault(words, row.id)
        size = min(n, len(words))
        if size >= _LEAST_WORDS:
            for start in range(len(words) - size + 1):
                runs.setdefault(words[start : start + size], row.id)
    return wholes, runs, len(rows)


def _first_shared(words: _Words, runs: Mapping[_Words, str], sizes: Sequence[int]) -> _Words | None:
    for size in sizes:
        for start in range(len(words) - size + 1):
            if words[start : start + size] in runs:
                return words[start : start + size]
    return None


def _text(row: Row) -> str:
    return row.prompt if isinstance(row.prompt, str) else "\n".join(message["content"] for message in row.prompt)


def _words(text: str) -> _Words:
    return tuple(re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower()))
