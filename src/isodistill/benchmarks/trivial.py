"""What no reasoning reaches: the most frequent answer, and naive Bayes over the words of the prompt.

Both learn from the training rows of the same kind (answer type and number of options) and know nothing of domains. A
benchmark counts for a student where its ERM is clearly above both.

Multinomial naive Bayes with add-one smoothing (Manning, Raghavan and Schuetze 2008, chapter 13): with n_cw the
occurrences of word w in the training prompts with answer c, V the number of words, N_c prompts of N,

    argmax_c  log N_c / N + sum_{w in prompt} log (n_cw + 1) / (sum_w n_cw + V)
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from isodistill.data.rows import ANSWER_SENTENCE, NO_DOMAIN, Row
from isodistill.evaluation import Record, acc_macro, canon, parse_answer, verify

__all__ = ["trivial_answers", "trivial_records", "trivial_scores"]

_Kind: TypeAlias = tuple[str | None, int]


def trivial_answers(train: Sequence[Row], test: Sequence[Row]) -> dict[str, list[str | None]]:
    """``majority`` and ``naive_bayes`` -> an answer to every test row; None where no training row is of its kind.

    Ties go to the answer that sorts first.
    """
    by_kind: dict[_Kind, list[Row]] = defaultdict(list)
    for row in train:
        by_kind[_kind(row)].append(row)
    models = {kind: _NaiveBayes(rows) for kind, rows in by_kind.items()}
    found = [models.get(_kind(row)) for row in test]
    return {
        "majority": [None if model is None else model.majority for model in found],
        "naive_bayes": [None if model is None else model.answer(row) for model, row in zip(found, test, strict=True)],
    }


def trivial_records(rows: Sequence[Row], records: Sequence[Record]) -> dict[str, list[Record]]:
    """``majority`` and ``naive_bayes`` -> the records of a run, had its student given these answers.

    Args:
        rows: of the benchmark, all splits; those of train are learned from.
        records: of one run and one stage, to the rows of the test splits.
    """
    by_item = {(row.split, row.id): row for row in rows}
    test = [by_item[record.split, record.item_id] for record in records]
    answers = trivial_answers([row for row in rows if row.split == "train"], test)
    return {name: [_said(*each) for each in zip(records, test, given, strict=True)] for name, given in answers.items()}


def trivial_scores(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Split -> baseline -> accuracy (mean of the domains), for every split but train."""
    train = [row for row in rows if row.split == "train"]
    scores: dict[str, dict[str, float]] = {}
    for split in dict.fromkeys(row.split for row in rows if row.split not in (None, "train")):
        test = [row for row in rows if row.split == split]
        domains = [row.domain or NO_DOMAIN for row in test]
        scores[str(split)] = {
            name: round(acc_macro([_right(*pair) for pair in zip(test, answers, strict=True)], domains), 6)
            for name, answers in trivial_answers(train, test).items()
        }
    return scores


def _said(record: Record, row: Row, answer: str | None) -> Record:
    text = "" if answer is None else ANSWER_SENTENCE.format(answer=answer)
    parsed = parse_answer(text, record.answer_type, row.choices)
    return replace(
        record,
        output=text,
        parsed=parsed,
        canon_parsed=canon(parsed, record.answer_type, row.choices),
        outcome=verify(text, record.gold, record.answer_type, row.choices),
        pi=None,
    )


def _right(row: Row, answer: str | None) -> bool:
    assert row.answer is not None
    assert row.answer_type is not None
    said = "" if answer is None else ANSWER_SENTENCE.format(answer=answer)
    return verify(said, row.answer, row.answer_type, row.choices) == "correct"


def _kind(row: Row) -> _Kind:
    return row.answer_type, len(row.choices or ())


def _words(row: Row) -> list[str]:
    return re.findall(r"\w+", str(row.prompt).casefold())


class _NaiveBayes:
    """Counts of the training rows of one kind."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.prior = Counter(str(row.answer) for row in rows)
        self.words: dict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            self.words[str(row.answer)].update(_words(row))
        self.vocabulary = {word for counts in self.words.values() for word in counts}
        self.total = {answer: sum(counts.values()) for answer, counts in self.words.items()}

    @property
    def majority(self) -> str:
        return min(self.prior, key=lambda answer: (-self.prior[answer], answer))

    def answer(self, row: Row) -> str:
        known = Counter(word for word in _words(row) if word in self.vocabulary)
        size = len(self.vocabulary)

        def score(answer: str) -> float:
            likelihood = sum(
                n * math.log((self.words[answer][word] + 1) / (self.total[answer] + size)) for word, n in known.items()
            )
            return math.log(self.prior[answer]) + likelihood

        return min(self.prior, key=lambda answer: (-score(answer), answer))
