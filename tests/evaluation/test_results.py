from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import combinations

import numpy as np
import pytest

from isodistill import evaluation
from isodistill.errors import UserError
from isodistill.evaluation import (
    PredictionLog,
    Record,
    compare,
    compare_seeds,
    comparison_json,
    json_text,
    split_results,
)

DOMAINS = ("law", "medicine", "sea")
METRICS = (
    *("acc_macro", "acc_worst", "acc_gap", "all_correct", "any_correct", "transfer"),
    *("agreement", "agreement_wrong", "cons_given_correct"),
    *("lcs", "lcs_random", "lcs_ratio", "lcs_centered", "lcs_domain_centered", "lcs_js"),
)
KEYS = {
    *("n_items", "n_sets", "n_incomplete_sets", "n_samples", "truncated", "unparsed", "wrong"),
    *("tokens_median", "tokens_p95", "acc_by_domain", "pass_at_k", "reasons"),
    *METRICS,
    *(f"{name}_ci95" for name in (*METRICS, "acc_by_domain", "pass_at_k")),
}
FEW = {"resamples": 300}


@pytest.fixture
def answered(make_record):
    """``answered(seed, skill)``: 40 sets in three domains, with three incomplete sets and four items without a set."""

    def answer(seed: int, skill: float, **changed) -> list[Record]:
        rng = np.random.default_rng(seed)
        ids = [(f"s{s:02d}", d) for s in range(43) for d in DOMAINS if s < 40 or d == "law"]
        ids += [(None, "law")] * 4
        records = []
        for i, (set_id, domain) in enumerate(ids):
            given = "19" if rng.random() < skill else rng.choice(["7", "8", None], p=[0.5, 0.3, 0.2])
            pi = np.random.default_rng([seed, i]).dirichlet([1, 1, 1]).tolist()
            fields = {"item_id": f"{i:03d}", "n_new_tokens": int(rng.integers(5, 60)), "pi": pi}
            records.append(make_record(set_id, domain, given, **(fields | changed)))
        return records

    return answer


def states(records: list[Record], spread: float, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    centers = {record.set_id: rng.normal(size=6) for record in records}
    return {r.item_id: (centers[r.set_id] + spread * rng.normal(size=6)).astype(np.float32) for r in records}


def test_reasons_are_counted_where_programs_or_instructions_were_asked(make_record) -> None:
    numbers = [make_record("s0", d) for d in DOMAINS]
    assert split_results(numbers, **FEW)["reasons"] is None
    broken = ["a; b", "b", None]
    records = [
        make_record("s0", d, "7" if reason else "19", answer_type="instructions", reason=reason)
        for d, reason in zip(DOMAINS, broken, strict=True)
    ]
    assert list(split_results(records, **FEW)["reasons"].items()) == [("b", 2), ("a", 1)]


def test_every_number_agrees_with_the_public_metrics(answered) -> None:
    records = answered(0, 0.5)
    z = states(records, 0.5)
    result = split_results(records, z, **FEW)
    assert set(result) == KEYS
    correct = [r.outcome == "correct" for r in records]
    domains = [r.domain for r in records]
    whole = [r for r in records if r.set_id is not None and r.set_id < "s40"]
    y, ids, d = [r.outcome == "correct" for r in whole], [r.set_id for r in whole], [r.domain for r in whole]
    canonical = [r.canon_parsed for r in whole]
    zs = np.stack([z[r.item_id] for r in whole])
    expected = {
        "n_items": 127,
        "n_sets": 40,
        "n_incomplete_sets": 3,
        "acc_by_domain": evaluation.acc_by_domain(correct, domains),
        "acc_macro": evaluation.acc_macro(correct, domains),
        "acc_worst": evaluation.acc_worst(correct, domains),
        "acc_gap": evaluation.acc_gap(correct, domains),
        "all_correct": evaluation.all_correct(y, ids, d),
        "any_correct": evaluation.any_correct(y, ids, d),
        "transfer": evaluation.transfer(y, ids, d),
        "agreement": evaluation.agreement(canonical, ids, d),
        "agreement_wrong": evaluation.agreement_wrong(canonical, y, ids, d),
        "cons_given_correct": evaluation.cons_given_correct(y, ids, d),
        "lcs": evaluation.logical_consistency_score(zs, ids),
        "lcs_random": evaluation.lcs_random(zs, ids, d),
        "lcs_ratio": evaluation.lcs_ratio(zs, ids, d),
        "lcs_centered": evaluation.lcs_centered(zs, ids, d),
        "lcs_domain_centered": evaluation.lcs_domain_centered(zs, ids, d),
        "lcs_js": evaluation.lcs_js([r.pi for r in whole], ids, d),
        "tokens_median": float(np.median([r.n_new_tokens for r in records])),
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-9), name
    assert result["truncated"] + result["unparsed"] + result["wrong"] + np.mean(correct) == pytest.approx(1.0)
    for name in METRICS:
        low, high = result[f"{name}_ci95"]
        assert low < result[name] < high or (name == "acc_gap" and low < high), name  # resamples of a gap lie high
    assert set(result["acc_by_domain_ci95"]) == set(DOMAINS)


def test_records_in_any_order_and_from_disk_give_the_same_bytes(answered, tmp_path) -> None:
    records = answered(0, 0.5)
    z = states(records, 0.5)
    log = PredictionLog(tmp_path / "predictions.jsonl")
    for i in np.random.default_rng(1).permutation(len(records)):
        log.append(records[i])
    text = json_text(split_results(records, z, **FEW))
    assert json_text(split_results(log.read(), z, **FEW)) == text
    other = answered(1, 0.7)
    assert json_text(compare(records, other, **FEW)) == json_text(compare(log.read(), other[::-1], **FEW))


def test_rows_without_sets_have_accuracies_and_no_metrics_of_sets(make_record) -> None:
    records = [make_record(None, None, "19" if i % 3 else "7", item_id=str(i)) for i in range(30)]
    result = split_results(records, **FEW)
    assert result["acc_by_domain"] == {"all": pytest.approx(2 / 3)}
    low, high = result["acc_macro_ci95"]
    assert low < 2 / 3 < high
    assert result["n_sets"] == result["n_incomplete_sets"] == 0
    for name in ("all_correct", "all_correct_ci95", "any_correct", "transfer", "agreement", "agreement_ci95", "lcs"):
        assert result[name] is None, name
    assert compare(records, records, **FEW)["id"]["all_correct"] is None
    assert compare(records, records, **FEW)["id"]["mcnemar_all_correct"] is None


def test_lcs_js_is_taken_over_the_sets_whose_members_all_have_options(answered) -> None:
    records = answered(0, 0.5)
    value = evaluation.lcs_js([r.pi for r in records[3:120]], [r.set_id for r in records[3:120]])
    for first in (None, [0.5, 0.5]):  # a member without options, and one with other options than the rest of its set
        assert split_results([replace(records[0], pi=first), *records[1:]], **FEW)["lcs_js"] == pytest.approx(value)
    without = [replace(record, pi=None) for record in records]
    assert split_results(without, **FEW)["lcs_js"] is None
    assert split_results(without, **FEW)["lcs_js_ci95"] is None
    assert compare(records, without, **FEW)["id"]["lcs_js"] is None


def test_a_split_at_one_point_has_no_centred_lcs_and_no_interval_of_it(answered) -> None:
    records = answered(0, 0.5)
    result = split_results(records, {r.item_id: np.ones(6) for r in records}, **FEW)
    assert (result["lcs"], result["lcs_ci95"]) == (0.0, [0.0, 0.0])
    for name in ("lcs_ratio", "lcs_centered", "lcs_domain_centered"):
        assert result[name] is None, name
        assert result[f"{name}_ci95"] is None, name


def test_several_answers_per_item_give_means_over_the_samples_and_pass_at_k(answered) -> None:
    samples = [[replace(r, sample=j) for r in answered(j, 0.4)] for j in range(3)]
    records = [record for sample in samples for record in sample]
    single, result = [split_results(sample, **FEW) for sample in samples], split_results(records[::-1], **FEW)
    assert (single[0]["n_samples"], single[0]["pass_at_k"], single[0]["pass_at_k_ci95"]) == (1, None, None)
    assert (result["n_samples"], result["n_items"], result["n_sets"]) == (3, 127, 40)
    for name in ("acc_macro", "all_correct", "transfer", "agreement", "lcs_js", "truncated", "wrong"):
        assert result[name] == pytest.approx(np.mean([one[name] for one in single])), name
    right = np.array([[r.outcome == "correct" for r in sample] for sample in samples])
    domains = [r.domain for r in samples[0]]
    assert list(result["pass_at_k"]) == ["1", "2", "3"]
    assert result["pass_at_k"]["1"] == pytest.approx(result["acc_macro"])
    assert result["pass_at_k_ci95"]["1"] == pytest.approx(result["acc_macro_ci95"])
    assert result["pass_at_k"]["3"] == pytest.approx(evaluation.acc_macro(right.any(axis=0), domains))
    low, high = result["pass_at_k_ci95"]["2"]
    assert low < result["pass_at_k"]["2"] < high
    with pytest.raises(UserError, match="unequally many answers"):
        split_results(records[:-1], **FEW)


def test_runs_with_several_answers_per_item_are_compared_by_their_means(answered) -> None:
    base = [replace(r, sample=j) for j in range(2) for r in answered(j, 0.4)]
    method = [replace(r, sample=j) for j in range(2) for r in answered(10 + j, 0.6)]
    result = compare(base, method, **FEW)["id"]
    means = [split_results(records, **FEW)["all_correct"] for records in (base, method)]
    assert result["all_correct"][0] == pytest.approx(means[1] - means[0])
    assert result["mcnemar_all_correct"] is None


def test_no_correct_answer_leaves_transfer_and_consistency_null_and_no_nan_anywhere(make_record) -> None:
    records = [make_record("a", d, "7") for d in DOMAINS]
    result = split_results(records, **FEW)
    assert result["transfer"] is None
    assert result["cons_given_correct"] is None
    assert result["cons_given_correct_ci95"] is None
    assert result["agreement_wrong"] == 1.0
    assert "NaN" not in json_text(result)


def test_agreement_needs_one_canonical_gold_answer(make_record) -> None:
    comparable = [make_record("a", d, "19") for d in DOMAINS]
    other_values = [make_record("b", d, "19", canon_gold=str(i)) for i, d in enumerate(DOMAINS)]
    free_strings = [make_record("c", d, "19", canon_gold=None, canon_parsed=None) for d in DOMAINS]
    assert split_results(comparable + other_values + free_strings, **FEW)["agreement"] == 1.0
    assert split_results(other_values + free_strings, **FEW)["agreement"] is None


def test_a_correct_answer_agrees_with_the_others_however_it_is_spelt(make_record) -> None:
    spelt = [
        make_record("a", d, "19", canon_parsed=form) for d, form in zip(DOMAINS, ("19", None, "18.99999"), strict=True)
    ]
    assert split_results(spelt, **FEW)["agreement"] == 1.0


def test_an_answer_without_a_verdict_agrees_with_nobody(make_record) -> None:
    records = [make_record("a", d, "7", outcome="unparsed") for d in DOMAINS]
    assert split_results(records, **FEW)["agreement"] == 0.0


def test_the_same_item_twice_is_named(answered) -> None:
    records = answered(0, 0.5)
    with pytest.raises(UserError, match="'003' of split 'id' stands twice"):
        split_results([*records, replace(records[3], stage="before")])


def test_a_missing_representation_is_named(answered) -> None:
    records = answered(0, 0.5)
    z = states(records, 0.5)
    del z["007"]
    with pytest.raises(UserError, match="1 of 120 items of split 'id' have no representation, the first is '007'"):
        split_results(records, z)


def test_no_predictions_is_an_error_for_people() -> None:
    with pytest.raises(UserError, match="no predictions"):
        split_results([])


def test_differences_and_their_intervals_equal_a_loop_over_resamples(answered) -> None:
    base, method = answered(0, 0.4)[:60], answered(1, 0.6)[:60]  # twenty complete sets
    z_base, z_method = states(base, 0.8), states(method, 0.4, seed=1)
    result = compare(
        base, method, baseline_representations=z_base, method_representations=z_method, resamples=200, seed=7
    )["id"]

    def centred(records, z, alike) -> dict[str, np.ndarray]:
        """Directions from the mean over the items that are alike, of all sets however they are drawn."""
        means = {
            a.item_id: np.mean([z[b.item_id].astype(float) for b in records if alike(a, b)], axis=0) for a in records
        }
        away = {item: z[item] - mean for item, mean in means.items()}
        return {item: v / np.linalg.norm(v) for item, v in away.items()}

    def numbers(records: list[Record], z: dict[str, np.ndarray], drawn: list[int]) -> dict[str, float]:
        members = [records[3 * s : 3 * s + 3] for s in drawn]
        y = np.array([[r.outcome == "correct" for r in m] for m in members])
        zhat = {k: v.astype(float) / np.linalg.norm(v.astype(float)) for k, v in z.items()}

        def within(v: dict[str, np.ndarray]) -> list[float]:
            return [np.mean([1 - v[a.item_id] @ v[b.item_id] for a, b in combinations(m, 2)]) for m in members]

        between = []
        for s, t in combinations(range(len(drawn)), 2):
            if drawn[s] != drawn[t]:
                pairs = [(a, b) for a in members[s] for b in members[t] if a.domain != b.domain]
                between += [1 - zhat[a.item_id] @ zhat[b.item_id] for a, b in pairs]
        return {
            **{f"acc/{d}": float(v) for d, v in zip(DOMAINS, y.mean(axis=0), strict=True)},
            "acc_macro": float(y.mean(axis=0).mean()),
            "acc_worst": float(y.mean(axis=0).min()),
            "all_correct": float(y.all(axis=1).mean()),
            "lcs": float(np.mean(within(zhat))),
            "lcs_random": float(np.mean(between)),
            "lcs_ratio": float(np.mean(within(zhat)) / np.mean(between)),
            "lcs_centered": float(np.mean(within(centred(records, z, lambda a, b: True)))),
            "lcs_domain_centered": float(np.mean(within(centred(records, z, lambda a, b: a.domain == b.domain)))),
            "lcs_js": evaluation.lcs_js([r.pi for m in members for r in m], np.repeat(np.arange(20), 3)),
        }

    def difference(drawn: list[int]) -> dict[str, float]:
        a, b = numbers(base, z_base, drawn), numbers(method, z_method, drawn)
        return {name: b[name] - a[name] for name in a}

    value = difference(list(range(20)))
    draws = np.random.default_rng(7).integers(20, size=(200, 20))
    loop = [difference(list(drawn)) for drawn in draws]
    for name, d in value.items():
        low, high = np.percentile([sample[name] for sample in loop], [2.5, 97.5])
        got = result["acc_by_domain"][name[4:]] if name.startswith("acc/") else result[name]
        assert got == pytest.approx([d, low, high], abs=1e-9), name


def test_mcnemar_counts_sets(make_record) -> None:
    def run(solved: str) -> list[Record]:
        return [
            make_record(f"s{i}", d, "19" if y == "1" or d != "law" else "7")
            for i, y in enumerate(solved)
            for d in DOMAINS
        ]

    table = compare(run("1110000000"), run("0011111110"), **FEW)["id"]["mcnemar_all_correct"]
    assert (table["b"], table["c"]) == (2, 6)
    assert table["p"] == pytest.approx(2 * (1 + 8 + 28) / 2**8)


def test_before_and_after_compare_like_two_methods(answered) -> None:
    before, after = answered(0, 0.2, stage="before"), answered(0, 0.9)
    d, low, _ = compare(before, after, **FEW)["id"]["acc_macro"]
    assert d > 0.5
    assert low > 0
    assert compare(before, after, **FEW)["id"]["lcs_ratio"] is None


def test_every_split_is_compared(answered) -> None:
    both = [*answered(0, 0.4), *answered(1, 0.4, split="ood")]
    better = [*answered(2, 0.6), *answered(3, 0.6, split="ood")]
    result = compare(both, better, **FEW)
    assert list(result) == ["id", "ood"]
    with pytest.raises(UserError, match="different splits"):
        compare(both, better[:100])


@pytest.mark.parametrize("change", [{"gold": "20"}, {"domain": "sea"}, {"set_id": "other"}, {"item_id": "999"}])
def test_other_items_are_refused(answered, change: dict[str, str]) -> None:
    base, method = answered(0, 0.4), answered(1, 0.6)
    method[3] = replace(method[3], **change)
    with pytest.raises(UserError, match="do not answer the same items"):
        compare(base, method)


def test_three_seeds_give_an_interval_over_seeds_and_sets(answered) -> None:
    base = [answered(seed, 0.4, seed_train=seed) for seed in range(3)]
    method = [answered(10 + seed, skill, seed_train=seed) for seed, skill in enumerate((0.3, 0.6, 0.9))]
    over_seeds = compare_seeds(base, method, **FEW)["id"]
    single = [compare(a, b, **FEW)["id"]["acc_macro"] for a, b in zip(base, method, strict=True)]
    assert over_seeds["acc_macro"][0] == pytest.approx(np.mean([d for d, _, _ in single]), abs=1e-9)
    assert over_seeds["mcnemar_all_correct"] is None
    two = compare_seeds(base[:2], method[:2], **FEW)["id"]["acc_macro"]
    assert two[0] == pytest.approx(np.mean([single[0][0], single[1][0]]), abs=1e-9)
    assert over_seeds["acc_macro"][2] - over_seeds["acc_macro"][1] > two[2] - two[1]  # the seeds differ widely
    with pytest.raises(UserError, match="3 baseline runs and 2 method runs"):
        compare_seeds(base, method[:2])


def test_a_comparison_names_its_baseline_and_keeps_the_order(answered) -> None:
    runs = [{"method": "erm", "seed": 0}, {"method": "iga", "seed": 0}]
    differences = {"iga": compare(answered(0, 0.4), answered(1, 0.6), **FEW)}
    content = comparison_json(runs, differences)
    assert list(content) == ["schema", "baseline", "runs", "differences"]
    assert (content["schema"], content["baseline"]) == (1, "erm")
    assert json.loads(json_text(content)) == content


def test_json_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError):
        json_text({"acc": float("nan")})


def test_a_record_is_plain_json(make_record) -> None:
    record = make_record("a", "law")
    assert Record(**json.loads(json.dumps(asdict(record)))) == record
