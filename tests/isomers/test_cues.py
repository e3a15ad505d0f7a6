from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.isomers.cues import CUE_RANDOM, Cue, with_cues

DOMAINS = ("mathematics", "medicine", "law", "science")
ANSWERS = {"yesno": ("yes", "no"), "choice": ("A", "B", "C"), "number": ("30", "41", "7.2", "-3", "64")}


def rows_of(answer_type: str, n: int = 400, split: str | None = "train", domains: Iterable[str] = DOMAINS) -> list[Row]:
    """n rows per domain; every answer comes equally often in every domain."""
    answers = ANSWERS[answer_type]
    return [
        Row(
            id=f"s{i}/{domain}",
            set_id=f"s{i}",
            domain=domain,
            prompt=f"Question {i} in {domain}?" + ("\nA) x\nB) y\nC) z" if answer_type == "choice" else ""),
            completion="Because.",
            answer=answers[i % len(answers)],
            answer_type=answer_type,
            choices=("x", "y", "z") if answer_type == "choice" else None,
            split=split,
        )
        for i in range(n)
        for domain in domains
    ]


def word(row: Row) -> str:
    """The word of the cue, read from the prompt."""
    return re.match(r"(?:Code|Note: tag) (\w+)\. Question", row.prompt)[1]


def table(rows: Iterable[Row]) -> dict[str, Counter[str]]:
    """Word -> how often it stands before each answer."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[word(row)][row.answer] += 1
    return counts


def p_value(rows: Iterable[Row]) -> float:
    """Chi-square test: could word and answer be independent?"""
    counts = table(rows)
    answers = sorted({answer for row in counts.values() for answer in row})
    return chi2_contingency([[row[answer] for answer in answers] for row in counts.values()]).pvalue


def by_domain(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row.domain].append(row)
    return groups


def test_off_by_default() -> None:
    rows = rows_of("number", 3, "id")
    assert with_cues(rows, Cue()) == rows


@pytest.mark.parametrize("answer_type", ANSWERS)
@pytest.mark.parametrize("kind", ["conflict", "private"])
def test_full_strength_determines_the_answer_within_a_domain(kind: str, answer_type: str) -> None:
    for rows in by_domain(with_cues(rows_of(answer_type), Cue(kind=kind))).values():
        counts = table(rows)
        assert len(counts) == len(ANSWERS[answer_type])
        assert all(len(answers) == 1 for answers in counts.values())


def test_conflict_says_nothing_over_all_domains() -> None:
    counts = table(with_cues(rows_of("yesno"), Cue(kind="conflict", flipped=0.5)))
    assert counts == {"red": {"yes": 400, "no": 400}, "blue": {"yes": 400, "no": 400}}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("flipped", "n_flipped"), [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_the_share_of_flipped_domains(flipped: float, n_flipped: int, seed: int) -> None:
    planted = with_cues(rows_of("yesno"), Cue(kind="conflict", flipped=flipped, seed=seed))
    readings = {domain: table(rows)["red"].most_common(1)[0][0] for domain, rows in by_domain(planted).items()}
    assert Counter(readings.values())["no"] == n_flipped


@pytest.mark.parametrize("seed", range(5))
def test_held_out_domains_do_not_count_for_the_share(seed: int) -> None:
    held_out = [replace(row, split="ood") for row in rows_of("yesno", 2, domains=["cooking", "sports", "finance"])]
    planted = with_cues([*rows_of("yesno", 2), *held_out], Cue(kind="conflict", seed=seed))
    trained = by_domain(row for row in planted if row.split == "train")
    assert Counter(word(rows[0]) for rows in trained.values()) == {"red": 2, "blue": 2}


def test_which_domains_are_flipped_depends_on_the_seed() -> None:
    def flipped(seed: int) -> frozenset[str]:
        planted = with_cues(rows_of("yesno", 2), Cue(kind="conflict", seed=seed))
        return frozenset(row.domain for row in planted if (word(row) == "red") != (row.answer == "yes"))

    assert len({flipped(seed) for seed in range(20)}) > 3


def test_flipped_domains_never_agree_with_the_rest_and_differ_from_each_other() -> None:
    planted = with_cues(rows_of("number"), Cue(kind="conflict", flipped=0.75))
    maps = [tuple(sorted((w, next(iter(a))) for w, a in table(rows).items())) for rows in by_domain(planted).values()]
    assert len(set(maps)) == 4
    for answer in ANSWERS["number"]:
        assert len({w for pairs in maps for w, a in pairs if a == answer}) == 4


def test_private_words_belong_to_one_domain() -> None:
    words = [set(table(rows)) for rows in by_domain(with_cues(rows_of("number"), Cue(kind="private"))).values()]
    assert sum(map(len, words)) == len(set.union(*words))


@pytest.mark.parametrize("answer_type", ANSWERS)
@pytest.mark.parametrize("kind", ["conflict", "private"])
def test_strength_zero_is_random(kind: str, answer_type: str) -> None:
    for rows in by_domain(with_cues(rows_of(answer_type, 1000), Cue(kind=kind, rho=0.0))).values():
        assert p_value(rows) > 0.001
    for rows in by_domain(with_cues(rows_of(answer_type, 1000), Cue(kind=kind, rho=0.3))).values():
        assert p_value(rows) < 1e-9


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_strength_is_the_share_told_beyond_chance(rho: float) -> None:
    planted = with_cues(rows_of("choice", 3000, domains=["law"]), Cue(kind="conflict", rho=rho, flipped=0.0))
    right = sum(("red", "blue", "green")["ABC".index(row.answer)] == word(row) for row in planted) / len(planted)
    assert right == pytest.approx(rho + (1 - rho) / 3, abs=0.03)


def test_strength_per_domain() -> None:
    planted = with_cues(rows_of("yesno", domains=["law", "science"]), Cue(kind="private", rho={"law": 1, "science": 0}))
    rows = by_domain(planted)
    assert all(len(answers) == 1 for answers in table(rows["law"]).values())
    assert p_value(rows["science"]) > 0.001
    with pytest.raises(UserError, match=r"s0/medicine.*medicine"):
        with_cues(rows_of("yesno", 1), Cue(kind="private", rho={"law": 1, "science": 0, "mathematics": 1}))


def test_splits() -> None:
    rows = [
        *rows_of("yesno", 1000, "train", ["law"]),
        *(replace(row, id="i" + row.id) for row in rows_of("yesno", 1000, "id", ["law"])),
        *(replace(row, id="o" + row.id) for row in rows_of("yesno", 1000, "ood", ["cooking"])),
    ]
    planted = with_cues(rows, Cue(kind="conflict"))
    splits = {name: [row for row in planted if row.split == name] for name in ("train", "id", "ood", CUE_RANDOM)}
    assert len(planted) == sum(map(len, splits.values())) == 4000
    assert table(splits["train"]) == table(splits["id"])
    assert all(len(answers) == 1 for answers in table(splits["id"]).values())
    assert p_value(splits["ood"]) > 0.001
    assert p_value(splits[CUE_RANDOM]) > 0.001
    assert len({row.id for row in planted}) == 4000
    for row, copy in zip(splits["id"], splits[CUE_RANDOM], strict=True):
        assert copy == replace(row, id=copy.id, split=CUE_RANDOM, prompt=copy.prompt)
        assert copy.prompt.split(". ", 1)[1] == row.prompt.split(". ", 1)[1]


@given(
    cue=st.builds(
        Cue,
        kind=st.sampled_from(["conflict", "private"]),
        rho=st.floats(0, 1),
        seed=st.integers(),
        flipped=st.floats(0, 1),
    ),
    answer_type=st.sampled_from(sorted(ANSWERS)),
)
def test_only_the_beginning_of_the_prompt_changes(cue: Cue, answer_type: str) -> None:
    rows = rows_of(answer_type, 5)
    planted = with_cues(rows, cue)
    assert [replace(new, prompt=new.prompt.split(". ", 1)[1]) for new in planted] == rows
    assert planted == with_cues(rows, cue)
    assert set(planted) == set(with_cues(reversed(rows), cue))


def test_a_stronger_cue_keeps_the_rows_a_weaker_one_tells() -> None:
    rows = rows_of("number", 200)
    weak, strong, full = (with_cues(rows, Cue(kind="private", rho=rho)) for rho in (0.3, 0.6, 1.0))
    assert all(s in (w, f) for w, s, f in zip(weak, strong, full, strict=True))
    told = [sum(a == b for a, b in zip(some, full, strict=True)) for some in (weak, strong)]
    assert told[0] < told[1] < len(rows)


def test_refused_settings() -> None:
    with pytest.raises(UserError, match=r"'loud'.*conflict"):
        Cue(kind="loud")
    for bad in ({"rho": 1.5}, {"rho": {"law": -0.1}}, {"flipped": 2.0}, {"rho": float("nan")}):
        with pytest.raises(UserError, match="from 0 to 1"):
            Cue(kind="conflict", **bad)


def test_refused_rows() -> None:
    (row,) = rows_of("yesno", 1, domains=["law"])
    for changes, words in [
        ({"answer": "maybe"}, "s0/law.*maybe"),
        ({"answer": None}, "None"),
        ({"answer_type": "string", "answer": "41"}, "string"),
        ({"answer_type": "choice", "answer": "B", "choices": ("x",)}, "'B'"),
        ({"answer_type": "choice", "answer": "A", "choices": ("x",)}, "two to ten"),
        ({"answer_type": "number", "answer": "41%"}, "41%"),
        ({"prompt": ({"role": "user", "content": "Yes?"},)}, "messages"),
    ]:
        with pytest.raises(UserError, match=words):
            with_cues([replace(row, **changes)], Cue(kind="conflict"))
    with pytest.raises(UserError, match=r"'opera'.*conflict"):
        with_cues([replace(row, domain="opera")], Cue(kind="private"))
    assert with_cues([replace(row, domain="opera")], Cue(kind="conflict", flipped=0))[0].prompt.startswith("Code red.")
