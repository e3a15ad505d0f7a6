from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.data.load import QUESTION_COLUMNS, load_rows
from isodistill.data.rows import Row
from isodistill.data.split import check_leaks, split_rows, validate_domains
from isodistill.errors import UserError

DOMAINS = ("law", "medicine", "cooking")


def isomers(families: dict[str, int], n_sets: int = 2) -> list[Row]:
    """``families`` maps a family to its number of structures; every set has one member per domain."""
    return [
        Row(
            id=f"{family}/{structure}/{number}/{domain}",
            prompt=f"{family} {structure} {number} {domain}",
            set_id=f"{family}-{structure}-{number}",
            structure_id=f"{family}/{structure}",
            domain=domain,
        )
        for family, n_structures in families.items()
        for structure in range(n_structures)
        for number in range(n_sets)
        for domain in DOMAINS
    ]


def split_by(rows: list[Row], column: str) -> dict[str, set[str | None]]:
    splits: dict[str, set[str | None]] = {}
    for row in rows:
        splits.setdefault(getattr(row, column), set()).add(row.split)
    return splits


def test_a_structure_is_on_one_side_and_every_family_on_all() -> None:
    out = split_rows(isomers({"rates": 12, "order": 6, "sets": 3}))
    assert all(len(splits) == 1 for splits in split_by(out, "structure_id").values())
    for family in ("rates", "order", "sets"):
        assert {row.split for row in out if row.id.startswith(family)} == {"train", "valid", "id"}


def test_the_shares_are_met() -> None:
    out = split_rows(isomers({"rates": 100}, n_sets=1), valid=0.1, test=0.2)
    assert Counter(row.split for row in out) == {"train": 210, "valid": 30, "id": 60}


def test_held_out_domains_are_tested_only_and_only_on_unseen_structures() -> None:
    rows = isomers({"rates": 10})
    out = split_rows(rows, held_out_domains=["cooking"])
    by_domain = split_by(out, "domain")
    assert by_domain == {"cooking": {"ood"}, "law": {"train", "valid", "id"}, "medicine": {"train", "valid", "id"}}
    assert {row.structure_id for row in out if row.split == "ood"} == {
        row.structure_id for row in out if row.split == "id"
    }
    assert len(rows) - len(out) == 8 * 2  # 8 structures of 2 sets are not on the test side


def test_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    rows = isomers({"rates": 12, "order": 6})
    shuffled = random.Random(1).sample(rows, len(rows))
    first = {row.id: row.split for row in split_rows(rows)}
    assert {row.id: row.split for row in split_rows(shuffled)} == first
    assert [row.id for row in split_rows(shuffled)] == [row.id for row in shuffled]
    assert {row.id: row.split for row in split_rows(rows, seed_data=1)} != first


def test_a_domain_more_leaves_the_other_rows_where_they_are() -> None:
    rows = isomers({"rates": 12})
    fewer = [row for row in rows if row.domain != "cooking"]
    first = {row.id: row.split for row in split_rows(rows)}
    assert all(first[row.id] == row.split for row in split_rows(fewer))


def test_structures_without_a_family_share_the_sides() -> None:
    rows = [Row(id=str(i), prompt=str(i), structure_id=f"template-{i}") for i in range(20)]
    assert Counter(row.split for row in split_rows(rows)) == {"train": 14, "valid": 2, "id": 4}


def test_without_structures_sets_stay_whole_and_without_sets_rows_are_free() -> None:
    sets = [Row(id=f"{i}{d}", prompt=f"{i}{d}", set_id=str(i), domain=d) for i in range(20) for d in "ab"]
    out = split_rows(sets)
    assert all(len(splits) == 1 for splits in split_by(out, "set_id").values())
    assert {row.split for row in out} == {"train", "valid", "id"}
    rows = [Row(id=str(i), prompt=str(i)) for i in range(10)]
    assert Counter(row.split for row in split_rows(rows)) == {"train": 7, "valid": 1, "id": 2}


def test_equal_names_of_sets_and_rows_are_kept_apart() -> None:
    rows = [Row(id=str(i), prompt=f"p{i}") for i in range(6)]
    rows += [Row(id=f"x{i}", prompt=f"q{i}", set_id=str(i)) for i in range(6)]
    assert len(split_rows(rows)) == 12


LINK = st.none() | st.sampled_from("abcdefgh")


@given(links=st.lists(st.tuples(LINK, LINK, st.integers(0, 40)), min_size=1, max_size=40), seed=st.integers(0, 5))
def test_linked_rows_never_stand_on_two_sides(links: list[tuple[str | None, str | None, int]], seed: int) -> None:
    rows = [
        Row(
            id=str(i),
            prompt=f"Prompt  {prompt}" if i % 2 else f"prompt {prompt}",
            structure_id=structure,
            set_id=set_id,
        )
        for i, (structure, set_id, prompt) in enumerate(links)
    ]

    # Independent of union-find: grow the component of the first row until nothing joins.
    def linked(a: Row, b: Row) -> bool:
        same_text = a.prompt.lower().split() == b.prompt.lower().split()  # type: ignore[union-attr]
        return (
            same_text
            or (a.set_id is not None and a.set_id == b.set_id)
            or (a.structure_id is not None and a.structure_id == b.structure_id)
        )

    component = [rows[0]]
    for member in component:
        component += [row for row in rows if row not in component and linked(row, member)]
    if len(component) == len(rows):
        with pytest.raises(UserError, match="1 separate structures are too few"):
            split_rows(rows, valid=0.0, test=0.4)
        return
    out = {row.id: row.split for row in split_rows(rows, valid=0.0, test=0.4, seed_data=seed)}
    assert len(out) == len(rows)
    assert len({out[row.id] for row in component}) == 1
    assert set(out.values()) == {"train", "id"}


@pytest.mark.parametrize(("n", "sides"), [(3, {"train", "valid", "id"}), (4, {"train", "valid", "id"})])
def test_few_structures_still_reach_every_side(n: int, sides: set[str]) -> None:
    rows = [Row(id=str(i), prompt=str(i)) for i in range(n)]
    assert {row.split for row in split_rows(rows, valid=0.3, test=0.6)} == sides


def test_families_of_one_structure_are_drawn_together() -> None:
    out = split_rows(isomers({f"family{i}": 1 for i in range(10)}))
    assert Counter(row.split for row in out) == {"train": 42, "valid": 6, "id": 12}


def test_too_few_structures() -> None:
    rows = [Row(id="0", prompt="x"), Row(id="1", prompt="y")]
    with pytest.raises(UserError, match=r"2 separate structures are too few.*left for valid"):
        split_rows(rows)
    assert {row.split for row in split_rows(rows, valid=0)} == {"train", "id"}
    assert {row.split for row in split_rows(rows, valid=0, test=0)} == {"train"}


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.9, 0.2)])
def test_impossible_shares(valid: float, test: float) -> None:
    with pytest.raises(UserError, match="leave nothing to train on"):
        split_rows(isomers({"rates": 6}), valid=valid, test=test)


def test_given_splits_are_kept_and_pull_their_relatives() -> None:
    rows = [
        Row(id="a", prompt="a", set_id="s", split="cue_random"),
        Row(id="b", prompt="b", set_id="s"),
        Row(id="c", prompt="c", set_id="t", split="train"),
        Row(id="d", prompt="d", set_id="t"),
    ]
    assert [row.split for row in split_rows(rows)] == ["cue_random", "id", "train", "train"]


@pytest.mark.parametrize("other", ["valid", "id", "ood", "cue_random"])
@pytest.mark.parametrize(
    ("shared", "named"),
    [
        ({"structure_id": "tpl/7"}, "structure 'tpl/7'"),
        ({"set_id": "s9"}, "set 's9'"),
        ({"prompt": "How  MANY?\n"}, "prompt 'how many\\?'"),
    ],
)
def test_a_planted_leak_is_named(other: str, shared: dict[str, str], named: str) -> None:
    rows = [
        Row(id="a", **{"prompt": "how many?", "domain": "law", **shared}, split="train"),  # type: ignore[arg-type]
        Row(id="b", **{"prompt": "other", "domain": "sports", **shared}, split=other),  # type: ignore[arg-type]
    ]
    with pytest.raises(UserError, match=f"{named}: train row 'a' and row 'b' of {other}"):
        check_leaks(rows)
    with pytest.raises(UserError, match="stand in train"):
        split_rows(rows)


def test_a_held_out_domain_in_train_is_a_leak() -> None:
    rows = [
        Row(id="a", prompt="a", domain="law", split="train"),
        Row(id="b", prompt="b", domain="law", split="id"),
    ]
    check_leaks(rows)
    with pytest.raises(UserError, match="domain 'law'"):
        check_leaks([*rows, Row(id="c", prompt="c", domain="law", split="ood")])
    with pytest.raises(UserError, match="domain 'law': train row 'a' and held_out_domains"):
        split_rows(rows, held_out_domains=["law"])


def test_a_repeated_id() -> None:
    with pytest.raises(UserError, match="id 'a' stands on several rows"):
        split_rows([Row(id="a", prompt="x"), Row(id="a", prompt="y")], valid=0)


def test_rows_apart_are_no_leak() -> None:
    check_leaks(split_rows(isomers({"rates": 6, "order": 4}), held_out_domains=["cooking"]))


def test_unknown_domains_name_the_nearest() -> None:
    rows = isomers({"rates": 6})
    with pytest.raises(UserError, match=r"No row has the domain 'medecine'.*'medicine'.*cooking, law, medicine"):
        validate_domains(rows, ["law", "medecine"])
    with pytest.raises(UserError, match="Did you mean 'cooking'"):
        split_rows(rows, held_out_domains=["cookin"])


def test_a_domain_without_training_rows() -> None:
    rows = split_rows(isomers({"rates": 6}), held_out_domains=["cooking"])
    validate_domains(rows, ["law", "medicine"])
    with pytest.raises(UserError, match="'cooking' has no rows to train on: its 2 rows are in the split ood"):
        validate_domains(rows, ["law", "cooking"])


@pytest.mark.real_data
def test_contexthub_splits_by_template(real_data: Path) -> None:
    rows = load_rows(real_data / "contexthub", QUESTION_COLUMNS).rows
    domains = sorted({row.domain or "" for row in rows})
    out = split_rows(rows, held_out_domains=domains[:3])
    assert {row.split for row in out} == {"train", "valid", "id", "ood"}
    sides = {
        name: {s if s in ("train", "valid") else "test" for s in found}
        for name, found in split_by(out, "structure_id").items()
    }
    assert all(len(found) == 1 for found in sides.values())
