"""From records to the numbers of results.json and comparison.json; undefined values are null, never NaN.

The same records give the same bytes, in whatever order they were written: records are sorted, resampling is seeded, and
numbers are rounded to ten decimals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from isodistill.errors import UserError
from isodistill.evaluation.accuracy import solved_sets
from isodistill.evaluation.consistency import lcs_centered, lcs_domain_centered, lcs_random
from isodistill.evaluation.measures import Measures, Split, measures, split_of
from isodistill.evaluation.records import Record
from isodistill.evaluation.sets import FloatArray, ratio
from isodistill.evaluation.statistics import (
    MIN_SEEDS,
    Statistic,
    bootstrap,
    mcnemar,
    paired_difference,
    percentile_interval,
    two_level_difference,
)

__all__ = ["Representations", "compare", "compare_seeds", "comparison_json", "json_text", "split_results"]

Representations: TypeAlias = Mapping[str, Any]
"""Item id -> hidden state (d,) of the last prompt token."""

_POINTS = (
    *("acc_macro", "acc_worst", "acc_gap", "all_correct", "any_correct", "transfer"),
    *("agreement", "agreement_wrong", "cons_given_correct"),
)
_WITH_INTERVAL = (*_POINTS, "lcs")
_DIFFERENCES = (*_WITH_INTERVAL, "lcs_ratio")


def split_results(
    records: Sequence[Record],
    representations: Representations | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """The entry of one split in results.json.

    Args:
        records: of one run, one stage and one split. Items without a set count for the accuracies as their own cluster.
        representations: hidden states of at least the items of complete sets; None leaves the LCS family null.
        resamples: of the cluster bootstrap behind every ``_ci95`` (percentile, over sets).
        seed: of the bootstrap.

    Returns:
        All keys always, null where undefined. ``n_sets`` counts the complete sets, which the metrics of
        sets are taken over; ``n_incomplete_sets`` the others. ``truncated``, ``unparsed`` and ``wrong`` are shares of
        all items.

    Raises:
        UserError: no records, an item twice, or a missing representation.
    """
    split = split_of(records, representations)
    numbers = measures(split, random_pairs=False)
    value = numbers.named(_once(numbers))
    samples = bootstrap(numbers, numbers.n_clusters, resamples=resamples, seed=seed)
    interval = numbers.named(percentile_interval(samples))
    named, complete = split.sets.named, split.sets.complete
    tokens = [record.n_new_tokens for record in split.records]
    return _json_ready(
        {
            "n_items": len(split.records),
            "n_sets": int(complete.sum()),
            "n_incomplete_sets": int((named & ~complete).sum()),
            **{name: value[name] for name in _POINTS},
            **{f"{name}_ci95": interval[name] for name in _WITH_INTERVAL},
            "acc_by_domain": value["acc_by_domain"],
            "acc_by_domain_ci95": interval["acc_by_domain"],
            **{
                outcome: float(np.mean([record.outcome == outcome for record in split.records]))
                for outcome in ("truncated", "unparsed", "wrong")
            },
            "tokens_median": float(np.median(tokens)),
            "tokens_p95": float(np.percentile(tokens, 95)),
            **_representation_metrics(split, value["lcs"]),
        }
    )


def compare(
    baseline_records: Sequence[Record],
    method_records: Sequence[Record],
    *,
    baseline_representations: Representations | None = None,
    method_representations: Representations | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Method minus baseline on the same items, per split: the paired bootstrap over sets (before and after compare
    likewise).

    Args:
        baseline_records: of one run and one stage, all splits.
        method_records: likewise; the same items.
        baseline_representations: hidden states of the baseline's items; without both, lcs and lcs_ratio are null.
        method_representations: likewise of the method.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        For each split ``[difference, low, high]`` (95 %) of acc_macro, acc_worst, all_correct, agreement,
        cons_given_correct, lcs and lcs_ratio, of each domain under ``acc_by_domain``, and ``mcnemar_all_correct``, the
        exact test on complete sets: b solved in every domain by the baseline only, c by the method only. ``p`` has the
        bootstrap's two-sided p of each metric. Undefined differences are null, and their p is 1.

    Raises:
        UserError: the two do not hold the same splits and items.
    """
    return compare_seeds(
        [baseline_records],
        [method_records],
        baseline_representations=None if baseline_representations is None else [baseline_representations],
        method_representations=None if method_representations is None else [method_representations],
        resamples=resamples,
        seed=seed,
    )


def compare_seeds(
    baselines: Sequence[Sequence[Record]],
    methods: Sequence[Sequence[Record]],
    *,
    baseline_representations: Sequence[Representations] | None = None,
    method_representations: Sequence[Representations] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """`compare` of the mean over paired training seeds: ``baselines[i]`` and ``methods[i]`` share their seed.

    With three seeds or more the interval covers seeds and sets (`two_level_difference`); with fewer it covers sets
    only. McNemar is a test of two runs: null for more than one seed.

    Raises:
        UserError: the runs do not pair up, or do not hold the same splits and items.
    """
    if len(baselines) != len(methods):
        raise UserError(
            f"{len(baselines)} baseline runs and {len(methods)} method runs: one of each per seed is needed."
        )
    runs = [*baselines, *methods]
    no_states: list[Representations | None] = [None] * len(methods)
    states = [*(baseline_representations or no_states), *(method_representations or no_states)]
    names = sorted({record.split for record in runs[0]})
    for run in runs[1:]:
        other = sorted({record.split for record in run})
        if other != names:
            raise UserError(f"The runs hold different splits: {names} and {other}. Evaluate both on the same splits.")
    out = {}
    for name in names:
        splits = [
            split_of([record for record in run if record.split == name], mapping)
            for run, mapping in zip(runs, states, strict=True)
        ]
        out[name] = _differences(splits[: len(baselines)], splits[len(baselines) :], resamples, seed)
    return out


def comparison_json(runs: Sequence[Mapping[str, Any]], differences: Mapping[str, Any]) -> dict[str, Any]:
    """The content of comparison.json.

    Args:
        runs: contents of results.json; the first run is the baseline.
        differences: method -> what `compare` returned for it.
    """
    return {"schema": 1, "baseline": runs[0]["method"], "runs": list(runs), "differences": dict(differences)}


def json_text(content: Mapping[str, Any]) -> str:
    """The text of a JSON file: indented, keys in their order, UTF-8, closing newline.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _differences(baselines: list[Split], methods: list[Split], resamples: int, seed: int) -> dict[str, Any]:
    for split in (*baselines[1:], *methods):
        _check_same_items(baselines[0], split)
    with_states = all(split.states is not None for split in (*baselines, *methods))
    base = [measures(split, random_pairs=with_states) for split in baselines]
    method = [measures(split, random_pairs=with_states) for split in methods]
    n = base[0].n_clusters
    if len(method) >= MIN_SEEDS:
        numbers = two_level_difference(base, method, n, resamples=resamples, seed=seed)
    else:
        numbers = paired_difference(_mean_of(base), _mean_of(method), n, resamples=resamples, seed=seed)
    value, p = base[0].named(numbers[:, :3]), base[0].named(numbers[:, 3])
    out = {name: value[name] for name in _DIFFERENCES} | {"acc_by_domain": value["acc_by_domain"]}
    out["p"] = {name: float(p[name]) for name in _DIFFERENCES}
    out["mcnemar_all_correct"] = _mcnemar(baselines[0], methods[0]) if len(methods) == 1 else None
    return _json_ready(out)


def _mcnemar(baseline: Split, method: Split) -> dict[str, Any] | None:
    if not baseline.sets.complete.any():
        return None
    solved = [
        solved_sets([record.outcome == "correct" for record in split.records], split.sets)[0]
        for split in (baseline, method)
    ]
    return mcnemar(*solved)._asdict()


def _mean_of(statistics: Sequence[Statistic]) -> Statistic:
    def mean(weights: FloatArray) -> FloatArray:
        values: FloatArray = np.mean([statistic(weights) for statistic in statistics], axis=0)
        return values

    return mean


def _check_same_items(a: Split, b: Split) -> None:
    """Paired resampling lines items up by their place in the sorted records."""
    keys = [{(r.item_id, r.set_id, r.domain, r.gold) for r in split.records} for split in (a, b)]
    different = sorted({key[0] for key in keys[0] ^ keys[1]})
    if different:
        raise UserError(
            f"The runs compared do not answer the same items of split {a.records[0].split!r}: {len(different)} are "
            f"missing or have another set, domain or gold answer, the first is {different[0]!r}. "
            "Evaluate both runs on the same rows."
        )


def _representation_metrics(split: Split, lcs: float) -> dict[str, float]:
    if split.states is None:
        return dict.fromkeys(("lcs", "lcs_random", "lcs_ratio", "lcs_centered", "lcs_domain_centered"), float("nan"))
    kept = np.flatnonzero(split.kept)
    set_ids = [split.records[i].set_id for i in kept]
    domains = [split.domains[i] for i in kept]
    random = lcs_random(split.states, set_ids, domains)
    return {
        "lcs": lcs,
        "lcs_random": random,
        "lcs_ratio": float(ratio(lcs, random)),
        "lcs_centered": lcs_centered(split.states, set_ids, domains),
        "lcs_domain_centered": lcs_domain_centered(split.states, set_ids, domains),
    }


def _once(numbers: Measures) -> FloatArray:
    """The values on the sets as they are."""
    values: FloatArray = numbers(np.ones((1, numbers.n_clusters)))[0]
    return values


def _json_ready(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers rounded to ten decimals; NaN, and an interval with a NaN in it, become None."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out[name] = _json_ready(value)
        elif isinstance(value, np.ndarray):
            out[name] = None if np.isnan(value).any() else [round(float(number), 10) for number in value]
        elif isinstance(value, float):
            out[name] = None if math.isnan(value) else round(float(value), 10)
        else:
            out[name] = value
    return out
