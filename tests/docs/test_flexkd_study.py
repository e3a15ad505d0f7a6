"""What studies/flexkd.py measures with: ROUGE-L against a search through all subsequences."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

words = st.lists(st.sampled_from("abc"), max_size=6)


@pytest.fixture(scope="module")
def study(load_study: Callable[[str], ModuleType]) -> ModuleType:
    return load_study("flexkd_tasks")


@given(found=words, gold=words)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(
    study: ModuleType, found: list[str], gold: list[str]
) -> None:
    common = [n for n in range(min(len(found), len(gold)) + 1) if {*combinations(found, n)} & {*combinations(gold, n)}]
    longest = max(common)
    precision, recall = (longest / len(side) if side else 0.0 for side in (found, gold))
    f1 = 2 * precision * recall / (precision + recall) if longest else 0.0
    assert study.rouge_l(" ".join(found), " ".join(gold)) == pytest.approx(f1)
