from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.evaluation import (
    agreement,
    agreement_wrong,
    cons_given_correct,
    lcs_centered,
    lcs_domain_centered,
    lcs_js,
    lcs_random,
    lcs_ratio,
    logical_consistency_score,
)


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1.0 - float(np.dot(a, b) / (np.sqrt(np.dot(a, a)) * np.sqrt(np.dot(b, b))))


def lcs_by_pairs(z: np.ndarray, set_ids: list) -> float:
    per_set = []
    for s in sorted(set(set_ids), key=str):
        members = [z[i] for i in range(len(z)) if set_ids[i] == s]
        if len(members) >= 2:
            per_set.append(np.mean([cosine_distance(a, b) for a, b in combinations(members, 2)]))
    return float(np.mean(per_set))


def items(n_sets: int, k: int, d: int, seed: int = 0) -> tuple[np.ndarray, list[str], list[str]]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n_sets * k, d)) + rng.normal(size=d)
    return z, [f"s{i // k}" for i in range(len(z))], [f"d{i % k}" for i in range(len(z))]


@given(st.integers(1, 6), st.integers(2, 5), st.integers(1, 7), st.integers(0, 100))
def test_lcs_equals_the_loop_over_pairs(n_sets: int, k: int, d: int, seed: int) -> None:
    z, set_ids, _ = items(n_sets, k, d, seed)
    assert logical_consistency_score(z, set_ids) == pytest.approx(lcs_by_pairs(z, set_ids), abs=1e-11)


def test_lcs_of_sets_of_unequal_size() -> None:
    z, _, _ = items(4, 3, 5)
    set_ids = ["a", "a", "b", "b", "b", "c", "a", "d", "d", "e", "d", "d"]
    assert logical_consistency_score(z, set_ids) == pytest.approx(lcs_by_pairs(z, set_ids), abs=1e-12)


def test_lcs_is_zero_for_equal_directions() -> None:
    z = np.repeat(np.random.default_rng(0).normal(size=(3, 6)), 4, axis=0) * np.arange(1, 13)[:, None]
    assert logical_consistency_score(z, np.repeat([0, 1, 2], 4)) == 0.0


@pytest.mark.parametrize("k", [2, 3, 5])
def test_lcs_of_a_simplex_is_its_maximum(k: int) -> None:
    simplex = np.eye(k) - 1.0 / k
    assert logical_consistency_score(simplex, ["s"] * k) == pytest.approx(k / (k - 1))


def test_lcs_does_not_depend_on_order_or_length() -> None:
    z, set_ids, _ = items(6, 4, 8)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(z))
    scale = rng.uniform(1e-6, 1e6, size=(len(z), 1))
    moved = logical_consistency_score((z * scale)[order], [set_ids[i] for i in order])
    assert moved == pytest.approx(logical_consistency_score(z, set_ids), abs=1e-12)


def test_tensors_are_read_whatever_their_kind() -> None:
    torch = pytest.importorskip("torch")
    z, _, _ = items(4, 2, 8)
    ids = torch.arange(8) // 2
    expected = logical_consistency_score(z, ids.numpy())
    assert logical_consistency_score(torch.tensor(z, requires_grad=True), ids) == pytest.approx(expected)
    assert logical_consistency_score(torch.tensor(z, dtype=torch.bfloat16), ids) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        ([[1.0, 0.0], [float("nan"), 1.0]], "Row 1 holds a value that is not finite"),
        ([[1.0, 0.0], [0.0, 0.0]], r"representations\[1\] has length 0"),
        ([[1.0, 0.0]], r"each of the 2 set_ids, shape \(2, d\); got shape \(1, 2\)"),
        ([1.0, 0.0], r"got shape \(2,\)"),
    ],
)
def test_bad_representations_are_named(z: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logical_consistency_score(np.array(z), ["a", "a"])


def test_lcs_without_a_pair_is_undefined() -> None:
    assert math.isnan(logical_consistency_score(np.eye(2), ["a", "b"]))


def test_centering_removes_the_common_direction() -> None:
    z, set_ids, _ = items(20, 3, 10)
    common = z + 100.0
    assert logical_consistency_score(common, set_ids) < 0.01
    assert lcs_centered(common, set_ids) == pytest.approx(lcs_by_pairs(common - common.mean(0), set_ids), abs=1e-9)


def test_domain_centering_removes_a_constant_offset_of_each_domain() -> None:
    rng = np.random.default_rng(0)
    base, offset = rng.normal(size=(30, 1, 8)), 5 * rng.normal(size=(1, 3, 8))
    z = (base + offset).reshape(90, 8)
    _, set_ids, domains = items(30, 3, 8)
    assert lcs_domain_centered(z, set_ids, domains) == pytest.approx(0.0, abs=1e-9)
    assert lcs_centered(z, set_ids, domains) > 0.1


def test_centering_a_collapsed_encoder_is_undefined() -> None:
    z, set_ids = np.tile(np.random.default_rng(0).normal(size=50), (21, 1)), np.repeat(np.arange(7), 3)
    assert np.abs(z - z.mean(axis=0)).max() > 0  # rounding leaves a direction
    assert math.isnan(lcs_centered(z, set_ids))


def test_a_collapsed_encoder_has_distance_zero_and_no_ratio() -> None:
    rng = np.random.default_rng(0)
    z, set_ids = rng.normal(size=50) * rng.uniform(1, 9, size=(21, 1)), np.repeat(np.arange(7), 3)
    assert logical_consistency_score(z, set_ids) == 0.0
    assert lcs_random(z, set_ids) == 0.0
    assert math.isnan(lcs_ratio(z, set_ids))


def test_lcs_random_is_the_mean_over_all_draws_from_different_sets() -> None:
    k = 3
    z, set_ids, domains = items(4, k, 6)
    draws = []
    for drawn in permutations(range(4), k):  # member of domain j from set drawn[j]
        members = [z[s * k + j] for j, s in enumerate(drawn)]
        draws.append(np.mean([cosine_distance(a, b) for a, b in combinations(members, 2)]))
    assert lcs_random(z, set_ids, domains) == pytest.approx(np.mean(draws), abs=1e-12)


def test_lcs_random_without_domains_takes_every_pair_of_two_sets() -> None:
    z, set_ids, _ = items(4, 3, 6)
    pairs = [cosine_distance(z[i], z[j]) for i, j in combinations(range(12), 2) if set_ids[i] != set_ids[j]]
    assert lcs_random(z, set_ids) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert lcs_random(z, set_ids, ["one domain"] * 12) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_lcs_ratio_is_one_when_set_ids_are_shuffled_and_low_for_isomers() -> None:
    rng = np.random.default_rng(0)
    z = np.repeat(rng.normal(size=(200, 16)), 4, axis=0) + 0.3 * rng.normal(size=(800, 16))
    set_ids = np.repeat(np.arange(200), 4)
    assert lcs_ratio(z, set_ids) < 0.15
    assert lcs_ratio(z, rng.permutation(set_ids)) == pytest.approx(1.0, abs=0.03)


def test_lcs_ratio_compares_with_pairs_of_different_domains() -> None:
    """A domain offset alone keeps the ratio at 1; pairs within a domain would make random items look close."""
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(300, 3, 8)) + 4 * rng.normal(size=(1, 3, 8))).reshape(-1, 8)
    _, set_ids, domains = items(300, 3, 8)
    assert lcs_ratio(z, set_ids, domains) == pytest.approx(1.0, abs=0.02)
    assert lcs_ratio(z, set_ids) > 1.1


def test_incomplete_sets_do_not_count() -> None:
    z, set_ids, domains = items(5, 3, 6)
    whole = lcs_random(z, set_ids, domains), lcs_ratio(z, set_ids, domains)
    extra = np.random.default_rng(5).normal(size=(2, 6))
    grown = np.vstack([z, extra]), [*set_ids, "half", "half"], [*domains, "d0", "d1"]
    assert (lcs_random(*grown), lcs_ratio(*grown)) == pytest.approx(whole)


def test_js_in_bits() -> None:
    assert lcs_js([[0.5, 0.5], [0.5, 0.5]], ["a", "a"]) == 0.0
    assert lcs_js([[1.0, 0.0], [0.0, 1.0]], ["a", "a"]) == pytest.approx(1.0)


def test_js_equals_the_definition() -> None:
    pi = np.random.default_rng(0).dirichlet(np.ones(4), size=6)

    def js(p: np.ndarray, q: np.ndarray) -> float:
        m = (p + q) / 2
        return sum((a * math.log2(a / c) + b * math.log2(b / c)) / 2 for a, b, c in zip(p, q, m, strict=True))

    by_loop = np.mean([np.mean([js(p, q) for p, q in combinations(pi[i : i + 3], 2)]) for i in (0, 3)])
    assert lcs_js(pi, ["a"] * 3 + ["b"] * 3) == pytest.approx(by_loop)


def test_js_refuses_what_is_no_distribution() -> None:
    with pytest.raises(ValueError, match=r"distributions\[1\] is no distribution"):
        lcs_js([[0.5, 0.5], [0.5, 0.6]], ["a", "a"])


def test_a_hand_example_of_being_consistently_wrong() -> None:
    set_ids = ["a"] * 3 + ["b"] * 3
    canonical = ["7", "7", "7", "19", "19", "5"]  # gold is 19 in both
    correct = [False, False, False, True, True, False]
    assert agreement(canonical, set_ids) == pytest.approx((1 + 2 / 6) / 2)
    assert agreement_wrong(canonical, correct, set_ids) == 1.0
    assert cons_given_correct(correct, set_ids) == pytest.approx(2 / 4)


def test_truncated_members_agree_with_nobody() -> None:
    assert agreement([None, None, None], ["a"] * 3) == 0.0
    assert agreement(["19", "19", None], ["a"] * 3) == pytest.approx(2 / 6)


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=6, max_size=12), st.integers(2, 4))
def test_agreement_and_consistency_equal_loops_over_pairs(canonical: list[str | None], k: int) -> None:
    canonical = canonical[: len(canonical) // k * k]
    set_ids = [i // k for i in range(len(canonical))]
    correct = [a == "1" for a in canonical]
    sets = [range(s, s + k) for s in range(0, len(canonical), k)]
    per_set = [
        np.mean([canonical[i] is not None and canonical[i] == canonical[j] for i, j in permutations(members, 2)])
        for members in sets
    ]
    assert agreement(canonical, set_ids) == pytest.approx(np.mean(per_set))
    wrong = [v for v, members in zip(per_set, sets, strict=True) if not any(correct[i] for i in members)]
    assert agreement_wrong(canonical, correct, set_ids) == pytest.approx(
        np.mean(wrong) if wrong else np.nan, nan_ok=True
    )
    pairs = [correct[j] for members in sets for i, j in permutations(members, 2) if correct[i]]
    assert cons_given_correct(correct, set_ids) == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)
