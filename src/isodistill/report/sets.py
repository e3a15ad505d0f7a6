"""Isomer sets with the answers of two students side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from isodistill.report.run import Run, ordered_splits

__all__ = ["Answer", "IsomerSet", "Member", "isomer_sets"]

N_SETS = 10
TEXT_LIMIT = 1_500  # characters of one prompt or output
TOTAL_LIMIT = 500_000  # characters of all of them, so that the page stays a file to send by mail
MARKS = {
    "correct": ("✓", "right"),
    "wrong": ("✗", "wrong"),
    "truncated": ("…", "unfinished"),
    "unparsed": ("?", "no answer found"),
}

Student = tuple[str, Run, str]
"""Label, run and stage: who answers in one column."""


@dataclass(frozen=True)
class Answer:
    """What one student wrote: the text, how many characters were cut off, the parsed answer and the verdict."""

    text: str
    cut: int
    parsed: str | None
    sign: str
    mark: str
    outcome: str


@dataclass(frozen=True)
class Member:
    """One problem of a set with one answer per student; None where a student has no record of it."""

    domain: str
    prompt: str
    cut: int
    gold: str
    answers: list[Answer | None]


@dataclass(frozen=True)
class IsomerSet:
    """Problems that share one structure and the same values."""

    split: str
    set_id: str
    members: list[Member]


def isomer_sets(students: Sequence[Student]) -> list[IsomerSet]:
    """Ten different sets, picked by a hash of their id, so never by how they turned out; the splits take turns.

    A row without a set stands as a set of one. Texts longer than 1,500 characters are cut, and say so.

    Args:
        students: (label, run, stage) of each column; the sets are picked from the records of the last one.
    """
    _, run, stage = students[-1]
    queues = [_ranked_sets(split, run.records.get((stage, split), {})) for split in ordered_splits(run.results)]
    turns = chain.from_iterable(zip_longest(*queues))
    distinct: dict[str, tuple[str, str, list[dict[str, Any]]]] = {}
    for turn in turns:  # one set may be told in trained domains in one split and in held-out ones in another
        if turn is not None:
            distinct.setdefault(turn[1], turn)
    picked = list(distinct.values())[:N_SETS]
    n_texts = sum(len(items) for _, _, items in picked) * (1 + len(students))
    limit = min(TEXT_LIMIT, TOTAL_LIMIT // max(n_texts, 1))
    return [
        IsomerSet(split, set_id, [_member(split, record, students, limit) for record in items])
        for split, set_id, items in picked
    ]


def _ranked_sets(split: str, records: Mapping[str, dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    sets: dict[str, list[dict[str, Any]]] = {}
    for record in records.values():
        sets.setdefault(record["set_id"] or record["item_id"], []).append(record)
    for items in sets.values():
        items.sort(key=lambda record: (record["domain"] or "", record["item_id"]))
    ranked = sorted(sets, key=lambda set_id: hashlib.sha256(f"{split}/{set_id}".encode()).digest())
    return [(split, set_id, sets[set_id]) for set_id in ranked]


def _member(split: str, record: Mapping[str, Any], students: Sequence[Student], limit: int) -> Member:
    item = record["item_id"]
    prompt = students[-1][1].prompts.get(item)
    text, cut = _cut(prompt if prompt is not None else f"(problems/{split}.jsonl has no row {item})", limit)
    answers = [_answer(run.records.get((stage, split), {}).get(item), limit) for _, run, stage in students]
    return Member(record["domain"] or "no domain", text, cut, str(record["gold"]), answers)


def _answer(record: Mapping[str, Any] | None, limit: int) -> Answer | None:
    if record is None:
        return None
    text, cut = _cut(record["output"], limit)
    return Answer(text, cut, record["parsed"], *MARKS[record["outcome"]], record["outcome"])


def _cut(text: str, limit: int) -> tuple[str, int]:
    return text[:limit], max(0, len(text) - limit)
