"""The numbers of one split as a function of how often each of its sets is drawn: what the bootstrap resamples.

Each metric is a quotient of sums over sets, or follows from such quotients, so that it is kept as one numerator and one
denominator per set. Only lcs_random is quadratic: it needs the products between sets. The means that lcs_centered and
lcs_domain_centered subtract are those of the whole split in every resample (ours: new ones for each of 10,000 resamples
take minutes; with 60 sets in four domains that changed the width of the intervals by -3 to +13 %).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isodistill.errors import UserError
from isodistill.evaluation.accuracy import solved_sets
from isodistill.evaluation.consistency import (
    agreeing_pairs,
    centered_directions,
    correct_pairs,
    cosine_distance,
    domain_means,
    group_sums,
    pair_distances,
    pair_divergence,
    unit_vectors,
)
from isodistill.evaluation.records import Record
from isodistill.evaluation.sets import BoolArray, FloatArray, IntArray, Sets, codes, group, ratio

__all__ = ["Measures", "Split", "measures", "split_of"]

_OF_SETS = (
    *("all_correct", "any_correct", "transfer", "agreement", "agreement_wrong", "cons_given_correct"),
    *("lcs", "lcs_centered", "lcs_domain_centered", "lcs_js"),
)
_DERIVED = ("acc_macro", "acc_worst", "acc_gap", "lcs_random", "lcs_ratio")


@dataclass(frozen=True)
class Split:
    """The records of one split in a fixed order, whatever order they were written in.

    Attributes:
        records: N records, sorted by set, domain and item.
        domains: (N,) their domains; "all" where a record has none.
        sets: their isomer sets; a record without a set is its own cluster.
        kept: (N,) members of complete sets.
        states: (n, d) hidden states of the n items that are kept; None without representations.
    """

    records: tuple[Record, ...]
    domains: tuple[str, ...]
    sets: Sets
    kept: BoolArray
    states: FloatArray | None


def split_of(records: Sequence[Record], representations: Mapping[str, Any] | None) -> Split:
    """Sort and check the records of one run, stage and split.

    Raises:
        UserError: no record, an item that stands twice, or a member of a complete set without a representation.
    """
    if not records:
        raise UserError("There are no predictions to evaluate. Run `isodistill evaluate` on this split first.")
    ordered = tuple(sorted(records, key=lambda r: (r.set_id or "", r.domain or "", r.item_id)))
    seen: set[str] = set()
    for record in ordered:
        if record.item_id in seen:
            raise UserError(
                f"Item {record.item_id!r} of split {record.split!r} stands twice among the predictions (run "
                f"{record.run_id!r}). Pass the records of one run and one stage, and give every row its own id."
            )
        seen.add(record.item_id)
    domains = tuple(record.domain or "all" for record in ordered)
    sets = group([record.set_id for record in ordered], domains)
    kept = sets.complete[sets.index]
    needed = [record for record, is_kept in zip(ordered, kept, strict=True) if is_kept]
    states = _states(needed, representations) if representations is not None and needed else None
    return Split(ordered, domains, sets, kept, states)


def _states(records: Sequence[Record], representations: Mapping[str, Any]) -> FloatArray:
    missing = [record.item_id for record in records if record.item_id not in representations]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(records)} items of split {records[0].split!r} have no representation, the first "
            f"is {missing[0]!r}. LCS needs all of them: evaluate the split again from the start."
        )
    return np.stack([np.asarray(representations[record.item_id], dtype=np.float64) for record in records])


@dataclass(frozen=True)
class _RandomPairs:
    """Pairs of items from different complete sets and different domains, summed per pair of sets.

    Attributes:
        complete: (Q,) which of the C sets are complete.
        products: (Q, Q) sum of zhat_i . zhat_j over the pairs between two of them; zero diagonal.
        size: (Q, 1 + D) their members, and by domain.
    """

    complete: IntArray
    products: FloatArray
    size: FloatArray

    def mean_distance(self, weights: FloatArray) -> FloatArray:
        """(R,) lcs_random for weights (R, C)."""
        weights = weights[:, self.complete]
        signs = np.concatenate([[1.0], np.full(self.size.shape[1] - 1, -1.0)])
        pairs = ((weights @ self.size) ** 2) @ signs - weights**2 @ (self.size**2 @ signs)
        distance: FloatArray = cosine_distance(ratio(np.sum((weights @ self.products) * weights, axis=1), pairs))
        return distance


@dataclass(frozen=True)
class Measures:
    """A `statistics.Statistic`: weights (R, C) -> (R, M), M = D domains + 15 metrics.

    Attributes:
        domains: names of the first columns, the accuracies of the domains.
        numerator: (C, D + 10) per set, of the domains' accuracies and the metrics of sets.
        denominator: likewise.
        random_pairs: what lcs_random needs; None, without representations, leaves it and lcs_ratio undefined.
    """

    domains: tuple[str, ...]
    numerator: FloatArray
    denominator: FloatArray
    random_pairs: _RandomPairs | None

    def named(self, values: FloatArray) -> dict[str, Any]:
        """Values (M, ...) by their names; those of the domains in a dict of their own under acc_by_domain."""
        d = len(self.domains)
        by_domain = dict(zip(self.domains, values[:d], strict=True))
        return {"acc_by_domain": by_domain, **dict(zip((*_OF_SETS, *_DERIVED), values[d:], strict=True))}

    @property
    def n_clusters(self) -> int:
        """C: sets, and items without a set."""
        return len(self.numerator)

    def __call__(self, weights: FloatArray) -> FloatArray:
        quotients: FloatArray = ratio(weights @ self.numerator, weights @ self.denominator)
        acc = quotients[:, : len(self.domains)]
        lcs = quotients[:, len(self.domains) + _OF_SETS.index("lcs")]
        worst = acc.min(axis=1)
        lcs_random = np.full(len(weights), np.nan)
        if self.random_pairs is not None:
            lcs_random = self.random_pairs.mean_distance(weights)
        derived = [acc.mean(axis=1), worst, acc.max(axis=1) - worst, lcs_random, ratio(lcs, lcs_random)]
        return np.column_stack([quotients, *derived])


def measures(split: Split) -> Measures:
    """The sums per set behind the numbers of a split; with representations Q^2 floats for the Q complete sets."""
    sets = split.sets
    correct = np.array([record.outcome == "correct" for record in split.records], dtype=np.float64)
    domain, names = codes(split.domains)
    members = [np.asarray(domain == d, dtype=np.float64) for d in range(len(names))]
    every, some, complete = solved_sets(correct, sets)
    both, first = correct_pairs(correct, sets)
    comparable = _comparable(split)
    pairs = agreeing_pairs([_canonical(record) for record in split.records], comparable)
    wrong = comparable.complete & (sets.total(correct) == 0)
    divergence, has_options = _divergences(split)
    quotients: list[tuple[NDArray[Any], NDArray[Any]]] = [(sets.total(correct * m), sets.total(m)) for m in members]
    quotients += [(every, complete), (some, complete), (every, some)]
    quotients += [(pairs, comparable.complete), (pairs * wrong, wrong), (both, first)]
    quotients += [(distances, complete if split.states is not None else 0 * complete) for distances in _lcs(split)]
    quotients += [(divergence, has_options)]
    numerator, denominator = (np.column_stack(side).astype(np.float64) for side in zip(*quotients, strict=True))
    cross = None if split.states is None else _random_pairs(split.states, split, members)
    return Measures(tuple(names), numerator, denominator, cross)


def _canonical(record: Record) -> str | None:
    """The canonical answer for agreement; a correct answer is the gold one however it is spelt."""
    if record.outcome == "correct":
        return record.canon_gold
    return record.canon_parsed if record.outcome == "wrong" else None


def _comparable(split: Split) -> Sets:
    """The sets with "complete" restricted to those whose members share one canonical gold answer."""
    sets = split.sets
    golds: dict[int, set[str | None]] = {}
    for s, record in zip(sets.index.tolist(), split.records, strict=True):
        golds.setdefault(s, set()).add(record.canon_gold)
    shared = np.array([len(golds[s]) == 1 and None not in golds[s] for s in range(len(sets.size))], dtype=bool)
    return replace(sets, complete=sets.complete & shared)


def _lcs(split: Split) -> list[FloatArray]:
    """(S,) mean distances within each complete set, plain, centred, and centred by domain; 0 for the others."""
    if split.states is None:
        return [np.zeros(len(split.sets.size))] * 3
    z, domains = split.states, [split.domains[i] for i in np.flatnonzero(split.kept)]
    directions = [
        unit_vectors(z, len(z)),
        centered_directions(z, z.mean(axis=0)),
        centered_directions(z, domain_means(z, domains)),
    ]
    distances = []
    for zhat in directions:
        every = np.zeros((len(split.records), z.shape[1]))
        every[split.kept] = zhat
        distances.append(pair_distances(every, split.sets))
    return distances


def _divergences(split: Split) -> tuple[FloatArray, BoolArray]:
    """(S,) mean divergence of pi within each complete set whose members all have it, over equally many options."""
    members: dict[int, list[Sequence[float] | None]] = {}
    for s, record in zip(split.sets.index.tolist(), split.records, strict=True):
        members.setdefault(s, []).append(record.pi)
    divergence, measured = np.zeros(len(members)), np.zeros(len(members), dtype=bool)
    for s in np.flatnonzero(split.sets.complete).tolist():
        known = [pi for pi in members[s] if pi is not None]
        if len(known) == len(members[s]) and len({len(pi) for pi in known}) == 1:
            divergence[s], measured[s] = pair_divergence(np.asarray(known, dtype=np.float64)), True
    return divergence, measured


def _random_pairs(z: FloatArray, split: Split, members: Sequence[FloatArray]) -> _RandomPairs:
    """By inclusion and exclusion: all pairs between two sets, less those within one domain."""
    complete = np.flatnonzero(split.sets.complete)
    index = np.searchsorted(complete, split.sets.index[split.kept])
    zhat = unit_vectors(z, len(z))
    groups = [np.ones(len(index)), *(m[split.kept] for m in members if len(members) > 1)]
    sums = [group_sums(zhat * g[:, None], index, len(complete)) for g in groups]
    products = sums[0] @ sums[0].T - sum((v @ v.T for v in sums[1:]), start=np.zeros(1))
    np.fill_diagonal(products, 0.0)
    size = np.column_stack([np.bincount(index, weights=g, minlength=len(complete)) for g in groups]).astype(np.float64)
    return _RandomPairs(complete, products, size)
