from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest

from isodistill.errors import UserError
from isodistill.isomers.cues import Cue, with_cues
from isodistill.isomers.family import DOMAINS, Family, Problem, Telling
from isodistill.isomers.generate import FAMILIES, generate_sets


class Recorded:
    """A family that remembers what it told and where the random streams of its draws began."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.name = family.name
        self.answer_type = family.answer_type
        self.shapes = family.shapes
        self.told: list[tuple[Problem, str]] = []
        self.streams: list[float] = []

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        self.streams.append(rng.random())
        return self.family.draw(shape, rng)

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        self.told.append((problem, domain))
        return self.family.tell(problem, domain, rng)


class Pick:
    """A family with few problems: one of four things is asked for."""

    name = "pick"
    answer_type = "choice"

    def shapes(self, difficulty: int) -> list[tuple[str | int, ...]]:
        return [("of", 2), ("of", 1 + difficulty)]

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        return Problem("pick", shape, {"slot": rng.randrange(int(shape[1]))})

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        n, slot = int(problem.shape[1]), int(problem.values["slot"])
        things = tuple(f"{domain} {rng.choice('xyz')}{i}" for i in range(n))
        return Telling(f"Which one is number {slot + 1}?", f"It is {things[slot]}.", "ABCD"[slot], things)


@pytest.fixture
def pick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "pick", Pick)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_dict_calls_families_by_their_names(name: str) -> None:
    assert FAMILIES[name]().name == name


def test_a_row(pick: None) -> None:
    (row,) = generate_sets(n_sets=1, seed=3, families=["pick"], domains=["law"], difficulty=[1])
    slot = "AB".index(row.answer)
    assert row.prompt == f"Which one is number {slot + 1}?\nA) {row.choices[0]}\nB) {row.choices[1]}"
    assert row.completion == f"It is {row.choices[slot]}. The answer is {row.answer}."
    assert row.id == f"{row.set_id}/law"
    assert row.set_id.startswith("pick-")
    assert (row.domain, row.structure_id, row.answer_type, row.split) == ("law", "pick/of-2", "choice", None)


def test_the_same_seed_gives_the_same_rows() -> None:
    rows = generate_sets(n_sets=16, seed=5)
    assert rows == generate_sets(n_sets=16, seed=5)
    assert generate_sets(n_sets=9, seed=5) == rows[: 9 * len(DOMAINS)]
    law = generate_sets(n_sets=16, seed=5, domains=["law"])
    assert law == [row for row in rows if row.domain == "law"]


def test_seeds_families_and_indices_share_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    families = {name: Recorded(FAMILIES[name]()) for name in ("rates", "ordering")}
    for name, family in families.items():
        monkeypatch.setitem(FAMILIES, name, lambda family=family: family)
    for seed in range(10):
        generate_sets(n_sets=20, seed=seed, families=list(families), domains=["law"])
    streams = [stream for family in families.values() for stream in family.streams]
    assert len(streams) == len(set(streams)) >= 200


def test_seeds_share_few_problems() -> None:
    sets = [{row.set_id for row in generate_sets(n_sets=200, seed=s, domains=["law"])} for s in (0, 1, 2, 200)]
    for i, some in enumerate(sets):
        for other in sets[:i]:
            assert len(some & other) <= 10


def test_the_same_problem_has_the_same_id_under_any_seed(pick: None) -> None:
    ids = [
        {row.set_id: row.answer for row in generate_sets(n_sets=2, seed=s, families=["pick"], difficulty=[1])}
        for s in (0, 1)
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2


def test_equal_values_of_two_structures_are_two_problems(pick: None) -> None:
    rows = generate_sets(n_sets=4, seed=0, families=["pick"], domains=["law"], difficulty=[1, 2])
    assert len({row.set_id for row in rows}) == 4


def test_every_set_is_told_in_every_domain_and_none_twice() -> None:
    rows = generate_sets(n_sets=40, seed=0, difficulty=(1, 2, 3))
    sets = defaultdict(list)
    for row in rows:
        sets[row.set_id].append(row)
    assert len(sets) == 40
    for members in sets.values():
        assert tuple(row.domain for row in members) == DOMAINS
        assert len({(row.answer, row.answer_type, row.structure_id) for row in members}) == 1
        assert len({row.choices and len(row.choices) for row in members}) == 1
    assert len({row.id for row in rows}) == len({row.prompt for row in rows}) == 400


def test_sets_are_spread_over_families_and_structures() -> None:
    n = len(FAMILIES)
    structures = Counter(row.structure_id for row in generate_sets(n_sets=20 * n, seed=1, domains=["law"]))
    families = Counter()
    for structure, count in structures.items():
        families[structure.split("/")[0]] += count
    assert families == dict.fromkeys(FAMILIES, 20)
    for name in FAMILIES:
        counts = [count for structure, count in structures.items() if structure.startswith(f"{name}/")]
        assert max(counts) - min(counts) <= 1
        shapes = {shape for level in (1, 2) for shape in FAMILIES[name]().shapes(level)}
        assert len(counts) == min(20, len(shapes))


def test_few_sets_do_not_always_have_the_same_structures() -> None:
    rows = [generate_sets(n_sets=1, seed=seed, families=["ordering"], domains=["law"])[0] for seed in range(20)]
    assert len({row.structure_id for row in rows}) > 5


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_what_the_solver_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = Recorded(FAMILIES[name]())
    monkeypatch.setitem(FAMILIES, name, lambda: family)
    rows = generate_sets(n_sets=40, seed=2, families=[name], difficulty=(1, 2, 3))
    for row, (problem, domain) in zip(rows, family.told, strict=True):
        assert (row.domain, row.structure_id) == (domain, problem.structure_id)
        assert row.answer == family.family.solve(problem)
        assert row.completion.endswith(f". The answer is {row.answer}.")
        assert row.completion.count("The answer is") == 1


@pytest.mark.parametrize("level", [1, 2, 3])
def test_difficulty_chooses_the_structures(level: int) -> None:
    for name, family in FAMILIES.items():
        rows = generate_sets(n_sets=30, seed=0, families=[name], domains=["law"], difficulty=[level])
        assert {row.structure_id for row in rows} <= {
            Problem(name, shape, {}).structure_id for shape in family().shapes(level)
        }


def test_a_cue_is_planted_in_all_rows() -> None:
    cue = Cue(kind="conflict")
    assert generate_sets(n_sets=4, seed=0, cue=cue) == with_cues(generate_sets(n_sets=4, seed=0), cue)
    assert generate_sets(n_sets=4, seed=0, cue=cue)[0].prompt.startswith("Code ")


def test_more_sets_than_problems(pick: None) -> None:
    wanted = {"seed": 0, "families": ["pick"], "domains": ["law"], "difficulty": [3]}
    structures = [row.structure_id for row in generate_sets(n_sets=6, **wanted)]
    assert Counter(structures) == {"pick/of-2": 2, "pick/of-4": 4}
    assert structures[-2:] == ["pick/of-4"] * 2
    with pytest.raises(UserError, match=r"pick: .* after 6 .*fewer sets"):
        generate_sets(n_sets=7, **wanted)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"families": ["rate"]}, r"'rate'.*rates"),
        ({"families": []}, "empty"),
        ({"domains": ["law", "opera"]}, r"'opera'.*cooking"),
        ({"domains": ["law", "law"]}, "twice"),
        ({"difficulty": [4]}, "4 is unknown"),
        ({"n_sets": 0}, "at least one"),
    ],
)
def test_refused_settings(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        generate_sets(**{"n_sets": 1, "seed": 0} | wrong)
