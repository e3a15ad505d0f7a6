"""Rewrite problems into domains, read every text back, repair once, and keep the sets that hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.isomers.check import Rejection
from isodistill.isomers.rewrite.asking import Ask, Reply
from isodistill.isomers.rewrite.prompts import Prompts
from isodistill.isomers.rewrite.structure import Structure, difference, read_structure
from isodistill.isomers.words import NEAR_COPY, changed_language, changed_numbers, overlap
from isodistill.teachers.asking import Refused
from isodistill.teachers.base import Messages

__all__ = ["Attempt", "Rewriting", "rewrite_problems"]

NO_ANSWER = "no answer"
"""Reason of an attempt about which a teacher gave no answer, after all its tries or for good."""

K = TypeVar("K", str, tuple[str, str])

Wanted = tuple[str, str]
"""A set and a domain: one text to write."""


@dataclass(frozen=True)
class Attempt:
    """One text that was refused, or a problem that could not be rewritten at all (then ``domain`` is None).

    Attributes:
        set_id: id of the problem.
        domain: what it was to be rewritten into.
        round: 0 for the first text, 1 for the repaired one.
        reason: the rule that it broke.
        detail: what was found there.
        text: as the teacher wrote it.
    """

    set_id: str
    domain: str | None
    round: int
    reason: str
    detail: str
    text: str


@dataclass(frozen=True)
class Rewriting:
    """What came of it.

    Attributes:
        rows: the accepted sets: every member a row without completion, the user's own text among them where it has a
            domain.
        rejected: set_id -> why the set was not accepted: the last attempt at its first missing domain.
        attempts: every refused text, those of sets that were accepted after a repair among them.
        n_problems: problems given.
    """

    rows: list[Row]
    rejected: dict[str, Attempt]
    attempts: list[Attempt]
    n_problems: int

    @property
    def rejection_rate(self) -> float:
        """Rejected share of the problems; 0 when there are none."""
        return len(self.rejected) / self.n_problems if self.n_problems else 0.0

    @property
    def unanswered(self) -> list[Attempt]:
        """Of every problem that a teacher gave no answer about, the first refusal."""
        return list({a.set_id: a for a in reversed(self.attempts) if a.reason == NO_ANSWER}.values())[::-1]

    @property
    def reasons(self) -> dict[str, Rejection]:
        """Reason -> rejected sets and the first of them, the most frequent first."""
        counts = Counter(attempt.reason for attempt in self.rejected.values())
        examples = {a.reason: f"set {a.set_id}, {_shown(a)}" for a in reversed(self.rejected.values())}
        return {reason: Rejection(count, examples[reason]) for reason, count in counts.most_common()}


@dataclass(frozen=True)
class _Text:
    """A member that passed: the text and what it says."""

    text: str
    structure: Structure


def rewrite_problems(
    rows: Sequence[Row],
    domains: Sequence[str],
    *,
    writer: Ask,
    reader: Ask,
    prompts: Prompts,
    near_copy: float = NEAR_COPY,
) -> Rewriting:
    """Isomer sets from problems with number answers.

    The reader reads every problem, and every rewriting by itself, as quantities, relations and question. A problem is
    rewritten when its reading gives the row's ``answer``. A rewriting passes when

    - it has the numbers of its source, in digits or words,
    - it shares less than ``near_copy`` of its content words with the source and with every other member,
    - it is English where the source is,
    - its reading is an isomer of the source's (``difference``).

    A refused text is asked for once more with the reason. A set is accepted when all its domains pass. Where a teacher
    gives no answer at all, that is the reason, and nothing is repaired.

    Args:
        rows: problems, each its own set; set_id becomes the row's id.
        domains: what to rewrite into; a row's own domain is left as it is.
        writer: the teacher that rewrites.
        reader: the teacher that reads back; better another one.
        prompts: what both are asked.
        near_copy: overlap of content words from which a text is a copy.

    Raises:
        UserError: no domain, one twice, or what ``writer`` and ``reader`` raise.
    """
    if not domains or len(set(domains)) < len(domains):
        raise UserError(f"domains: {list(domains)!r} is empty or names one twice.")
    by_id = {row.id: row for row in rows}
    sources, unread = _read_sources(rows, reader, prompts)
    wanted = [(name, domain) for name in sources for domain in domains if domain != by_id[name].domain]
    asked = {(name, domain): prompts.rewrite(sources[name].text, domain) for name, domain in wanted}
    passed: dict[Wanted, _Text] = {}
    last: dict[Wanted, Attempt] = {}
    attempts = list(unread.values())
    for number in (0, 1):
        failed = _round(number, asked, sources, passed, writer, reader, prompts, near_copy)
        attempts += failed.values()
        last |= failed
        asked = {key: _mending(prompts, asked[key], a) for key, a in failed.items() if a.reason != NO_ANSWER}
    rejected = dict(unread)
    for key in wanted:
        if key not in passed:
            rejected.setdefault(key[0], last[key])
    accepted = [row for row in rows if row.id not in rejected]
    members = [row for source in accepted for row in _members(source, domains, passed)]
    return Rewriting(members, {row.id: rejected[row.id] for row in rows if row.id in rejected}, attempts, len(by_id))


def _read_sources(rows: Sequence[Row], reader: Ask, prompts: Prompts) -> tuple[dict[str, _Text], dict[str, Attempt]]:
    """The problems that the reader understands, and the others with the reason."""
    texts: dict[str, str] = {}
    refused: dict[str, Attempt] = {}
    for row in rows:
        if isinstance(row.prompt, str) and row.answer_type == "number":
            texts[row.id] = row.prompt
        else:
            found = "the prompt is a list of messages" if row.answer_type == "number" else f"it is {row.answer_type}"
            refused[row.id] = Attempt(row.id, None, 0, "no problem with a number answer", found, str(row.prompt))
    sources = {}
    gold = {row.id: row.answer for row in rows}
    for name, structure in _read(texts, reader, prompts).items():
        if isinstance(structure, Refused):
            refused[name] = Attempt(name, None, 0, NO_ANSWER, structure.reason, texts[name])
        elif isinstance(structure, str):
            refused[name] = Attempt(name, None, 0, "problem not readable", structure, texts[name])
        elif structure.answer != Fraction(str(gold[name])):
            found = f"read as {structure.answer}, but the row's answer is {gold[name]}"
            refused[name] = Attempt(name, None, 0, "problem read otherwise", found, texts[name])
        else:
            sources[name] = _Text(texts[name], structure)
    return sources, refused


def _round(
    number: int,
    asked: Mapping[Wanted, Messages],
    sources: Mapping[str, _Text],
    passed: dict[Wanted, _Text],
    writer: Ask,
    reader: Ask,
    prompts: Prompts,
    near_copy: float,
) -> dict[Wanted, Attempt]:
    """Have texts written and read; those that pass go into ``passed``, the others come back with the reason."""
    texts = dict(zip(asked, writer(list(asked.values())), strict=True))
    broken: dict[Wanted, tuple[str, str]] = {}
    for key, text in texts.items():
        if isinstance(text, Refused):
            broken[key] = NO_ANSWER, text.reason
        elif found := _surface_fault(sources[key[0]].text, text):
            broken[key] = found
    readings = _read({key: str(text) for key, text in texts.items() if key not in broken}, reader, prompts)
    for key, structure in readings.items():
        others = [sources[key[0]].text, *(member.text for (name, _), member in passed.items() if name == key[0])]
        copied = max(overlap(other, str(texts[key])) for other in others)
        if isinstance(structure, Refused):
            broken[key] = NO_ANSWER, structure.reason
        elif copied >= near_copy:
            broken[key] = "near-copy", f"{copied:.0%} of the content words stand in another member, too"
        elif isinstance(structure, str):
            broken[key] = "not readable", structure
        elif found := difference(sources[key[0]].structure, structure):
            broken[key] = found
        else:
            passed[key] = _Text(str(texts[key]), structure)
    return {
        key: Attempt(*key, number, *broken[key], text if isinstance(text, str) else "")
        for key, text in texts.items()
        if key in broken
    }


def _surface_fault(source: str, text: str | None) -> tuple[str, str] | None:
    """What can be told without the reader."""
    if not text:
        return "no text", "the teacher wrote nothing, or more than its length limit"
    if changed_language(source, text):
        return "another language", f"{text:.60}"
    changed = changed_numbers(source, text)
    return None if changed is None else ("other numbers", changed)


def _read(texts: Mapping[K, str], reader: Ask, prompts: Prompts) -> dict[K, Structure | Refused | str]:
    """Key -> what the reader finds in the text; the fault where its reply is still of no use the second time."""
    questions = {key: prompts.read(text) for key, text in texts.items()}
    found: dict[K, Structure | Refused | str] = {}
    for _ in range(2):
        replies = dict(zip(questions, reader(list(questions.values())), strict=True))
        found |= {key: _structure(reply) for key, reply in replies.items()}
        questions = {
            key: prompts.read_again(messages, str(replies[key] or ""), str(found[key]))
            for key, messages in questions.items()
            if isinstance(found[key], str)
        }
    return found


def _structure(reply: Reply) -> Structure | Refused | str:
    if isinstance(reply, Refused):
        return reply
    try:
        return read_structure(reply or "")
    except ValueError as error:
        return str(error)


def _mending(prompts: Prompts, asked: Messages, attempt: Attempt) -> Messages:
    return prompts.mend(asked, attempt.text, str(attempt.domain), attempt.reason, attempt.detail)


def _members(source: Row, domains: Sequence[str], passed: Mapping[Wanted, _Text]) -> list[Row]:
    shared = replace(source, set_id=source.id, structure_id=source.structure_id or source.set_id or source.id)
    own = [shared] if source.domain is not None else []
    return own + [
        replace(
            shared, id=f"{source.id}/{domain}", prompt=passed[source.id, domain].text, domain=domain, completion=None
        )
        for domain in domains
        if domain != source.domain
    ]


def _shown(attempt: Attempt) -> str:
    where = "the problem itself" if attempt.domain is None else attempt.domain
    return f"{where}: {attempt.detail}: {attempt.text!r}"
