"""What all logical families owe: every telling is English, isomers read back equal, answers are balanced."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import pytest

from isodistill.isomers.check import inclusion, ordering, propositional, reachability
from isodistill.isomers.families.inclusion import Inclusion
from isodistill.isomers.families.ordering import Ordering
from isodistill.isomers.families.propositional import Propositional
from isodistill.isomers.families.reachability import Reachability
from isodistill.isomers.family import DOMAINS, Family, Problem, Telling
from isodistill.isomers.stories import inclusion as inclusion_words
from isodistill.isomers.stories import ordering as ordering_words
from isodistill.isomers.stories import propositional as propositional_words
from isodistill.isomers.stories import reachability as reachability_words

FAMILIES: dict[str, Family] = {f.name: f for f in (Ordering(), Inclusion(), Propositional(), Reachability())}
PARSERS = {
    "ordering": ordering.parse,
    "inclusion": inclusion.parse,
    "propositional": propositional.parse,
    "reachability": reachability.parse,
}
WORDS = {
    "ordering": {d: [n for s in scenes for n in s.names] for d, scenes in ordering_words.SCENES.items()},
    "inclusion": {
        d: [w for s in scenes for w in (*(k.name for k in s.kinds), *s.members)]
        for d, scenes in inclusion_words.SCENES.items()
    },
    "propositional": {
        d: [e.subject for s in scenes for e in s.events] for d, scenes in propositional_words.SCENES.items()
    },
    "reachability": {d: [n for s in scenes for n in s.nodes] for d, scenes in reachability_words.SCENES.items()},
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def all_shapes(family: Family) -> list[tuple[str | int, ...]]:
    return [shape for difficulty in (1, 2, 3) for shape in family.shapes(difficulty)]


def tellings(family: Family, seeds: int) -> list[tuple[Problem, str, Telling]]:
    """Every shape, ``seeds`` problems each, told in every domain."""
    rng = random.Random(7)
    problems = [family.draw(shape, rng) for shape in all_shapes(family) for _ in range(seeds)]
    return [(problem, domain, family.tell(problem, domain, rng)) for problem in problems for domain in DOMAINS]


@each_family
def test_enough_shapes(family: Family) -> None:
    levels = [family.shapes(difficulty) for difficulty in (1, 2, 3)]
    assert all(len(level) >= 6 for level in levels)
    assert len({shape for level in levels for shape in level}) == sum(map(len, levels)) >= 12


@each_family
def test_tellings_are_clean_english(family: Family) -> None:
    for problem, domain, told in tellings(family, 4):
        text = f"{told.question} {told.rationale}"
        assert re.search(r"  |[{}]| [,.?]|,,|\.\.", text) is None, text
        assert re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.I) is None, text
        assert re.fullmatch(r"[^?]+\?", told.question), text
        assert told.rationale.endswith("."), text
        assert all(sentence[0].isupper() for sentence in re.split(r"(?<=[.?]) ", text)), text
        assert re.search(r"\b(?:applys|frys|carrys|passs|(\w+) \1)\b", text) is None, text
        assert told.answer == family.solve(problem)
        assert domain in DOMAINS


@each_family
def test_lengths_suit_a_small_student(family: Family) -> None:
    told = [t for _, _, t in tellings(family, 4)]
    questions = [len(t.question.split()) for t in told]
    rationales = [len(t.rationale.split()) for t in told]
    assert min(questions) >= 25
    assert max(questions) <= 85
    assert sum(n > 70 for n in questions) < 0.06 * len(questions)
    assert min(rationales) >= 10
    assert max(rationales) <= 52
    assert sum(n > 45 for n in rationales) < 0.03 * len(rationales)


@each_family
def test_isomers_read_back_equal(family: Family) -> None:
    read = defaultdict(set)
    for problem, _, told in tellings(family, 4):
        parsed = PARSERS[family.name](told.question, told.choices)
        assert parsed is not None, told.question
        assert (parsed.family, parsed.answer) == (family.name, told.answer), told.question
        read[repr(problem)].add(parsed)
    assert all(len(parsed) == 1 for parsed in read.values())


@each_family
def test_other_families_are_not_read(family: Family) -> None:
    for _, _, told in tellings(family, 1):
        others = [name for name, parse in PARSERS.items() if name != family.name and parse(told.question, told.choices)]
        assert not others, told.question


@each_family
def test_different_problems_of_a_shape_read_differently(family: Family) -> None:
    rng = random.Random(1)
    for shape in all_shapes(family):
        told = [family.tell(family.draw(shape, rng), "law", rng) for _ in range(12)]
        assert len({PARSERS[family.name](t.question, t.choices) for t in told}) > 3, shape


@each_family
def test_same_seed_same_text(family: Family) -> None:
    def once() -> list[Telling]:
        rng = random.Random(5)
        return [family.tell(family.draw(shape, rng), d, rng) for shape in all_shapes(family) for d in DOMAINS]

    assert once() == once()


@each_family
def test_at_least_three_phrasings_per_domain(family: Family) -> None:
    rng = random.Random(2)
    problem = family.draw(family.shapes(1)[0], rng)
    for domain in DOMAINS:
        words = [set(family.tell(problem, domain, rng).question.split()) for _ in range(60)]
        # Texts of different scenes share little: at least three of them have less than half of their words in common.
        apart: list[set[str]] = []
        for text in words:
            if all(len(text & other) < 0.5 * len(text | other) for other in apart):
                apart.append(text)
        assert len(apart) >= 3, domain


@each_family
def test_no_domain_uses_the_things_of_another(family: Family) -> None:
    words = {d: {w.removeprefix("the ").lower() for w in ws if len(w) > 2} for d, ws in WORDS[family.name].items()}
    for one in DOMAINS:
        for other in DOMAINS:
            assert one == other or not words[one] & words[other], (one, other, words[one] & words[other])


@each_family
def test_answers_are_balanced_in_every_shape(family: Family) -> None:
    rng = random.Random(11)
    for shape in all_shapes(family):
        counts = Counter(family.solve(family.draw(shape, rng)) for _ in range(600))
        options = int(shape[1]) if family.name == "ordering" else 2
        assert len(counts) == options, shape
        assert all(abs(n - 600 / options) < 5 * (600 / options) ** 0.5 for n in counts.values()), (shape, counts)


NEGATION = re.compile(r"\b(?:not|no|none|nothing|nobody|unless|cannot)\b", re.I)


def surface(question: str, family: str) -> dict[str, object]:
    """Cues that a lazy reader could use."""
    sentences = re.split(r"(?<=[.?]) ", question)
    asked, told = sentences[-1].lower(), [s.lower().rstrip(".") for s in sentences[1:-1]]
    names = [w for words in WORDS[family].values() for w in words]
    stems = {word for name in names for word in name.removeprefix("the ").lower().split()}
    things = [w for w in re.findall(r"[\w-]+", asked) if w in stems]
    at = [[i for i, s in enumerate(told) if thing in re.findall(r"[\w-]+", s)] for thing in things[:2]]
    return {
        "sentences": len(sentences),
        "negations": len(NEGATION.findall(question)) > 2,
        "first sentence negated": NEGATION.search(told[0]) is not None,
        "last sentence negated": NEGATION.search(told[-1]) is not None,
        "asked in first sentence": any(0 in places for places in at),
        "asked in last sentence": any(len(told) - 1 in places for places in at),
        "mentions": tuple(map(len, at)) if family == "reachability" else None,
        "order of mentions": [min(places, default=-1) for places in at] == sorted(min(p, default=-1) for p in at),
    }


@pytest.mark.parametrize("name", ["inclusion", "propositional", "reachability"])
def test_surface_does_not_tell_yes_from_no(name: str) -> None:
    family, rng = FAMILIES[name], random.Random(3)
    counts: dict[tuple[str, object], Counter[str]] = defaultdict(Counter)
    for shape in all_shapes(family):
        for _ in range(80):
            told = family.tell(family.draw(shape, rng), rng.choice(DOMAINS), rng)
            for cue, value in surface(told.question, name).items():
                counts[cue, value][told.answer] += 1
    for cue, answers in counts.items():
        n = answers.total()
        assert abs(answers["yes"] - n / 2) < 4.5 * (n / 4) ** 0.5, (cue, answers)
