"""How alike the members of an isomer set are: their representations (LCS) and their answers.

LCS (our definition: the formula of arXiv 2606.05025 is not public): z_sk (d,) is the hidden state of the last prompt
token of member k of set s, last layer after the final norm, zhat = z / norm(z), and

    LCS = mean_s 2 / (K (K - 1)) sum_{i<j} (1 - zhat_si . zhat_sj)
        = mean_s K / (K - 1) (1 - norm(mean_k zhat_sk)^2)                  the form that is computed, O(K d)

A collapsed encoder has LCS 0, so it never stands without `lcs_random`, `lcs_ratio` and an accuracy. Incomplete sets are
left out; a metric without anything to average is NaN: undefined.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import entr

from isodistill.evaluation.sets import FloatArray, IntArray, Labels, Sets, codes, group, ratio

__all__ = [
    "agreeing_pairs",
    "agreement",
    "agreement_wrong",
    "centered_directions",
    "cons_given_correct",
    "correct_pairs",
    "cosine_distance",
    "domain_means",
    "group_sums",
    "lcs_centered",
    "lcs_domain_centered",
    "lcs_js",
    "lcs_random",
    "lcs_ratio",
    "logical_consistency_score",
    "pair_distances",
    "pair_divergence",
    "unit_vectors",
]


def logical_consistency_score(representations: Any, set_ids: Labels) -> float:
    """LCS: mean cosine distance between the members of a set, over the sets with two or more members; lower is better.

    Args:
        representations: (N, d) array or tensor; computed in float64.
        set_ids: (N,) labels; items that share one are isomers.

    Returns:
        A number in [0, 2]; 0 when the members of each set point in one direction; NaN without a set of two members.

    Raises:
        ValueError: another shape, a value that is not finite, or a vector of length 0.
    """
    sets = group(set_ids)
    return _mean(pair_distances(unit_vectors(representations, len(sets.index)), sets), sets)


def lcs_centered(representations: Any, set_ids: Labels, domains: Labels | None = None) -> float:
    """LCS after subtracting the mean of all z: states of language models share one large direction."""
    z, sets = _matrix(representations, len(set_ids)), group(set_ids, domains)
    return _mean(pair_distances(centered_directions(z, z.mean(axis=0)), sets), sets)


def lcs_domain_centered(representations: Any, set_ids: Labels, domains: Labels) -> float:
    """LCS after subtracting each domain's mean of z: a constant offset between domains does not count."""
    z, sets = _matrix(representations, len(set_ids)), group(set_ids, domains)
    return _mean(pair_distances(centered_directions(z, domain_means(z, domains)), sets), sets)


def lcs_random(representations: Any, set_ids: Labels, domains: Labels | None = None) -> float:
    """LCS of random "sets": mean cosine distance over all pairs from different complete sets and different domains.

    This is the exact expectation of drawing K members from K different sets, one per domain (ours: no draws, no seed),
    from sums alone, O(N d). Without ``domains``, or with one only, the pairs just come from different sets.
    """
    zhat = unit_vectors(representations, len(set_ids))
    sets = group(set_ids, domains)
    kept = sets.complete[sets.index]
    zhat, s = zhat[kept], sets.index[kept]
    d = _domain_codes(domains, len(kept))[kept]
    # Pairs by inclusion and exclusion: all, less those of one set, less those of one domain, plus those of both.
    both = codes(list(zip(s.tolist(), d.tolist(), strict=True)))[0]
    products = pairs = 0.0
    for index, sign in ((np.zeros_like(s), 1.0), (s, -1.0), (d, -1.0), (both, 1.0)):
        size = np.bincount(index)
        products += sign * float(np.sum(group_sums(zhat, index, len(size)) ** 2))
        pairs += sign * float(np.sum(size.astype(np.float64) ** 2))
    return float(cosine_distance(ratio(products, pairs)))


def lcs_ratio(representations: Any, set_ids: Labels, domains: Labels | None = None) -> float:
    """LCS / lcs_random: about 1 when isomers lie no closer than random items; lower is better."""
    sets = group(set_ids, domains)
    lcs = _mean(pair_distances(unit_vectors(representations, len(sets.index)), sets), sets)
    return float(ratio(lcs, lcs_random(representations, set_ids, domains)))


def lcs_js(distributions: Any, set_ids: Labels, domains: Labels | None = None) -> float:
    """Mean Jensen-Shannon divergence, in bits, between the members' distributions over the answer options; in [0, 1].

    Args:
        distributions: (N, A) probabilities over the A options in their structural order.
        set_ids: (N,) labels.
        domains: (N,) labels, to leave incomplete sets out.

    Raises:
        ValueError: a row is no distribution (negative, or its sum differs from 1 by more than 1e-6).
    """
    sets = group(set_ids, domains)
    pi = _matrix(distributions, len(sets.index))
    bad = np.flatnonzero((pi < 0).any(axis=1) | (np.abs(pi.sum(axis=1) - 1) > 1e-6))
    if len(bad):
        raise ValueError(f"distributions[{bad[0]}] is no distribution: it sums to {pi[bad[0]].sum():.6g}.")
    per_set = [pair_divergence(pi[sets.index == s]) for s in np.flatnonzero(sets.complete)]
    return float(np.mean(per_set)) if per_set else float("nan")


def agreement(canonical: Labels, set_ids: Labels, domains: Labels | None = None) -> float:
    """mean_s sum_a c_sa (c_sa - 1) / (K (K - 1)), c_sa members of set s with canonical answer a; in [0, 1].

    ``canonical`` (N,) holds the canonical answers; None (truncated, unparsed) agrees with nobody.
    """
    sets = group(set_ids, domains)
    pairs = agreeing_pairs(canonical, sets)
    return float(ratio(pairs.sum(), sets.complete.sum()))


def agreement_wrong(canonical: Labels, correct: Labels, set_ids: Labels, domains: Labels | None = None) -> float:
    """agreement over the sets with no correct member: consistently wrong students agree, too."""
    sets = group(set_ids, domains)
    wrong = sets.complete & (sets.total(correct) == 0)
    return float(ratio(agreeing_pairs(canonical, sets)[wrong].sum(), wrong.sum()))


def cons_given_correct(correct: Labels, set_ids: Labels, domains: Labels | None = None) -> float:
    """mean of y_sj over the ordered pairs (i, j), i != j, of one set with y_si = 1."""
    both, first = correct_pairs(correct, group(set_ids, domains))
    return float(ratio(both.sum(), first.sum()))


def cosine_distance(similarity: Any) -> FloatArray:
    """1 - similarity; exactly 0 where only rounding is left, so that a collapsed encoder has no ratio of errors."""
    distance = 1.0 - np.asarray(similarity, dtype=np.float64)
    return np.where(distance < 1e-12, 0.0, distance)


def pair_distances(zhat: FloatArray, sets: Sets) -> FloatArray:
    """(S,) mean cosine distance between the members of each complete set; 0 for the others."""
    k = sets.size.astype(np.float64)
    mean = group_sums(zhat, sets.index, len(k)) / k[:, None]
    distance = ratio(k, k - 1) * cosine_distance(np.sum(mean**2, axis=1))
    return np.where(sets.complete, distance, 0.0)


def pair_divergence(pi: FloatArray) -> float:
    """Mean Jensen-Shannon divergence in bits over the pairs of K distributions (K, A), K at least 2."""
    i, j = np.triu_indices(len(pi), 1)
    entropy = entr(pi).sum(axis=1)
    js = entr((pi[i] + pi[j]) / 2).sum(axis=1) - (entropy[i] + entropy[j]) / 2
    return max(0.0, float(js.mean()) / float(np.log(2)))  # rounding can leave less than 0


def agreeing_pairs(canonical: Labels, sets: Sets) -> FloatArray:
    """(S,) share of the pairs of members of each complete set that give one canonical answer; 0 for the others."""
    answers = canonical.tolist() if hasattr(canonical, "tolist") else list(canonical)
    given = [(s, a) for s, a in zip(sets.index.tolist(), answers, strict=True) if a is not None]
    cell, cells = codes(given)
    c = np.bincount(cell, minlength=len(cells)).astype(np.float64)
    pairs = np.bincount(np.array([s for s, _ in cells], dtype=np.intp), weights=c * (c - 1), minlength=len(sets.size))
    return np.where(sets.complete, ratio(pairs, sets.size * (sets.size - 1)), 0.0)


def correct_pairs(correct: Labels, sets: Sets) -> tuple[FloatArray, FloatArray]:
    """(S,) ordered pairs of each complete set with both members correct, and with the first one correct."""
    c = np.where(sets.complete, sets.total(correct), 0.0)
    return c * (c - 1), c * (sets.size - 1)


def group_sums(values: FloatArray, index: IntArray, n_groups: int) -> FloatArray:
    """(G, d) sums of the rows of each group."""
    sums = np.zeros((n_groups, values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def _domain_codes(domains: Labels | None, n: int) -> IntArray:
    """(N,) the domain of each item; every item its own where domains do not tell the items apart."""
    index, names = codes(domains) if domains is not None else (np.arange(n), [None])
    return index if len(names) > 1 else np.arange(n)


def unit_vectors(representations: Any, n: int) -> FloatArray:
    """(N, d) rows of length 1."""
    z = _matrix(representations, n)
    norm = np.linalg.norm(z, axis=1)
    if not norm.all():
        raise ValueError(f"representations[{np.argmin(norm)}] has length 0: it has no direction.")
    zhat: FloatArray = z / norm[:, None]
    return zhat


def domain_means(z: FloatArray, domains: Labels) -> FloatArray:
    """(N, d) for each item the mean of z over its domain."""
    domain, names = codes(domains)
    means: FloatArray = group_sums(z, domain, len(names)) / np.bincount(domain)[:, None]
    return means[domain]


def centered_directions(z: FloatArray, centers: FloatArray) -> FloatArray:
    """(N, d) rows of length 1 of z - centers, centers (d,) or (N, d); NaN in the row of an item without direction."""
    centered = z - centers
    # An item that equals the mean has no direction left; rounding must not invent one for it.
    norm, scale = np.linalg.norm(centered, axis=1), np.linalg.norm(z, axis=1)
    zhat: FloatArray = centered / np.where(norm <= 1e-12 * scale, np.nan, norm)[:, None]
    return zhat


def _matrix(values: Any, n: int) -> FloatArray:
    if hasattr(values, "detach"):  # a tensor: NumPy cannot read one that is bf16, on a GPU, or asks for a gradient
        values = values.detach().cpu().double()
    z = np.asarray(values, dtype=np.float64)
    if z.ndim != 2 or len(z) != n:
        raise ValueError(f"Expected one row for each of the {n} set_ids, shape ({n}, d); got shape {z.shape}.")
    bad = np.flatnonzero(~np.isfinite(z).all(axis=1))
    if len(bad):
        raise ValueError(f"Row {bad[0]} holds a value that is not finite ({len(bad)} such rows).")
    return z


def _mean(per_set: FloatArray, sets: Sets) -> float:
    return float(ratio(per_set.sum(), sets.complete.sum()))
