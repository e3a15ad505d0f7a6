from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.evaluation import (
    acc_by_domain,
    acc_gap,
    acc_macro,
    acc_worst,
    all_correct,
    any_correct,
    pass_at_k,
    transfer,
)

# Three complete sets over two domains and one set without its law member.
SETS = ["a", "a", "b", "b", "c", "c", "d"]
DOMAINS = ["law", "sea", "law", "sea", "law", "sea", "sea"]
CORRECT = [True, True, True, False, False, False, True]


def test_hand_example() -> None:
    assert acc_by_domain(CORRECT, DOMAINS) == {"law": 2 / 3, "sea": 2 / 4}
    assert acc_macro(CORRECT, DOMAINS) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert acc_worst(CORRECT, DOMAINS) == 0.5
    assert acc_gap(CORRECT, DOMAINS) == pytest.approx(2 / 3 - 1 / 2)
    assert all_correct(CORRECT, SETS, DOMAINS) == pytest.approx(1 / 3)
    assert any_correct(CORRECT, SETS, DOMAINS) == pytest.approx(2 / 3)
    assert transfer(CORRECT, SETS, DOMAINS) == pytest.approx(1 / 2)


def test_macro_is_not_the_pooled_mean() -> None:
    assert acc_macro([True, True, True, False, True], ["a", "a", "a", "b", "c"]) == pytest.approx(2 / 3)


def test_items_without_a_set_ask_nothing_of_the_sets() -> None:
    assert all_correct([True, True, False], ["a", "a", None], ["law", "sea", "cooking"]) == 1.0


def test_nothing_known_leaves_transfer_undefined() -> None:
    assert all_correct([False, False], ["a", "a"]) == 0.0
    assert math.isnan(transfer([False, False], ["a", "a"]))


def test_without_a_complete_set_the_metrics_of_sets_are_undefined() -> None:
    assert math.isnan(all_correct([True, True], ["a", "b"]))
    assert math.isnan(any_correct([True, True], [None, None]))


def test_domains_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 items and domains has 1"):
        all_correct([True, True], ["a", "a"], ["law"])


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[bool], list[str], list[str]]:
    """Up to eight sets over three domains, some members missing, in any order."""
    rows = [
        (draw(st.booleans()), f"set{s}", domain)
        for s in range(draw(st.integers(1, 8)))
        for domain in "xyz"
        if draw(st.integers(0, 9)) < 8
    ]
    rows = draw(st.permutations(rows)) or [(True, "set0", "x")]
    correct, set_ids, domains = zip(*rows, strict=True)
    return list(correct), list(set_ids), list(domains)


@given(answers())
def test_metrics_of_sets_equal_plain_loops(answers: tuple[list[bool], list[str], list[str]]) -> None:
    correct, set_ids, domains = answers
    members = defaultdict(list)
    for y, s, d in zip(correct, set_ids, domains, strict=True):
        members[s].append((d, y))
    complete = [m for m in members.values() if {d for d, _ in m} == set(domains) and len(m) >= 2]
    n_all = sum(all(y for _, y in m) for m in complete)
    n_any = sum(any(y for _, y in m) for m in complete)
    if not complete:
        assert math.isnan(all_correct(correct, set_ids, domains))
        return
    assert all_correct(correct, set_ids, domains) == pytest.approx(n_all / len(complete))
    assert any_correct(correct, set_ids, domains) == pytest.approx(n_any / len(complete))
    if n_any:
        assert transfer(correct, set_ids, domains) == pytest.approx(n_all / n_any)
        assert 0 <= transfer(correct, set_ids, domains) <= 1


@given(st.integers(1, 10), st.integers(2, 4), st.randoms(use_true_random=False))
def test_all_correct_is_at_most_the_worst_domain_on_complete_sets(n: int, k: int, random) -> None:
    set_ids = [s for s in range(n) for _ in range(k)]
    domains = [d for _ in range(n) for d in range(k)]
    correct = [random.random() < 0.7 for _ in set_ids]
    assert all_correct(correct, set_ids, domains) <= acc_worst(correct, domains) + 1e-12
    assert acc_worst(correct, domains) <= any_correct(correct, set_ids, domains) + 1e-12


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_average_over_all_draws_of_k_answers(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    draws = [any(drawn) for drawn in combinations(right, k)]
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)
