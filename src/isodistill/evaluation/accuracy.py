"""Accuracy over domains and over isomer sets.

y (N,): item i is answered correctly. S sets, y_sk member k of set s. Incomplete sets (a domain missing, or one member
only) count for the accuracy of their domains and not for the metrics of sets. A metric without anything to average is
NaN: undefined. The definitions are ours; all of them lie in [0, 1].
"""

from __future__ import annotations

from math import comb

import numpy as np

from isodistill.evaluation.sets import FloatArray, Labels, Sets, codes, group, ratio

__all__ = [
    "acc_by_domain",
    "acc_gap",
    "acc_macro",
    "acc_worst",
    "all_correct",
    "any_correct",
    "pass_at_k",
    "solved_sets",
    "transfer",
]


def acc_by_domain(correct: Labels, domains: Labels) -> dict[str, float]:
    """acc_d = mean of y over the members of domain d, for each domain in the order of first appearance."""
    domain, names = codes(domains)
    shares = ratio(np.bincount(domain, weights=np.asarray(correct, dtype=np.float64)), np.bincount(domain))
    return dict(zip(names, shares.tolist(), strict=True))


def acc_macro(correct: Labels, domains: Labels) -> float:
    """mean_d acc_d: every domain counts the same, however many items it has."""
    return float(np.mean(_shares(correct, domains)))


def acc_worst(correct: Labels, domains: Labels) -> float:
    """min_d acc_d. A minimum of noisy numbers lies low: read it with its interval."""
    return float(np.min(_shares(correct, domains)))


def acc_gap(correct: Labels, domains: Labels) -> float:
    """max_d acc_d - min_d acc_d."""
    shares = _shares(correct, domains)
    return float(np.max(shares) - np.min(shares))


def all_correct(correct: Labels, set_ids: Labels, domains: Labels | None = None) -> float:
    """mean_s prod_k y_sk: the share of complete sets solved in every domain; at most acc_worst."""
    every, _, complete = solved_sets(correct, group(set_ids, domains))
    return float(ratio(every.sum(), complete.sum()))


def any_correct(correct: Labels, set_ids: Labels, domains: Labels | None = None) -> float:
    """mean_s max_k y_sk: the share of complete sets solved on some surface."""
    _, some, complete = solved_sets(correct, group(set_ids, domains))
    return float(ratio(some.sum(), complete.sum()))


def transfer(correct: Labels, set_ids: Labels, domains: Labels | None = None) -> float:
    """all_correct / any_correct: 1 when what is known anywhere is known everywhere; NaN when nothing is known."""
    every, some, _ = solved_sets(correct, group(set_ids, domains))
    return float(ratio(every.sum(), some.sum()))


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of an item's n answers, c of them correct, hold a correct one.

    The unbiased estimate of the chance that k fresh answers do (Chen et al., arXiv 2107.03374).

    Raises:
        ValueError: not 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n; got n = {n}, c = {c}, k = {k}.")
    return 1.0 - comb(n - c, k) / comb(n, k)


def solved_sets(correct: Labels, sets: Sets) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(S,) indicators: complete and solved in every domain; complete and solved in some; complete."""
    n_correct = sets.total(correct)
    complete = sets.complete
    every, some = complete & (n_correct == sets.size), complete & (n_correct > 0)
    return every.astype(np.float64), some.astype(np.float64), complete.astype(np.float64)


def _shares(correct: Labels, domains: Labels) -> FloatArray:
    return np.array(list(acc_by_domain(correct, domains).values()))
