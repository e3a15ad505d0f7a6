"""Intervals and tests: bootstrap over isomer sets, paired and two-level differences, McNemar, Holm.

The members of a set move together: a resample draws whole sets with replacement. A *statistic* is a function of how
often each of the C sets was drawn: ``statistic(weights (R, C)) -> (R, M)`` gives M numbers for each of R resamples at
once, from sums kept per set, so that 10,000 resamples are a few matrix products. Undefined values are NaN, and an
interval is taken over the resamples in which its number is defined.

Percentile bootstrap: Efron and Tibshirani 1993, chapter 13. Adjustment for several tests: Holm 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from scipy.special import bdtr, stdtrit

from isodistill.evaluation.sets import FloatArray, ratio

__all__ = [
    "MIN_SEEDS",
    "McNemar",
    "Statistic",
    "bootstrap",
    "bootstrap_p",
    "holm",
    "mcnemar",
    "mean_sd",
    "paired_difference",
    "paired_interval",
    "percentile_interval",
    "ratio_of_sums",
    "two_level_difference",
]

Statistic: TypeAlias = Callable[[FloatArray], FloatArray]
"""Weights (R, C), how often each set was drawn -> values (R, M)."""

MIN_SEEDS = 3
"""Fewer training seeds give no interval over seeds."""

_CHUNK = 1000  # resamples at a time, so that memory does not grow with their number


def ratio_of_sums(numerator: Any, denominator: Any) -> Statistic:
    """The statistic sum_s w_s numerator_s / sum_s w_s denominator_s; both (C, M) or (C,)."""
    a = np.asarray(numerator, dtype=np.float64).reshape(len(numerator), -1)
    b = np.asarray(denominator, dtype=np.float64).reshape(len(denominator), -1)

    def statistic(weights: FloatArray) -> FloatArray:
        quotient: FloatArray = ratio(weights @ a, weights @ b)
        return quotient

    return statistic


def bootstrap(statistic: Statistic, n_sets: int, *, resamples: int = 10_000, seed: int = 0) -> FloatArray:
    """(resamples, M) values of the statistic on sets drawn with replacement; the same seed draws the same sets."""
    rng = np.random.default_rng(seed)
    return np.concatenate([statistic(weights) for weights in _draws(n_sets, resamples, rng)])


def percentile_interval(samples: FloatArray, level: float = 0.95) -> FloatArray:
    """(M, 2) lower and upper percentile of samples (R, M), over the defined ones; NaN where none is."""
    interval = np.full((samples.shape[1], 2), np.nan)
    for bounds, column in zip(interval, samples.T, strict=True):
        defined = column[~np.isnan(column)]
        if len(defined):
            bounds[:] = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return interval


def paired_difference(
    baseline: Statistic, method: Statistic, n_sets: int, *, resamples: int = 10_000, seed: int = 0
) -> FloatArray:
    """(M, 4) method minus baseline, its 95 % interval and p: each resample draws the same sets for both."""

    def difference(weights: FloatArray) -> FloatArray:
        return method(weights) - baseline(weights)

    value = difference(np.ones((1, n_sets)))[0]
    return _with_interval(value, bootstrap(difference, n_sets, resamples=resamples, seed=seed))


def two_level_difference(
    baselines: Sequence[Statistic], methods: Sequence[Statistic], n_sets: int, *, resamples: int = 10_000, seed: int = 0
) -> FloatArray:
    """(M, 4) mean over paired training seeds of method minus baseline, its 95 % interval over seeds and sets, and p.

    Each resample draws seeds with replacement and, for all of them, one draw of sets: every seed answers the same
    items, so that the sets' luck does not average out over seeds (ours; the nested draw would, and is too narrow here).

    Raises:
        ValueError: fewer than `MIN_SEEDS` seeds, or lists of different lengths.
    """
    n = len(methods)
    if n < MIN_SEEDS or len(baselines) != n:
        raise ValueError(f"An interval over seeds needs {MIN_SEEDS} paired seeds; got {len(baselines)} and {n}.")
    rng = np.random.default_rng(seed)

    def differences(weights: FloatArray) -> FloatArray:
        return np.stack([method(weights) - base(weights) for base, method in zip(baselines, methods, strict=True)])

    samples = []
    for weights in _draws(n_sets, resamples, rng):
        drawn = rng.integers(n, size=(n, len(weights)))
        samples.append(differences(weights)[drawn, np.arange(len(weights))].mean(axis=0))
    value = differences(np.ones((1, n_sets)))[:, 0].mean(axis=0)
    return _with_interval(value, np.concatenate(samples))


class McNemar(NamedTuple):
    """Discordant counts and the exact two-sided p: b only the baseline is right, c only the method is."""

    b: int
    c: int
    p: float


def mcnemar(baseline: Any, method: Any) -> McNemar:
    """Exact McNemar test of paired outcomes (n,) bool: p = min(1, 2 P(Bin(b + c, 1/2) <= min(b, c))), 1 if b + c = 0.

    The pairs must be independent: sets (solved in every domain or not) or the items of one domain, never pooled
    members.
    """
    x, y = np.asarray(baseline, dtype=bool), np.asarray(method, dtype=bool)
    b, c = int(np.sum(x & ~y)), int(np.sum(y & ~x))
    return McNemar(b, c, min(1.0, 2.0 * float(bdtr(min(b, c), b + c, 0.5))))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the family they form, in their order (Holm's step-down)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation with ddof = 1 over seeds; the deviation of a single value is NaN: undefined."""
    mean = float(np.mean(values))
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def paired_interval(differences: Sequence[float]) -> list[float]:
    """Mean over seeds of paired differences and its 95 % interval, n - 1 degrees of freedom of the t distribution.

    Returns:
        mean, lower and upper end, rounded to six digits; NaN ends with one seed.
    """
    mean, sd = mean_sd(differences)
    n = len(differences)
    half = float(stdtrit(n - 1, 0.975)) * sd / n**0.5 if n > 1 else float("nan")
    return [round(number, 6) for number in (mean, mean - half, mean + half)]


def _draws(n_sets: int, resamples: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    """(R, C) weights, a chunk of resamples at a time."""
    for start in range(0, resamples, _CHUNK):
        r = min(_CHUNK, resamples - start)
        drawn = rng.integers(n_sets, size=(r, n_sets)) + n_sets * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * n_sets).reshape(r, n_sets).astype(np.float64)


def bootstrap_p(samples: FloatArray) -> FloatArray:
    """(M,) two-sided p of "no difference" from resampled differences (R, M): the level at which the interval meets 0.

    p = min(1, 2 (1 + min(#{d <= 0}, #{d >= 0})) / (1 + R)) over the R defined resamples; 1 where none is, and never
    below 2 / (1 + R). So p < 0.05 says what a 95 % percentile interval without 0 says (Efron and Tibshirani 1993,
    15.4).
    """
    defined = (~np.isnan(samples)).sum(axis=0)
    tail = np.minimum((samples <= 0).sum(axis=0), (samples >= 0).sum(axis=0))
    p: FloatArray = np.minimum(1.0, 2 * (1 + tail) / (1 + defined))
    return p


def _with_interval(value: FloatArray, samples: FloatArray) -> FloatArray:
    return np.column_stack([value, percentile_interval(samples), bootstrap_p(samples)])
