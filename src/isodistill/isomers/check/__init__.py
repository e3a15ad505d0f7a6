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
from isodistill.isomers.check import comparison, ordering, rates
from isodistill.isomers.check.parsed import Parsed

__all__ = ["PARSERS", "UNREAD", "CheckReport", "Rejection", "check_sets"]

PARSERS: dict[str, Callable[[str, tuple[str, ...] | None], Parsed | None]] = {
    "rates": rates.parse,
    "comparison": comparison.parse,
    "ordering": ordering.parse,
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
        by_family: family as read from the text -> (accepted sets, sets).
        by_domain: domain -> (members whose text was read, members).
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
    - every text is read, by the reader of one family only,
    - all readings are equal: family, structure, values and answer,
    - the answer that follows from the text is the row's ``answer``.

    The first rule that a set breaks is its reason. Rows of one set_id may lie anywhere among the rows.
    """
    sets: dict[str, list[tuple[Row, list[Parsed]]]] = defaultdict(list)
    n_without_set = 0
    for row in rows:
        if row.set_id is None:
            n_without_set += 1
        else:
            sets[row.set_id].append((row, _read(row)))
    verdicts = {set_id: _judge(members) for set_id, members in sets.items()}
    rejected = {set_id: verdict for set_id, verdict in verdicts.items() if verdict is not None}
    counts = Counter(reason for reason, _ in rejected.values())
    examples = {reason: f"set {set_id}, {what}" for set_id, (reason, what) in reversed(rejected.items())}
    families = {set_id: _family(members) for set_id, members in sets.items()}
    domains = [(str(row.domain), len(found) == 1) for members in sets.values() for row, found in members]
    return CheckReport(
        accepted=tuple(set_id for set_id in sets if set_id not in rejected),
        rejected={set_id: reason for set_id, (reason, _) in rejected.items()},
        reasons={reason: Rejection(count, examples[reason]) for reason, count in counts.most_common()},
        by_family=_passed_of((family, set_id not in rejected) for set_id, family in families.items()),
        by_domain=_passed_of(domains),
        n_without_set=n_without_set,
    )


def _read(row: Row) -> list[Parsed]:
    """What each reader makes of the prompt, without the readers that are unsure.

    A planted cue sentence in front and the option lines at the end are taken off first; of messages, the last is read.
    """
    question, listed = _question_and_options(row)
    readings = (parse(question, listed or row.choices) for parse in PARSERS.values())
    return [reading for reading in readings if reading is not None]


def _question_and_options(row: Row) -> tuple[str, tuple[str, ...]]:
    text = row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
    return _OPTION.sub("", _CUE.sub("", text)), tuple(_OPTION.findall(text))


def _judge(members: Sequence[tuple[Row, list[Parsed]]]) -> tuple[str, str] | None:
    """The first rule the set breaks, with the member that shows it; None for a set that passes."""
    places = Counter((row.domain, row.split) for row, _ in members)
    if len({domain for domain, _ in places}) < 2:
        return "fewer than two domains", f"only in {members[0][0].domain}"
    (domain, _), times = places.most_common(1)[0]
    if times > 1:
        return "a domain twice", f"{times} members in {domain}"
    for row, found in members:
        if not found:
            return "not readable", f"{row.domain}: {row.prompt!r}"
        if len(found) > 1:
            return "read by several families", f"{row.domain}: {found!r} in {row.prompt!r}"
        listed = _question_and_options(row)[1]
        if row.choices and listed and listed != row.choices:
            return "listed options are not the choices", f"{row.domain}: {listed} is not {row.choices}"
    return _differing(members) or _wrong(members)


def _differing(members: Sequence[tuple[Row, list[Parsed]]]) -> tuple[str, str] | None:
    usual = Counter(found[0] for _, found in members).most_common(1)[0][0]
    for row, found in members:
        if found[0] != usual:
            return "members differ", f"{row.domain}: {found[0]} instead of {usual} in {row.prompt!r}"
    return None


def _wrong(members: Sequence[tuple[Row, list[Parsed]]]) -> tuple[str, str] | None:
    for row, found in members:
        if found[0].answer != row.answer:
            return "wrong answer", f"{row.domain}: {row.answer!r} instead of {found[0].answer!r} in {row.prompt!r}"
    return None


def _family(members: Sequence[tuple[Row, list[Parsed]]]) -> str:
    """The family most members were read as."""
    read = Counter(reading.family for _, found in members for reading in found)
    return read.most_common(1)[0][0] if read else UNREAD


def _passed_of(verdicts: Iterable[tuple[str, bool]]) -> dict[str, tuple[int, int]]:
    """Name -> (how many passed, how many there are), by name."""
    passed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, ok in verdicts:
        passed[name] += ok
        total[name] += 1
    return {name: (passed[name], total[name]) for name in sorted(total)}
