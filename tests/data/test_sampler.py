from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from isodistill.data.sampler import IsomerSetSampler
from isodistill.errors import UserError

DOMAINS = ("law", "medicine", "science")


def sampler(
    rows: list[tuple[str | None, str | None]], sets_per_batch: int = 2, seed: int = 0, **options: Any
) -> IsomerSetSampler:
    options = {"domains": DOMAINS, **options}
    return IsomerSetSampler(
        [s for s, _ in rows], [d for _, d in rows], sets_per_batch=sets_per_batch, seed=seed, **options
    )


def whole_sets(n: int) -> list[tuple[str | None, str | None]]:
    """Domain by domain, so that the members of a set stand far apart."""
    return [(f"s{i}", domain) for domain in DOMAINS for i in range(n)]


def test_a_batch_is_whole_sets_with_every_domain_once() -> None:
    rows = whole_sets(7)
    batches = list(sampler(rows, sets_per_batch=2))
    assert len(batches) == len(sampler(rows, sets_per_batch=2)) == 3
    for batch in batches:
        assert sorted(Counter(rows[i][0] for i in batch).values()) == [3, 3]
        for at in (0, 3):
            assert [rows[i][1] for i in batch[at : at + 3]] == list(DOMAINS)
            assert len({rows[i][0] for i in batch[at : at + 3]}) == 1
    assert len({i for batch in batches for i in batch}) == 18  # the seventh set is the incomplete batch


def test_order_follows_seed_and_epoch() -> None:
    rows = whole_sets(20)
    first, again, other = sampler(rows), sampler(rows), sampler(rows, seed=1)
    assert list(first) == list(first) == list(again)
    assert list(first) != list(other)
    again.set_epoch(1)
    assert list(again) != list(first)
    again.set_epoch(0)
    assert list(again) == list(first)


@pytest.mark.parametrize("stop", [0, 1, 4, 9, 10])
def test_resume_gives_exactly_the_remaining_batches(stop: int) -> None:
    rows = whole_sets(20)
    whole = sampler(rows)
    whole.set_epoch(3)
    expected = list(whole)
    first = sampler(rows)
    first.set_epoch(3)
    passing = iter(first)
    taken = [next(passing) for _ in range(stop)]
    state = json.loads(json.dumps(first.state_dict()))
    second = sampler(rows)
    second.load_state_dict(state)
    assert len(second) == 10
    second.set_epoch(3)  # a trainer names the current epoch once more
    assert taken + list(second) == expected
    assert list(second) == expected  # the next pass is a whole one
    whole.set_epoch(4)
    second.set_epoch(4)
    assert list(second) == list(whole)


def test_a_loaded_position_ends_with_its_epoch() -> None:
    rows = whole_sets(20)
    resumed = sampler(rows)
    resumed.load_state_dict({**resumed.state_dict(), "epoch": 0, "batch": 6})
    resumed.set_epoch(1)
    assert len(list(resumed)) == 10
    assert resumed.state_dict()["epoch"] == 1


@pytest.mark.parametrize("other", [{"seed": 1}, {"sets_per_batch": 3}, {"n": 19}])
def test_a_position_of_another_run_is_refused(other: dict[str, int]) -> None:
    state = sampler(whole_sets(20)).state_dict()
    options = dict(other)
    with pytest.raises(UserError, match="An exact resume needs"):
        sampler(whole_sets(options.pop("n", 20)), **options).load_state_dict(state)


def test_sets_that_lack_a_domain_are_dropped_and_named() -> None:
    rows = [*whole_sets(4), ("lone", "law"), ("pair", "law"), ("pair", "science")]
    dropping = sampler(rows, sets_per_batch=1)
    assert dropping.dropped == {"lone": ("medicine", "science"), "pair": ("medicine",)}
    assert {rows[i][0] for batch in dropping for i in batch} == {"s0", "s1", "s2", "s3"}
    keeping = sampler(rows, sets_per_batch=1, missing_domain="subset")
    assert keeping.dropped == {}
    assert sorted(len(batch) for batch in keeping) == [1, 2, 3, 3, 3, 3]


def test_rows_of_other_domains_are_counted_and_left_alone() -> None:
    rows = [*whole_sets(4), ("s0", "sports"), (None, "sports")]
    without = sampler(rows, sets_per_batch=1)
    assert without.n_other_domains == 2
    assert {i for batch in without for i in batch} == set(range(12))


def test_rows_without_sets_are_balanced_over_domains() -> None:
    rows: list[tuple[str | None, str | None]] = [(None, "law")] * 7 + [(None, "medicine")] * 3 + [(None, "science")] * 2
    drawing = sampler(rows, sets_per_batch=1)
    batches = list(drawing)
    assert len(batches) == 7
    assert all([rows[i][1] for i in batch] == list(DOMAINS) for batch in batches)
    times = Counter(i for batch in batches for i in batch)
    assert [times[i] for i in range(7)] == [1] * 7
    assert sorted(times[i] for i in range(7, 10)) == [2, 2, 3]  # 7 draws cycle through 3 rows
    assert sorted(times[i] for i in range(10, 12)) == [3, 4]


def test_rows_without_sets_meet_others_in_every_epoch() -> None:
    drawing = sampler([(None, domain) for domain in DOMAINS for _ in range(20)], sets_per_batch=1)
    first = {tuple(batch) for batch in drawing}
    drawing.set_epoch(1)
    assert len(first & {tuple(batch) for batch in drawing}) < 5


def test_several_rows_of_one_domain_in_a_set_are_all_shown() -> None:
    rows = [*whole_sets(1), ("s0", "law"), ("s0", "law"), ("s0", "science")]
    batches = list(sampler(rows, sets_per_batch=1))
    assert [[rows[i][1] for i in batch] for batch in batches] == [list(DOMAINS)] * 3
    assert {i for batch in batches for i in batch} == set(range(6))


@pytest.mark.parametrize("set_id", [None, "same"])
def test_one_domain_is_plain_shuffling(set_id: str | None) -> None:
    rows: list[tuple[str | None, str | None]] = [(set_id, None)] * 10
    plain = sampler(rows, sets_per_batch=4, domains=("all",))
    batches = list(plain)
    assert [len(batch) for batch in batches] == [4, 4]
    assert len({i for batch in batches for i in batch}) == 8
    assert batches != [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_less_than_one_batch_says_what_to_lower() -> None:
    rows = [*whole_sets(3), ("lone", "law")]
    with pytest.raises(
        UserError, match=r"make 3 complete sets.*sets_per_batch = 4.*set 'lone' lack medicine, science.*Lower"
    ):
        sampler(rows, sets_per_batch=4)
    with pytest.raises(UserError, match="Lower sets_per_batch"):
        sampler([], sets_per_batch=1)
    with pytest.raises(UserError, match="at least 1"):
        sampler(whole_sets(3), sets_per_batch=0)
    with pytest.raises(UserError, match="rows without a set lack science"):
        sampler([(None, "law"), (None, "medicine")], sets_per_batch=1)


@given(
    rows=st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.sampled_from(DOMAINS)), min_size=1, max_size=30),
    epoch=st.integers(0, 3),
)
def test_every_usable_row_is_shown_in_every_epoch(rows: list[tuple[str | None, str | None]], epoch: int) -> None:
    usable = {i for i, (set_id, _) in enumerate(rows) if {d for s, d in rows if s == set_id} == set(DOMAINS)}
    if not usable:
        with pytest.raises(UserError):
            sampler(rows, sets_per_batch=1)
        return
    drawing = sampler(rows, sets_per_batch=1)
    drawing.set_epoch(epoch)
    batches = list(drawing)
    assert {i for batch in batches for i in batch} == usable
    assert len(batches) == len(drawing)
    for batch in batches:
        assert [rows[i][1] for i in batch] == list(DOMAINS)
        assert len({rows[i][0] for i in batch}) == 1


# ---- with accelerate, as transformers.Trainer uses it ----


def prepared(n_processes: int = 1, process: int = 0) -> tuple[Any, IsomerSetSampler]:
    rows = whole_sets(21)
    batch_sampler = sampler(rows)
    loader = DataLoader(list(range(len(rows))), batch_sampler=batch_sampler, collate_fn=list)  # type: ignore[arg-type]
    return prepare_data_loader(loader, num_processes=n_processes, process_index=process), batch_sampler


def epoch_order(epoch: int) -> list[list[int]]:
    plain = sampler(whole_sets(21))
    plain.set_epoch(epoch)
    return list(plain)


def test_an_accelerate_loader_passes_the_epoch_on() -> None:
    loader, _ = prepared()
    assert len(loader) == 10
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        assert list(loader) == epoch_order(epoch)


def test_skipping_batches_of_an_epoch_resumes_it() -> None:
    loader, batch_sampler = prepared()
    rest = skip_first_batches(loader, 4)
    batch_sampler.set_epoch(2)
    assert list(rest) == epoch_order(2)[4:]


def test_processes_share_an_epoch_without_overlap() -> None:
    orders = []
    for process in (0, 1, 2):
        loader, batch_sampler = prepared(3, process)
        batch_sampler.set_epoch(1)
        orders.append(list(skip_first_batches(loader, 1)))
    expected = epoch_order(1)
    assert orders == [expected[3 + p : 9 : 3] for p in range(3)]  # the tenth batch does not reach every process


def test_domain_groups_share_out_the_domains_of_the_same_sets() -> None:
    ids = [f"s{s}" for s in range(4) for _ in range(3)]
    names = ["a", "b", "c"] * 4
    common = {"domains": ("a", "b", "c"), "sets_per_batch": 2, "seed": 1}
    whole = IsomerSetSampler(ids, names, **common)
    parts = IsomerSetSampler(ids, names, domain_groups=2, **common)
    assert len(parts) == 2 * len(whole)
    handed = list(parts)
    for batch, first, second in zip(whole, handed[::2], handed[1::2], strict=True):
        assert sorted(first + second) == sorted(batch)
        assert {names[i] for i in first} == {"a", "c"}
        assert {names[i] for i in second} == {"b"}
    with pytest.raises(UserError, match="4 processes cannot each take domains of their own"):
        IsomerSetSampler(ids, names, domain_groups=4, **common)
