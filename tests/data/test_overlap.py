"""Overlap of training and evaluation rows: whole prompts, runs of words, short prompts, and a brute-force oracle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.data.overlap import Match, find_overlaps
from isodistill.data.rows import Row

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def row(name: str, prompt: str, completion: str | None = None) -> Row:
    return Row(id=name, prompt=prompt, completion=completion)


def test_equal_prompts_are_found_whatever_their_case_and_punctuation() -> None:
    found = find_overlaps(
        [row("t", "How many ﬁsh?  Tell me!")], {"id": [row("a", "x"), row("e", "how many fish - tell ME")]}
    )
    assert found.exact == (Match("t", "id", "e", "how many fish tell me"),)
    assert found.ngram == ()
    assert found.rows == {"t"}
    assert (found.n_train, found.n_eval) == (1, {"id": 2})


@pytest.mark.parametrize(("n", "n_found"), [(13, 1), (14, 0)])
def test_a_run_of_n_words_counts(n: int, n_found: int) -> None:
    thirteen = " ".join(LONG.split()[1:14])
    found = find_overlaps([row("t", f"zero {thirteen} zero")], {"id": [row("e", LONG)]}, n=n)
    assert len(found.ngram) == n_found
    assert found.exact == ()
    if n_found:
        assert found.ngram[0].shared == thirteen


def test_the_completion_may_give_an_item_away() -> None:
    found = find_overlaps([row("t", "hello", f"As in: {LONG}.")], {"id": [row("e", LONG)]})
    assert [match.train_id for match in found.ngram] == ["t"]


def test_short_prompts_are_looked_for_whole() -> None:
    train = [row("t", "so: what is five times seven today?"), row("u", "two plus two is what")]
    found = find_overlaps(train, {"id": [row("e", "What is five times seven?"), row("f", "two plus two")]})
    assert [(match.train_id, match.eval_id) for match in found.ngram] == [("t", "e")]


def test_every_set_is_told_apart() -> None:
    found = find_overlaps([row("t", LONG)], {"id": [row("e", LONG)], "other": [row("e", LONG + " more")], "no": []})
    assert [match.split for match in found.exact] == ["id"]
    assert [match.split for match in found.ngram] == ["other"]
    assert found.n_eval == {"id": 1, "other": 1, "no": 0}


def test_runs_shared_by_chance_are_not_asked_for() -> None:
    with pytest.raises(ValueError, match="n = 4"):
        find_overlaps([], {}, n=4)


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=12)


@given(train=WORDS, evaluated=WORDS, n=st.integers(5, 8))
def test_it_finds_what_a_search_for_strings_finds(train: list[str], evaluated: list[str], n: int) -> None:
    found = find_overlaps([row("t", " ".join(train))], {"id": [row("e", " ".join(evaluated))]}, n=n)
    text, size = f" {' '.join(train)} ", min(n, len(evaluated))
    runs = [" ".join(evaluated[i : i + size]) for i in range(len(evaluated) - size + 1)]
    shared = size >= 5 and any(f" {run} " in text for run in runs)
    assert bool(found.rows) == (shared or train == evaluated)
    assert bool(found.exact) == (train == evaluated)
