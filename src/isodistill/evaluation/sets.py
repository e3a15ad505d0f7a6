"""Items grouped into isomer sets: the clusters of every set metric and of the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoolArray", "FloatArray", "IntArray", "Labels", "Sets", "codes", "group", "ratio"]

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.intp]
BoolArray: TypeAlias = NDArray[np.bool_]
Labels: TypeAlias = Sequence[Any] | NDArray[Any]
"""One label per item: strings, integers or None; a list, an array or a tensor."""


@dataclass(frozen=True)
class Sets:
    """Which set every item belongs to.

    Attributes:
        index: (N,) set of every item, 0..S-1.
        size: (S,) members.
        named: (S,) False for an item without a set, which is its own cluster.
        complete: (S,) at least two members, and one in every domain in which any named set has a member.
    """

    index: IntArray
    size: IntArray
    named: BoolArray
    complete: BoolArray

    def total(self, values: Labels) -> FloatArray:
        """(S,) sums over the members of each set of ``values`` (N,)."""
        weights = np.asarray(values, dtype=np.float64)
        return np.bincount(self.index, weights=weights, minlength=len(self.size)).astype(np.float64)


def group(set_ids: Labels, domains: Labels | None = None) -> Sets:
    """Sets in the order of their first item; a set_id of None makes an item its own cluster.

    Raises:
        ValueError: ``domains`` has another length than ``set_ids``.
    """
    ids = _listed(set_ids)
    index, names = codes([(i, None) if name is None else (None, name) for i, name in enumerate(ids)])
    size = np.bincount(index, minlength=len(names)).astype(np.intp)
    named = np.array([name is not None for _, name in names], dtype=bool)
    if domains is None:
        return Sets(index, size, named, named & (size >= 2))
    if len(domains) != len(ids):
        raise ValueError(f"set_ids has {len(ids)} items and domains has {len(domains)}: one domain per item is needed.")
    domain, _ = codes(domains)
    told = np.unique(np.stack([index, domain]), axis=1)
    told = told[:, named[told[0]]]
    n_domains = np.bincount(told[0], minlength=len(names))
    return Sets(index, size, named, named & (size >= 2) & (n_domains == len(np.unique(told[1]))))


def codes(labels: Labels) -> tuple[IntArray, list[Any]]:
    """(N,) integer codes of the labels, and the labels, both in the order of first appearance."""
    numbers: dict[Any, int] = {}
    index = [numbers.setdefault(label, len(numbers)) for label in _listed(labels)]
    return np.array(index, dtype=np.intp), list(numbers)


def ratio(numerator: Any, denominator: Any) -> Any:
    """Their quotient, elementwise; NaN, which stands for undefined, where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    undefined = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)


def _listed(labels: Labels) -> list[Any]:
    return labels.tolist() if hasattr(labels, "tolist") else list(labels)
