"""From records to the numbers of results.json and comparison.json; undefined values are null, never NaN.

The same records give the same bytes, in whatever order they were written: records are sorted, resampling is seeded, and
numbers are rounded to ten decimals.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from isodistill.errors import UserError
from isodistill.evaluation.accuracy import pass_at_k, solved_sets
from isodistill.evaluation.measures import Split, measures, split_of
from isodistill.evaluation.records import Record
from isodistill.evaluation.sets import FloatArray, codes
from isodistill.evaluation.statistics import (
    MIN_SEEDS,
    Statistic,
    bootstrap,
    mcnemar,
    paired_difference,
    percentile_interval,
    ratio_of_sums,
    two_level_difference,
)

__all__ = ["Representations", "compare", "compare_seeds", "comparison_json", "json_text", "split_results"]

Representations: TypeAlias = Mapping[str, Any]
"""Item id -> hidden state (d,) of the last prompt token."""

_METRICS = (
    *("acc_macro", "acc_worst", "acc_gap", "all_correct", "any_correct", "transfer"),
    *("agreement", "agreement_wrong", "cons_given_correct"),
    *("lcs", "lcs_random", "lcs_ratio", "lcs_centered", "lcs_domain_centered", "lcs_js"),
)


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
            With several answers per item every metric is the mean over the samples.
        representations: hidden states of at least the items of complete sets; None leaves the LCS family null.
        resamples: of the cluster bootstrap behind every ``_ci95`` (percentile, over sets).
        seed: of the bootstrap.

    Returns:
        All keys always, null where undefined. ``n_sets`` counts the complete sets, which the metrics of
        sets are taken over; ``n_incomplete_sets`` the others. ``truncated``, ``unparsed`` and ``wrong`` are shares of
        all answers. ``pass_at_k`` (mean of the domains) is null for one answer per item, else k -> number for the
        powers of two up to n and n = ``n_samples``. ``reasons`` counts why programs failed and which instructions were
        not followed; null where nothing of either kind was asked.

    Raises:
        UserError: no records, an item twice, items with unequally many answers, or a missing representation.
    """
    samples = _samples(records, representations)
    split, numbers = samples[0], [measures(sample) for sample in samples]
    n_clusters, named_values = numbers[0].n_clusters, numbers[0].named
    mean = _mean_of(numbers)
    value = named_values(_once(mean, n_clusters))
    interval = named_values(percentile_interval(bootstrap(mean, n_clusters, resamples=resamples, seed=seed)))
    named, complete = split.sets.named, split.sets.complete
    tokens = [record.n_new_tokens for record in records]
    passed, passed_interval = _pass_at_k(samples, resamples, seed)
    return _json_ready(
        {
            "n_items": len(split.records),
            "n_sets": int(complete.sum()),
            "n_incomplete_sets": int((named & ~complete).sum()),
            "n_samples": len(samples),
            **{name: value[name] for name in _METRICS},
            **{f"{name}_ci95": interval[name] for name in _METRICS},
            "acc_by_domain": value["acc_by_domain"],
            "acc_by_domain_ci95": interval["acc_by_domain"],
            **{
                outcome: float(np.mean([record.outcome == outcome for record in records]))
                for outcome in ("truncated", "unparsed", "wrong")
            },
            "tokens_median": float(np.median(tokens)),
            "tokens_p95": float(np.percentile(tokens, 95)),
            "pass_at_k": passed,
            "pass_at_k_ci95": passed_interval,
            "reasons": _reasons(records),
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
        baseline_representations: hidden states of the baseline's items; without both, the LCS family is null.
        method_representations: likewise of the method.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        For each split ``[difference, low, high]`` (95 %) of every metric that has an interval in results.json, of each
        domain under ``acc_by_domain``, and ``mcnemar_all_correct``, the exact test on complete sets: b solved in every
        domain by the baseline only, c by the method only; null with several answers per item. ``p`` has the
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
            _samples([record for record in run if record.split == name], mapping)
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


def _differences(baselines: list[list[Split]], methods: list[list[Split]], resamples: int, seed: int) -> dict[str, Any]:
    """Of runs, each given by its samples of one split."""
    for run in (*baselines[1:], *methods):
        _check_same_items(baselines[0][0], run[0])
    first = measures(baselines[0][0])
    base, method = ([_mean_of([measures(s) for s in run]) for run in side] for side in (baselines, methods))
    n = first.n_clusters
    if len(method) >= MIN_SEEDS:
        numbers = two_level_difference(base, method, n, resamples=resamples, seed=seed)
    else:
        numbers = paired_difference(_mean_of(base), _mean_of(method), n, resamples=resamples, seed=seed)
    value, p = first.named(numbers[:, :3]), first.named(numbers[:, 3])
    out = {name: value[name] for name in _METRICS} | {"acc_by_domain": value["acc_by_domain"]}
    out["p"] = {name: float(p[name]) for name in _METRICS}
    single = len(methods) == 1 and len(baselines[0]) == len(methods[0]) == 1
    out["mcnemar_all_correct"] = _mcnemar(baselines[0][0], methods[0][0]) if single else None
    return _json_ready(out)


def _mcnemar(baseline: Split, method: Split) -> dict[str, Any] | None:
    if not baseline.sets.complete.any():
        return None
    solved = [
        solved_sets([record.outcome == "correct" for record in split.records], split.sets)[0]
        for split in (baseline, method)
    ]
    return mcnemar(*solved)._asdict()


def _samples(records: Sequence[Record], representations: Representations | None) -> list[Split]:
    """The answers of one split, one `Split` for each sample."""
    drawn = [[r for r in records if r.sample == sample] for sample in sorted({r.sample for r in records})]
    splits = [split_of(sample, representations) for sample in drawn or [[]]]
    if len({len(split.records) for split in splits}) > 1 or len({r.item_id for r in records}) > len(splits[0].records):
        raise UserError(
            f"The items of split {records[0].split!r} have unequally many answers (run {records[0].run_id!r}). "
            "Run `isodistill evaluate` again; it answers what is missing."
        )
    return splits


def _pass_at_k(samples: Sequence[Split], resamples: int, seed: int) -> tuple[dict[str, float] | None, Any]:
    """pass@k, the mean of the domains, and its intervals, for k = 1, 2, 4, ... and n; None for a single sample."""
    n, sets = len(samples), samples[0].sets
    if n == 1:
        return None, None
    correct = np.array([[record.outcome == "correct" for record in split.records] for split in samples])
    domain, names = codes(samples[0].domains)
    members = [(domain == d).astype(np.float64) for d in range(len(names))]
    ks = sorted({2**i for i in range(n.bit_length())} | {n})
    passed = [np.array([pass_at_k(n, int(c), k) for c in correct.sum(axis=0)]) for k in ks]
    by_domain = ratio_of_sums(
        np.column_stack([sets.total(p * m) for p in passed for m in members]),
        np.column_stack([sets.total(m) for _ in passed for m in members]),
    )

    def macro(weights: FloatArray) -> FloatArray:
        means: FloatArray = by_domain(weights).reshape(len(weights), len(ks), len(names)).mean(axis=2)
        return means

    clusters = len(sets.size)
    interval = percentile_interval(bootstrap(macro, clusters, resamples=resamples, seed=seed))
    labels = [str(k) for k in ks]
    return (
        dict(zip(labels, _once(macro, clusters), strict=True)),
        dict(zip(labels, interval, strict=True)),
    )


def _reasons(records: Sequence[Record]) -> dict[str, int] | None:
    """Reason -> records that it stands in, the most frequent first."""
    if not any(record.answer_type in ("code", "instructions") for record in records):
        return None
    counts = Counter(reason for record in records for reason in set((record.reason or "").split("; ")) - {""})
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


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


def _once(statistic: Statistic, n_clusters: int) -> FloatArray:
    """The values on the sets as they are."""
    values: FloatArray = statistic(np.ones((1, n_clusters)))[0]
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
