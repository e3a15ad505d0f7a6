"""What all four families about numbers owe: sound values, correct English, and texts that read back as one problem."""

from __future__ import annotations

import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isodistill.isomers.check import comparison as read_comparison
from isodistill.isomers.check import rates as read_rates
from isodistill.isomers.check import schedule as read_schedule
from isodistill.isomers.check import sharing as read_sharing
from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.families.comparison import Comparison
from isodistill.isomers.families.rates import Rates
from isodistill.isomers.families.schedule import Schedule
from isodistill.isomers.families.sharing import Sharing
from isodistill.isomers.family import DOMAINS, Family, Problem, Telling
from isodistill.isomers.stories import comparison, rates, schedule, sharing


class Case(NamedTuple):
    family: Family
    stories: dict[str, tuple[Any, ...]]
    parse: Callable[[str], Parsed | None]


CASES = [
    Case(Rates(), rates.STORIES, read_rates.parse),
    Case(Comparison(), comparison.STORIES, read_comparison.parse),
    Case(Sharing(), sharing.STORIES, read_sharing.parse),
    Case(Schedule(), schedule.STORIES, read_schedule.parse),
]
every_family = pytest.mark.parametrize("case", CASES, ids=lambda case: case.family.name)

OWN_WORDS = {
    "mathematics": "segments?|intervals?|grid|squares?|rectangle|number line|angles?|dots?|strokes?",
    "medicine": "doses?|wards?|nurses?|doctors?|patients?|hospitals?|tablets?|bandages?|clinics?|surgery|infusion",
    "law": "courts?|judges?|lawyers?|briefs?|clauses?|contracts?|exhibits?|verdict|plaintiff|prosecutor|statutes?",
    "science": "chemist|biologist|physicist|samples?|beetles?|sensors?|bacteria|laboratory|beaker|alloy|shrimps?",
    "cooking": "cooks?|bakers?|chef|dough|rolls?|pancakes?|soup|muffins?|tarts?|olives?|kitchen|stew|oven|flour",
    "sports": "teams?|coach|laps?|goals?|fans?|football|swimmer|cyclist|league|referee|players?|tournament|races?",
    "finance": "dollars?|banks?|investor|saver|shares? of a company|bonds?|portfolios?|loan|auditor|profit|invoices?",
    "astronomy": "telescopes?|comets?|meteors?|craters?|moons?|galaxy|planets?|observatory|astronomers?|rover|probe",
    "gardening": "gardeners?|gardens?|tulips?|tomatoes|seedlings?|orchard|pears?|roses|compost|greenhouse|lettuce",
    "logistics": "warehouses?|parcels?|trucks?|containers?|depot|freight|cargo|couriers?|pallets?|wagons?|crates",
}
SHARED = {"blood bank", "shares equally", "shares doses", "speaking", "shifts differ"}
OPPOSITES = {
    "rates": [
        ("more", "fewer"),
        ("adds", "removes"),
        ("Add", "Subtract"),
        ("Increase", "Decrease"),
        ("Decrease", "Increase"),
        ("removes", "supplies"),
        ("buys", "sells"),
        ("sells", "buys"),
        ("loaded", "unloaded"),
        ("deleted", "added"),
        ("to the right", "to the left"),
        ("multiply", "divide"),
        ("divide", "multiply"),
        ("divided", "multiplied"),
        ("evenly", "never"),
        ("each", "altogether"),
        ("Each", "No"),
        ("a day", "in all"),
        ("How many", "Why"),
    ],
    "comparison": [
        ("more", "fewer"),
        ("fewer", "more"),
        ("above", "below"),
        ("below", "above"),
        ("larger", "smaller"),
        ("smaller", "larger"),
        ("longer", "shorter"),
        ("adds", "removes"),
        ("added", "deleted"),
        ("increased", "decreased"),
        ("decreased", "increased"),
        ("gains", "loses"),
        ("loses", "gains"),
        ("credits", "charges"),
        ("inserts", "repeals"),
        ("difference", "sum"),
        ("differ", "agree"),
        ("If", "Unless"),
        ("each", "altogether"),
    ],
    "sharing": [
        ("larger", "smaller"),
        ("smaller", "larger"),
        ("largest", "smallest"),
        ("difference", "sum"),
        ("ratio", "order"),
        ("but", "and"),
        ("BC?", "AB?"),
        ("the heart patient get?", "the kidney patient get?"),
        ("bonds?", "stocks?"),
        ("Mars get?", "Venus get?"),
    ],
    "schedule": [
        ("after the end", "before the end"),
        ("before the end", "after the end"),
        ("right at the end", "at some time after the end"),
        ("of the longer", "of the shorter"),
        ("in parallel", "afterwards"),
        ("begin together", "begin in turn"),
        ("while", "before"),
        ("are left", "have passed"),
        ("over?", "begun?"),
    ],
}


class Phrasing(random.Random):
    """A generator that always picks the same phrasing."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index

    def choice(self, seq: Sequence[Any]) -> Any:
        return seq[self.index % len(seq)]


def problems(case: Case, seeds: int = 3) -> Iterator[tuple[int, Problem]]:
    for difficulty in (1, 2, 3):
        for shape in case.family.shapes(difficulty):
            for seed in range(seeds):
                yield difficulty, case.family.draw(shape, random.Random(seed))


def tellings(case: Case, seeds: int = 2) -> Iterator[tuple[Problem, str, Telling]]:
    for _, problem in problems(case, seeds):
        for domain in DOMAINS:
            for index in range(len(case.stories[domain])):
                yield problem, domain, case.family.tell(problem, domain, Phrasing(index))


@every_family
def test_shapes_are_many_and_belong_to_one_difficulty(case: Case) -> None:
    by_difficulty = [case.family.shapes(difficulty) for difficulty in (1, 2, 3)]
    assert all(len(shapes) >= 6 for shapes in by_difficulty)
    together = [shape for shapes in by_difficulty for shape in shapes]
    assert len(set(together)) == len(together) >= 12


@every_family
def test_an_unknown_shape_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="no shape \\('mul', 'pow'\\); the family has"):
        case.family.draw(("mul", "pow"), random.Random(0))


@every_family
def test_every_domain_has_three_phrasings(case: Case) -> None:
    assert set(case.stories) == set(DOMAINS)
    assert all(len(case.stories[domain]) >= 3 for domain in DOMAINS)


@every_family
def test_drawing_and_telling_depend_on_the_seed_alone(case: Case) -> None:
    shape = case.family.shapes(2)[0]
    first, again = (case.family.draw(shape, random.Random(5)) for _ in range(2))
    assert first == again
    told = [case.family.tell(first, "law", random.Random(7)) for _ in range(2)]
    assert told[0] == told[1]
    assert len({case.family.draw(shape, random.Random(seed)).values["numbers"] for seed in range(40)}) > 30
    assert len({case.family.tell(first, "law", random.Random(seed)).question for seed in range(30)}) >= 3


@every_family
def test_texts_read_back_as_one_problem(case: Case) -> None:
    seen: dict[str, Parsed] = {}
    for problem, domain, telling in tellings(case):
        parsed = case.parse(telling.question)
        key = f"{problem.structure_id} {problem.values}"
        assert parsed is not None, (domain, telling.question)
        assert parsed == seen.setdefault(key, parsed), (domain, telling.question)
        assert parsed.answer == telling.answer == case.family.solve(problem)
    assert len(set(seen.values())) == len(seen)


@every_family
def test_only_its_own_reader_understands_a_text(case: Case) -> None:
    others = [other for other in CASES if other is not case]
    for _, _, telling in tellings(case, seeds=1):
        assert [other.family.name for other in others if other.parse(telling.question)] == [], telling.question


@every_family
def test_a_changed_number_is_noticed(case: Case) -> None:
    rng = random.Random(0)
    for _, _, telling in tellings(case, seeds=1):
        found = rng.choice(list(re.finditer(r"\d+", telling.question)))
        other = str(int(found.group()) + rng.choice((-1, 1, 7)))
        tampered = telling.question[: found.start()] + other + telling.question[found.end() :]
        assert case.parse(tampered) != case.parse(telling.question), tampered


@every_family
def test_two_swapped_numbers_are_noticed(case: Case) -> None:
    rng = random.Random(1)
    for _, _, telling in tellings(case, seeds=1):
        a, b = sorted(rng.sample(list(re.finditer(r"\d+", telling.question)), 2), key=lambda match: match.start())
        text = telling.question
        tampered = text[: a.start()] + b.group() + text[a.end() : b.start()] + a.group() + text[b.end() :]
        assert tampered == text or case.parse(tampered) != case.parse(text), tampered


@every_family
def test_an_opposite_word_is_noticed(case: Case) -> None:
    tried = 0
    for _, _, telling in tellings(case, seeds=1):
        for word, opposite in OPPOSITES[case.family.name]:
            tampered = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", opposite, telling.question, count=1)
            if tampered != telling.question:
                tried += 1
                assert case.parse(tampered) != case.parse(telling.question), (word, tampered)
    assert tried > 200


@every_family
@given(text=st.text(alphabet="aehorst 0123.,?ifper", max_size=80))
@settings(max_examples=60, deadline=None)
def test_a_foreign_text_is_not_read_and_raises_nothing(case: Case, text: str) -> None:
    assert case.parse(text) is None
    assert case.parse("Why. " + text + " 0 to 0 each. What is it?") is None


@every_family
def test_rationale_is_short_and_every_equation_is_true(case: Case) -> None:
    signs = {"x": operator.mul, "/": operator.floordiv, "+": operator.add, "-": operator.sub}
    ceiling = {1: 120, 2: 240, 3: 400}
    for difficulty, problem in problems(case):
        telling = case.family.tell(problem, "science", random.Random(0))
        equations = re.findall(r"(\d+) ([x/+-]) (\d+) = (\d+)", telling.rationale)
        assert equations
        for left, sign, right, result in equations:
            assert signs[sign](int(left), int(right)) == int(result)
            assert sign != "/" or int(left) % int(right) == 0
            assert 2 <= int(result) <= ceiling[difficulty]
        assert 10 <= len(telling.rationale.split()) <= 40
        assert re.findall(r"\d+", telling.rationale)[-1] == telling.answer


@every_family
def test_the_answer_does_not_stand_in_the_question(case: Case) -> None:
    for _, _, telling in tellings(case):
        assert telling.answer not in re.findall(r"\d+", telling.question)


@every_family
def test_answers_are_spread(case: Case) -> None:
    answers = Counter(case.family.solve(problem) for _, problem in problems(case, seeds=60))
    assert max(answers.values()) < 0.05 * answers.total()
    last_digits = Counter(answer[-1] for answer in answers.elements())
    assert len(last_digits) == 10
    assert max(last_digits.values()) < 0.3 * answers.total()


@every_family
def test_texts_are_clean_english(case: Case) -> None:
    after_numbers: set[str] = set()
    for _, domain, telling in tellings(case, seeds=1):
        text = telling.question
        assert 20 <= len(text.split()) <= 60, text
        assert text == text.strip()
        assert not re.search(r"  |[{}\[\]|]| [.,?]", text), text
        assert re.fullmatch(r"(?:[A-Z][^.?]*\. )+[A-Z][^.?]*\?", text), text
        assert not re.search(r"\b(?:an? \d|1 |0 )", text), text
        assert not re.search(r"\b[Aa] (?!unit|one)[aeiou]|\b[Aa]n (?!hour|X-ray)[^aeiou]", text), (domain, text)
        after_numbers |= set(re.findall(r"\d+ (?:unit )?([a-z]+)", text))
    assert not {word for word in after_numbers if f"{word}s" in after_numbers}


@every_family
def test_no_domain_uses_the_words_of_another(case: Case) -> None:
    for domain, stories in case.stories.items():
        text = " ".join(str(story) for story in stories)
        for phrase in SHARED:
            text = text.replace(phrase, "")
        for other, words in OWN_WORDS.items():
            found = set(re.findall(rf"\b(?:{words})\b", text))
            assert (other == domain) == bool(found), (domain, other, found)
