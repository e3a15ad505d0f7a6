"""Proof that an isomer set is one: structure, values and answer are read back out of every text and compared.

The readers share nothing with the templates that told the texts. They see the prompt alone: set_id and domain only say
which texts are claimed to belong together, and structure_id and completion are not looked at.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from isodistill.data.rows import Row
from isodistill.isomers.check import (
    comparison,
    inclusion,
    ordering,
    propositional,
    rates,
    reachability,
    schedule,
    sharing,
)
from isodistill.isomers.check.parsed import Parsed

__all__ = ["PARSERS", "UNREAD", "CheckReport", "Rejection", "check_sets"]

PARSERS: dict[str, Callable[[str, tuple[str, ...] | None], Parsed | None]] = {
    "rates": rates.parse,
    "comparison": comparison.parse,
    "sharing": sharing.parse,
    "schedule": schedule.parse,
    "ordering": ordering.parse,
    "inclusion": inclusion.parse,
    "propositional": propositional.parse,
    "reachability": reachability.parse,
}
"""Family -> reader: (question, choices or None) -> what it says, or None when the reader is unsure."""

_CUE = re.compile(r"\A(?:Code|Note: tag) [a-z]+\. ")
_OPTION = re.compile(r"\n[A-Z]\) (.+)(?=\n[A-Z]\) |\Z)")

UNREAD = "unread"
"""The family under which a set is counted when no member could be read."""


@dataclass(frozen=True)
class Rejection:
    """Why sets were rejected.

    Attributes:
        count: sets rejected for this reason.
        example: the first of them: its set_id, the domain, and what was found there.
    """

    count: int
    example: str


@dataclass(frozen=True)
class CheckReport:
    """The verdict on every set.

    Attributes:
        accepted: ids of the sets that passed, in the order of the rows.
        rejected: set_id -> reason.
        reasons: reason -> how often and one example; the most frequent first.
        by_family: family that reads the set, or "unread" -> (accepted sets, sets).
        by_domain: domain -> (members that this family reads, members).
        n_without_set: rows without a set_id; they are not judged.
    """

    accepted: tuple[str, ...]
    rejected: dict[str, str]
    reasons: dict[str, Rejection]
    by_family: dict[str, tuple[int, int]]
    by_domain: dict[str, tuple[int, int]]
    n_without_set: int

    @property
    def n_sets(self) -> int:
        return len(self.accepted) + len(self.rejected)

    @property
    def rejection_rate(self) -> float:
        """Rejected share of the sets; 0 when there are none."""
        return len(self.rejected) / self.n_sets if self.n_sets else 0.0


def check_sets(rows: Iterable[Row]) -> CheckReport:
    """Read every text and judge every set; a set is accepted when

    - its members stand in two or more domains, once in each (a copy in another split is not a second time),
    - the reader of one family, and of no other, reads all members alike: equal structure, values and answer,
    - options listed in a prompt are the row's ``choices``,
    - the answer that follows from the texts is every row's ``answer``.

    The first rule that a set breaks is its reason. Rows of one set_id may lie anywhere among the rows.
    """
    rows = list(rows)
    sets: dict[str, list[_Member]] = defaultdict(list)
    for row in rows:
        if row.set_id is not None:
            sets[row.set_id].append(_read(row))
    families = {set_id: _families(members) for set_id, members in sets.items()}
    verdicts = {set_id: _judge(members, families[set_id]) for set_id, members in sets.items()}
    rejected = {set_id: verdict for set_id, verdict in verdicts.items() if verdict is not None}
    counts = Counter(reason for reason, _ in rejected.values())
    examples = {reason: f"set {set_id}, {what}" for set_id, (reason, what) in reversed(rejected.items())}
    return CheckReport(
        accepted=tuple(set_id for set_id in sets if set_id not in rejected),
        rejected={set_id: reason for set_id, (reason, _) in rejected.items()},
        reasons={reason: Rejection(count, examples[reason]) for reason, count in counts.most_common()},
        by_family=_passed((families[set_id][0], set_id not in rejected) for set_id in sets),
        by_domain=_passed(
            (str(member.row.domain), families[set_id][0] in member.readings)
            for set_id, members in sets.items()
            for member in members
        ),
        n_without_set=sum(row.set_id is None for row in rows),
    )


@dataclass(frozen=True)
class _Member:
    """A row of a set, the options listed in its prompt, and what the readers that are not unsure make of it."""

    row: Row
    listed: tuple[str, ...]
    readings: dict[str, Parsed]

    def __str__(self) -> str:
        return f"{self.row.domain}: {self.row.prompt!r}"


def _read(row: Row) -> _Member:
    """A cue sentence in front and the option lines at the end are taken off first; of messages, the last is read."""
    text = row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
    text = _CUE.sub("", text)
    listed = tuple(_OPTION.findall(text))
    question = _OPTION.sub("", text)
    readings = {family: parse(question, listed or row.choices) for family, parse in PARSERS.items()}
    return _Member(row, listed, {family: reading for family, reading in readings.items() if reading is not None})


def _families(members: Sequence[_Member]) -> list[str]:
    """The families that read the most members alike: one for a sound set, more for a text that can be read two ways."""
    alike = {family: _most_alike(members, family)[1] for member in members for family in member.readings}
    return [family for family, times in alike.items() if times == max(alike.values())] or [UNREAD]


def _most_alike(members: Sequence[_Member], family: str) -> tuple[Parsed, int]:
    """The commonest reading of a family, and how many members have it."""
    readings = Counter(member.readings[family] for member in members if family in member.readings)
    return readings.most_common(1)[0]


def _judge(members: Sequence[_Member], families: Sequence[str]) -> tuple[str, str] | None:
    """The first rule the set breaks, with what shows it; None for a set that passes."""
    places = Counter((member.row.domain, member.row.split) for member in members)
    if len({domain for domain, _ in places}) < 2:
        return "fewer than two domains", f"only in {members[0].row.domain}"
    (domain, _), times = places.most_common(1)[0]
    if times > 1:
        return "a domain twice", f"{times} members in {domain}"
    for member in members:
        if families[0] not in member.readings:
            return "not readable", str(member)
    usual, times = _most_alike(members, families[0])
    if times == len(members) and len(families) > 1:
        return "read by several families", f"{' and '.join(families)} in {members[0]}"
    for member in members:
        row, reading = member.row, member.readings[families[0]]
        if reading != usual:
            return "members differ", f"{reading} instead of {usual} in {member}"
        if member.listed and row.choices and member.listed != row.choices:
            return "listed options are not the choices", f"{member.listed} instead of {row.choices} in {member}"
        if reading.answer != row.answer:
            return "wrong answer", f"{row.answer!r} instead of {reading.answer!r} in {member}"
    return None


def _passed(verdicts: Iterable[tuple[str, bool]]) -> dict[str, tuple[int, int]]:
    """Name -> (how many passed, how many there are), by name."""
    passed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, ok in verdicts:
        passed[name] += ok
        total[name] += 1
    return {name: (passed[name], total[name]) for name in sorted(total)}
