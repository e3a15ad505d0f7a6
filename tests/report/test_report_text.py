"""Sentences and number formats: each verdict follows from the interval and from nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.report.run import Estimate
from isodistill.report.text import (
    change_claim,
    level_claim,
    mcnemar_sentence,
    method_label,
    pair_claim,
    percent,
    seed_note,
    signed,
    verdict,
)

shares = st.floats(-1, 1, allow_nan=False)


@pytest.mark.parametrize(
    ("interval", "higher_is_better", "expected"),
    [
        ((0.01, 0.09), True, "better"),
        ((-0.09, -0.01), True, "worse"),
        ((-0.01, 0.09), True, "unclear"),
        ((0.0, 0.09), True, "unclear"),
        ((-0.09, 0.0), True, "unclear"),
        ((0.0, 0.0), True, "unclear"),
        ((0.01, 0.09), False, "worse"),
        ((-0.09, -0.01), False, "better"),
        ((None, None), True, "unknown"),
        ((float("nan"), 0.2), True, "unknown"),
    ],
)
def test_verdict(interval: tuple[float | None, float | None], higher_is_better: bool, expected: str) -> None:
    assert verdict(Estimate(0.05, *interval), higher_is_better=higher_is_better) == expected


@given(a=shares, b=shares)
def test_an_interval_around_zero_is_never_called_a_gain_or_a_loss(a: float, b: float) -> None:
    lo, hi = min(a, b), max(a, b)
    sentence = pair_claim("ood", "ERM", "IGA", (0.3, 0.4), Estimate((lo + hi) / 2, lo, hi)).sentence
    contains_zero = min(lo, hi) <= 0 and max(lo, hi) >= 0
    assert ("no clear difference" in sentence) == contains_zero
    assert ("clear gain" in sentence) == (lo > 0)
    assert ("clear loss" in sentence) == (hi < 0)
    assert "significant" not in sentence


def test_pair_claim_names_both_students_with_their_numbers() -> None:
    claim = pair_claim("ood", "ERM", "IGA", (0.342, 0.496), Estimate(0.154, 0.109, 0.199))
    assert claim.value == "+15.4 points"
    assert claim.interval.replace("\N{NARROW NO-BREAK SPACE}", " ") == "95 % interval +10.9 to +19.9"
    assert claim.sentence.replace("\N{NARROW NO-BREAK SPACE}", " ") == (
        "In domains never trained on, IGA answers 49.6 % correctly and ERM 34.2 %. "
        "The whole interval lies above 0: a clear gain."
    )


def test_change_claim_without_an_interval_says_that_chance_is_not_ruled_out() -> None:
    claim = change_claim("id", "ERM", (0.2, 0.4), Estimate(0.2))
    assert claim.interval == "no interval computed"
    assert "chance is not ruled out" in claim.sentence
    assert "gain" not in claim.sentence


def test_a_student_alone_is_compared_with_nothing() -> None:
    claim = level_claim("my_split", "ERM", Estimate(0.4, 0.35, 0.45))
    assert claim.difference is None
    assert claim.where == "Split my_split"
    assert "nothing to compare with" in claim.sentence


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [
        ({"name": "iga", "space": "factor", "control": "none"}, "IGA, tier F (ours)"),
        ({"name": "iga", "space": "weight"}, "IGA, tier W (ours)"),
        ({"name": "iga", "space": "factor", "control": "random"}, "IGA, tier F (ours), control: random mask"),
    ],
)
def test_iga_is_never_named_without_its_tier_and_control(alignment: dict[str, str], expected: str) -> None:
    assert method_label({"method": "iga"}, {"alignment": alignment}) == expected


def test_other_methods_keep_their_name() -> None:
    assert method_label({"method": "erm"}, {"alignment": {"name": "erm"}}) == "ERM"
    assert method_label({"method": "vrex"}, {}) == "V-REx"
    assert method_label({"method": "mine"}, {}) == "mine"


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(1.25, 1, "+1.2"), (-3.04, 1, "\N{MINUS SIGN}3.0"), (-0.04, 1, "0.0"), (0.04, 1, "0.0"), (-0.0004, 3, "0.000")],
)
def test_signed(value: float, decimals: int, text: str) -> None:
    assert signed(value, decimals) == text


@given(st.floats(0, 1))
def test_percent_is_within_half_a_tenth(share: float) -> None:
    assert abs(float(percent(share).split("\N{NARROW NO-BREAK SPACE}")[0]) - 100 * share) <= 0.05 + 1e-9


def test_mcnemar_gives_each_side_its_own_count() -> None:
    sentence = mcnemar_sentence({"b": 6, "c": 14, "p": 0.115}, "ERM", "IGA")
    assert "ERM 6, IGA 14" in sentence
    assert "p = 0.115" in sentence


def test_seed_note_says_what_the_intervals_cover() -> None:
    assert "not what another seed would give" in seed_note(1, 0)
    assert "not training seeds" in seed_note(2, 0)
    assert "test problems and training seeds" in seed_note(3, 0)
    assert "seed 7" in seed_note(3, 7)
