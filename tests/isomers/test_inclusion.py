"""Inclusion: the solver against small worlds, the worked solution, and tampered texts."""

from __future__ import annotations

import random
import re
from itertools import combinations

import pytest

from isodistill.isomers.check.inclusion import parse
from isodistill.isomers.families.inclusion import INDIVIDUAL, Inclusion
from isodistill.isomers.family import DOMAINS, Problem, Telling

FAMILY = Inclusion()
SHAPES = [shape for difficulty in (1, 2, 3) for shape in FAMILY.shapes(difficulty)]


def follows(problem: Problem) -> bool:
    """Whether no thing, given as the set of kinds it belongs to, fits all clues and breaks the claim."""
    clues, (kind, x, y) = problem.values["clues"], problem.values["asked"]
    kinds = sorted({k for clue in clues for k in clue[1:]} - {INDIVIDUAL})
    home = {b for clue_kind, _, b in clues if clue_kind == "is"}
    for size in range(len(kinds) + 1):
        for thing in map(set, combinations(kinds, size)):
            if any(a in thing and b not in thing for clue_kind, a, b in clues if clue_kind == "all"):
                continue
            if any(a in thing and b in thing for clue_kind, a, b in clues if clue_kind == "no"):
                continue
            broken = {
                "all": x in thing and y not in thing,
                "no": x in thing and y in thing,
                "is": home <= thing and y not in thing,
            }
            if broken[kind]:
                return False
    return True


def told(seed: int) -> list[Telling]:
    rng = random.Random(seed)
    return [FAMILY.tell(FAMILY.draw(shape, rng), domain, rng) for shape in SHAPES for domain in DOMAINS]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_solver_equals_search_for_a_counterexample(shape: tuple[str | int, ...]) -> None:
    rng = random.Random(4)
    for _ in range(15):
        problem = FAMILY.draw(shape, rng)
        assert FAMILY.solve(problem) == ("yes" if follows(problem) else "no")


def test_premises_do_not_contradict_each_other() -> None:
    rng = random.Random(5)
    for shape in SHAPES:
        clues = FAMILY.draw(shape, rng).values["clues"]
        for start in {x for _, x, _ in clues}:
            inside = {start}
            while more := {b for kind, a, b in clues if kind != "no" and a in inside} - inside:
                inside |= more
            assert not any(kind == "no" and {a, b} <= inside for kind, a, b in clues), shape


def test_worked_solution_ends_as_the_answer() -> None:
    for telling in told(1):
        last = re.split(r"(?<=\.) ", telling.rationale)[-1]
        if telling.answer == "yes":
            claim = re.search(r".* that (.+)\?", telling.question).group(1)
            assert last == f"So {claim}."
        else:
            assert last.endswith("so it does not follow.") or re.fullmatch(r"So .+ is not .+\.", last)


def test_every_step_of_a_positive_solution_is_a_premise() -> None:
    rng = random.Random(6)
    for shape in SHAPES:
        problem = FAMILY.draw(shape, rng)
        telling = FAMILY.tell(problem, "science", rng)
        steps = re.split(r"(?<=\.) ", telling.rationale)[:-1]
        assert 1 <= len(steps) <= len(problem.values["clues"])
        if telling.answer == "yes":
            # The steps alone, without the other premises, still carry the claim.
            read = parse(" ".join([*steps, telling.question.split(". ")[-1]]))
            assert read is not None
            assert read.answer == "yes"


def altered(question: str) -> list[str]:
    """The text with one clue changed: negation removed or added, a clue dropped, the claim turned round."""
    *clues, asked = re.split(r"(?<=[.?]) ", question)
    texts = []
    for i, clue in enumerate(clues[1:], start=1):
        for old, new in (
            (r"^No (\S+) ", r"Every \1 "),
            (r"^None of the", "All of the"),
            (r"^Nobody who", "Anyone who"),
            (r"^Nothing that", "Anything that"),
            (r"it is not ", "it is "),
            (r"^(?:Every|Each) ", "No "),
            (r"^Anyone who", "Nobody who"),
            (r"^Only (.+) (are|can be) (.+)\.", r"All \1 \2 \3."),
        ):
            changed = re.sub(old, new, clue)
            # Turning round a clue that has nothing to do with the claim only renames its kinds.
            free = old.startswith("^Only") and not set(re.findall(r"\w+", clue)) & set(re.findall(r"\w+", asked))
            if changed != clue and not free:
                texts.append(" ".join([*clues[:i], changed, *clues[i + 1 :], asked]))
        texts.append(" ".join([*clues[:i], *clues[i + 1 :], asked]))
    texts += [
        " ".join([*clues, asked.replace(a, b)]) for a, b in (("that every", "that no"), ("that no", "that every"))
    ]
    return [text for text in texts if text != question]


def test_altered_statements_are_noticed() -> None:
    for telling in told(3):
        parsed = parse(telling.question)
        for tampered in altered(telling.question):
            assert parse(tampered) != parsed, tampered


def test_swapped_kinds_are_noticed() -> None:
    for telling in told(4):
        parsed = parse(telling.question)
        pairs = re.finditer(r"(?<= )All (?:the )?(\w+) are (\w+)\.", telling.question)
        asked = telling.question.split(". ")[-1]
        for pair in pairs:
            x, y = pair.groups()
            if x[:4] in asked or y[:4] in asked:
                tampered = telling.question.replace(pair.group(), f"All {y} are {x}.")
                assert parse(tampered) != parsed, tampered


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Every wug is a dax. All daxes are feps. Is it true that every wug is a fep?", "yes"),
        ("Only daxes are wugs. No dax is a fep. Is it true that no fep is a wug?", "yes"),
        ("Wugs are always daxes. If something is a dax, then it is a fep. Is it so that every fep is a wug?", "no"),
        ("Tim is a wug. Nobody who is a wug is a dax. Can we say that Tim is a dax?", "no"),
        ("Tim is a wug. Whoever is a wug counts as a dax. Can we say that Tim is a dax?", "yes"),
        ("Most wugs are daxes. All daxes are feps. Is it true that every wug is a fep?", None),
        ("Every wug is not a dax. All daxes are feps. Is it true that every wug is a fep?", None),
        ("Every wug is a dax. Daxes like feps. Is it true that every wug is a fep?", None),
        ("Every wug is a dax. Is every wug a fep?", None),
    ],
)
def test_reader_on_sentences_of_no_template(text: str, answer: str | None) -> None:
    parsed = parse(text)
    assert (parsed.answer if parsed else None) == answer
