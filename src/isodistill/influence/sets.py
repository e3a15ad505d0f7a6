"""Which members of sets do not belong: similarity under heads that were fitted to other sets (ours)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from isodistill.influence.heads import Fit, fit_heads

__all__ = ["SET_FIT", "Belonging", "belonging", "centred"]

SET_FIT = Fit(epochs=5, delta=30.0, recorded=1)
"""A short fit: the heads start from the cosines of the features and learn what members of a set share."""

_FOLDS = 5
_ENOUGH = 10


@dataclass(frozen=True)
class Belonging:
    """How well members fit their own set.

    Attributes:
        pairs: (m, 2), the members of every pair of a set, by their place.
        similarity: (m,), cosine of the pair, mean of both directions; low is suspicious.
        member: (n,), the mean over the pairs of a member.
    """

    pairs: Tensor
    similarity: Tensor
    member: Tensor


def centred(features: Tensor, domains: Sequence[str | None]) -> Tensor:
    """Features (n, d) less the mean of their domain, rows of norm 1: what a domain's words share tells no set apart.

    The mean of all is taken off where a domain has fewer than ten rows: the mean of one row would leave nothing.
    """
    result = features - features.mean(0)
    for domain in dict.fromkeys(domains):
        rows = torch.tensor([name == domain for name in domains])
        if int(rows.sum()) >= _ENOUGH:
            result[rows] = features[rows] - features[rows].mean(0)
    return nn.functional.normalize(result, dim=-1)


def belonging(features: Tensor, sets: Sequence[str], how: Fit = SET_FIT) -> Belonging:
    """Fit heads to the pairs of four fifths of the sets, judge the pairs of the last fifth, and so for every fifth.

    A pair that the heads were fitted to would look right even where it is wrong. No batch holds two pairs of one set,
    so that the isomers of a problem are never its negatives.

    Args:
        features: (n, d), a row for each member.
        sets: (n,), the set of each; every one has two members or more.
        how: the settings of the heads.

    Raises:
        ValueError: for fewer than four sets, or a set with one member.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(sets):
        members[name].append(place)
    if len(members) < 4 or min(map(len, members.values())) < 2:
        raise ValueError(f"Needs four sets of two members or more, got {sorted(map(len, members.values()))[:4]}.")
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(how.seed)).tolist()
    pairs = torch.tensor([pair for places in members.values() for pair in combinations(places, 2)])
    owner = torch.tensor([number for number, places in zip(order, members.values(), strict=True)
                          for _ in combinations(places, 2)])  # fmt: skip
    similarity = torch.zeros(len(pairs), dtype=torch.float64)
    n_folds = min(_FOLDS, len(members) // 2)
    for fold in range(n_folds):
        judged = owner % n_folds == fold
        similarity[judged] = _judge(features, pairs[~judged], owner[~judged], pairs[judged], how)
    member = torch.zeros(len(sets), dtype=torch.float64)
    for side in (0, 1):
        member.index_add_(0, pairs[:, side], similarity)
    return Belonging(pairs, similarity, member / torch.bincount(pairs.reshape(-1), minlength=len(sets)))


def _judge(features: Tensor, fitted: Tensor, owner: Tensor, judged: Tensor, how: Fit) -> Tensor:
    """The similarity of pairs under heads fitted to others."""
    epochs = [_rounds(owner, how.batch_size, how.seed + epoch) for epoch in range(how.epochs)]
    heads = fit_heads(features[fitted[:, 0]], features[fitted[:, 1]], how, epochs)
    one, two = features[judged[:, 0]], features[judged[:, 1]]
    with torch.no_grad():
        both = heads.logits(heads.theta, one, two).diagonal() + heads.logits(heads.theta, two, one).diagonal()
    return both.double() * how.temperature / 2


def _rounds(owner: Tensor, batch_size: int, seed: int) -> list[Tensor]:
    """Batches of pairs, all of different sets: first one pair of every set, then another of every set that has one."""
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(seed))
    rounds: list[list[int]] = []
    seen: dict[int, int] = defaultdict(int)
    for n, name in zip(order.tolist(), owner[order].tolist(), strict=True):
        if seen[name] == len(rounds):
            rounds.append([])
        rounds[seen[name]].append(n)
        seen[name] += 1
    batches = [batch for places in rounds for batch in torch.tensor(places).split(batch_size)]
    return [batch for batch in batches if len(batch) > 1]
