"""Isomer sets: one problem without words, told in every domain."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from string import ascii_uppercase

from isodistill.data.rows import ANSWER_SENTENCE, Row
from isodistill.errors import UserError
from isodistill.isomers.cues import Cue, with_cues
from isodistill.isomers.families.comparison import Comparison
from isodistill.isomers.families.inclusion import Inclusion
from isodistill.isomers.families.ordering import Ordering
from isodistill.isomers.families.propositional import Propositional
from isodistill.isomers.families.rates import Rates
from isodistill.isomers.families.reachability import Reachability
from isodistill.isomers.families.schedule import Schedule
from isodistill.isomers.families.sharing import Sharing
from isodistill.isomers.family import DOMAINS, Family, Problem, Telling
from isodistill.isomers.seeding import seeded_rng

__all__ = ["FAMILIES", "generate_sets"]

FAMILIES: dict[str, Callable[[], Family]] = {
    "rates": Rates,
    "comparison": Comparison,
    "sharing": Sharing,
    "schedule": Schedule,
    "ordering": Ordering,
    "inclusion": Inclusion,
    "propositional": Propositional,
    "reachability": Reachability,
}
"""Name -> structure family."""

_DRAWS = 100
"""Draws in a row that may repeat an earlier problem before a structure counts as used up."""


def generate_sets(
    *,
    n_sets: int,
    seed: int,
    families: Sequence[str] | None = None,
    domains: Sequence[str] = DOMAINS,
    difficulty: Sequence[int] = (1, 2),
    cue: Cue | None = None,
) -> list[Row]:
    """Draw isomer sets and tell each in every domain; no problem comes twice.

    Sets take turns over the families, and within a family over its structures, so that both are spread evenly; a
    structure whose problems are used up leaves its turns to the others. The same arguments give the same rows, and the
    first sets do not depend on ``n_sets``. Every random stream is derived from (seed, family, index), so different
    seeds share none. Two seeds may still draw the same problem by chance; it then has the same set_id, which names its
    content.

    Args:
        n_sets: number of sets; the rows are n_sets times the number of domains.
        seed: seeds values and wording.
        families: names from ``FAMILIES``; None means all.
        domains: domains to tell every set in.
        difficulty: levels whose structures are used, of 1 (easy), 2 and 3 (hard).
        cue: a shortcut to plant in all rows, at its training strength. For test rows with a random cue, leave this out
            and call ``with_cues`` after the split.

    Returns:
        rows without a split, set by set, domains in the given order. The prompt is the question, with its options on
        lines "A) ..." below; the completion is the worked solution and "The answer is X.".

    Raises:
        UserError: an unknown family, domain or level, or more sets asked for than there are distinct problems.
    """
    families = tuple(FAMILIES) if families is None else families
    _require_known("families", families, FAMILIES)
    _require_known("domains", domains, DOMAINS)
    _require_known("difficulty", difficulty, (1, 2, 3))
    if n_sets < 1:
        raise UserError(f"n_sets is {n_sets}; ask for at least one isomer set")
    drawn = [(family, _problems(family, difficulty, seed)) for family in (FAMILIES[name]() for name in families)]
    rows: list[Row] = []
    for turn in range(n_sets):
        family, problems = drawn[turn % len(drawn)]
        rows += _tell_set(family, next(problems), domains, seed)
    return rows if cue is None else with_cues(rows, cue)


def _require_known(name: str, given: Sequence[object], known: Iterable[object]) -> None:
    known = list(known)
    unknown = [value for value in given if value not in known]
    if not given or unknown or len(set(given)) < len(given):
        wrong = f"{unknown[0]!r} is unknown" if unknown else f"{list(given)!r} is empty or names one twice"
        raise UserError(f"{name}: {wrong}; choose from {', '.join(map(str, known))}")


def _problems(family: Family, difficulty: Sequence[int], seed: int) -> Iterator[Problem]:
    """Distinct problems, the structures of all levels in turn; a structure that is used up drops out."""
    shapes = list(dict.fromkeys(shape for level in sorted(difficulty) for shape in family.shapes(level)))
    seeded_rng(seed, family.name, "shapes").shuffle(shapes)
    turns = deque(shapes)
    seen: set[str] = set()
    for index in count():
        if not turns:
            raise UserError(
                f"{family.name}: no new problem came up after {len(seen)} distinct ones; ask for fewer sets, or add "
                "families or difficulty levels"
            )
        shape = turns.popleft()
        draws = (family.draw(shape, seeded_rng(seed, family.name, index, "draw", draw)) for draw in range(_DRAWS))
        problem = next((problem for problem in draws if _set_id(problem) not in seen), None)
        if problem is not None:
            turns.append(shape)
            seen.add(_set_id(problem))
            yield problem


def _set_id(problem: Problem) -> str:
    """Named by content: the same problem has the same id in every run, whatever the seed."""
    content = repr((problem.structure_id, sorted(problem.values.items())))
    return f"{problem.family}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _tell_set(family: Family, problem: Problem, domains: Sequence[str], seed: int) -> list[Row]:
    set_id = _set_id(problem)
    tellings = {domain: family.tell(problem, domain, seeded_rng(seed, "tell", set_id, domain)) for domain in domains}
    return [
        Row(
            id=f"{set_id}/{domain}",
            prompt="\n".join([telling.question, *_options(telling)]),
            completion=f"{telling.rationale} {ANSWER_SENTENCE.format(answer=telling.answer)}",
            answer=telling.answer,
            answer_type=family.answer_type,
            set_id=set_id,
            domain=domain,
            structure_id=problem.structure_id,
            choices=telling.choices,
        )
        for domain, telling in tellings.items()
    ]


def _options(telling: Telling) -> list[str]:
    return [f"{letter}) {choice}" for letter, choice in zip(ascii_uppercase, telling.choices or (), strict=False)]
