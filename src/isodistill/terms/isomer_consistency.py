"""Isomer consistency (ours): the members of a set shall be answered, and represented, alike.

For a set with the members k = 1 .. K, pi_kj the student's distribution of the j-th of the J tokens of the answer, read
behind the member's own trace, and zhat_k = z_k / |z_k| the direction of its hidden state at the last prompt token:

    m_j   = (1/K) sum_k pi_kj ;    JS  = (1/J) sum_j (1/K) sum_k KL(pi_kj || m_j)               nats, 0 to log K
    c     = (1/K) sum_k zhat_k ;   LCS = (1/(K - 1)) sum_k |zhat_k - c|^2 = mean over i < j of (1 - zhat_i . zhat_j)
    Omega = mean over the sets of the step of (answers JS + states LCS) ;           loss = Lbar + Omega

JS is the Jensen-Shannon divergence of the set, LCS the logical consistency score that evaluation reports (our
definition). With m_j and c held fixed, the summands belong to one member each,

    omega_k = answers (1/J) sum_j KL(pi_kj || m_j) + states (K / (K - 1)) |zhat_k - c|^2

and the gradient of their mean is that of Omega, because neither has a gradient along m_j or c there (m_j is the mixture
nearest to the pi_kj, c the point nearest to the zhat_k). So the loss of domain k is L_k plus the mean of its members'
omega_k, and every alignment that takes domain losses takes these. A set lies in one micro-batch, so Omega is a plain
sum over them, and the split does not change it.

Members are compared in JS only where the answers of the whole set are the same tokens; a set told with other words in
the answer keeps its LCS. Sets of one member have nothing to compare. The states that LCS looks at are those that it is
evaluated on: after training with ``states`` the LCS of a student is no evidence by itself.
Neutral setting: ``answers`` = ``states`` = 0. Cost: the logits of the answers' tokens once more.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from isodistill.terms.base import Term

__all__ = ["IsomerConsistency", "SetMembers"]


@dataclass(frozen=True)
class SetMembers:
    """What the term sees of the R sequences of a micro-batch.

    Attributes:
        states: (R, d) hidden states at the last prompt token, after the final norm.
        sets: (R,) isomer set of each sequence, numbered from 0.
        domains: (R,) domain of each.
        logits: (M, V) of the tokens of the answers, in the order of ``rows``.
        answers: (M,) these tokens.
        rows: (M,) the sequence of each of them, not decreasing.
    """

    states: Tensor
    sets: Tensor
    domains: Tensor
    logits: Tensor
    answers: Tensor
    rows: Tensor


@dataclass
class IsomerConsistency(Term):
    """See the module for the equations.

    Args:
        answers: weight of JS; 0 leaves it out.
        states: weight of LCS; 0 leaves it out.
        control: ``shuffled`` compares members of different sets of the micro-batch, one from every domain; a gain that
            it shows too is not owed to the sets.

    Raises:
        ValueError: an option is out of range.
    """

    name: ClassVar[str] = "isomer_consistency"

    answers: float = 1.0
    states: float = 0.1
    control: Literal["none", "shuffled"] = "none"

    def __post_init__(self) -> None:
        super().__init__()
        for name, value in (("answers", self.answers), ("states", self.states)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"term.{name} is {value}; it must be 0 (left out) or more, and finite")
        if self.control not in ("none", "shuffled"):
            raise ValueError(f"term.control is {self.control!r}; choose one of none, shuffled")

    @property
    def is_neutral(self) -> bool:
        """Nothing is added to the loss."""
        return self.answers == 0 and self.states == 0

    def parts(self, seen: SetMembers) -> Tensor:
        """omega (R,) in fp32 or fp64, with gradient; 0 for a sequence with nothing to be compared with."""
        sets = seen.sets
        if self.control == "shuffled":
            sets = (sets + seen.domains) % (int(sets.max()) + 1)
        omega = _precise(seen.states.new_zeros(len(sets)))
        for name, weight, measure in (("js", self.answers, self._js), ("lcs", self.states, _lcs)):
            if weight > 0:
                values = measure(seen, sets)
                omega = omega + weight * values
                self.measure(f"consistency_{name}", values.mean(), len(sets))
        return omega

    def _js(self, seen: SetMembers, sets: Tensor) -> Tensor:
        """(1/J) sum_j KL(pi_kj || m_j) of every sequence, (R,)."""
        compared, places, lengths = self._comparable(seen, sets)
        log_pi = F.log_softmax(_precise(seen.logits[compared]), -1)
        rows = seen.rows[compared]
        # One mixture for every place in the answer of every set.
        _, group, sizes = torch.unique(
            sets[rows] * (int(lengths.max()) + 1) + places[compared], return_inverse=True, return_counts=True
        )
        with torch.no_grad():
            m = log_pi.new_zeros(len(sizes), log_pi.shape[1]).index_add_(0, group, log_pi.exp()) / sizes[:, None]
            log_m = m.clamp(min=torch.finfo(m.dtype).tiny).log()[group]
        KL = (log_pi.exp() * (log_pi - log_m)).sum(-1)
        zeros: Tensor = KL.new_zeros(len(sets))
        return zeros.index_add_(0, rows, KL / lengths[rows])

    def _comparable(self, seen: SetMembers, sets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which tokens (M,) are compared, the place (M,) of each in its answer, and the length (R,) of every answer."""
        lengths = torch.bincount(seen.rows, minlength=len(sets))
        places = torch.arange(len(seen.rows), device=sets.device) - (lengths.cumsum(0) - lengths)[seen.rows]
        told: dict[int, set[Hashable]] = {}
        spans = seen.answers.tolist()
        start = 0
        for of_set, length in zip(sets.tolist(), lengths.tolist(), strict=True):
            # In the control the answers are of different problems, so only their lengths can agree.
            own = length if self.control == "shuffled" else tuple(spans[start : start + length])
            told.setdefault(of_set, set()).add(own)
            start += length
        alike = torch.tensor([len(told.get(s, ())) == 1 for s in range(int(sets.max()) + 1)], device=sets.device)
        return alike[sets[seen.rows]], places, lengths


def _lcs(seen: SetMembers, sets: Tensor) -> Tensor:
    """(K / (K - 1)) |zhat_k - c|^2 of every sequence, (R,)."""
    zhat = F.normalize(_precise(seen.states), dim=-1)
    K = torch.bincount(sets)
    with torch.no_grad():
        c = zhat.new_zeros(len(K), zhat.shape[1]).index_add_(0, sets, zhat) / K.clamp(min=1)[:, None]
    factor: Tensor = (K.to(zhat) / (K - 1).clamp(min=1))[sets]
    # A set of one member is its own centre: the distance is 0, and so is its gradient, 2 (zhat - c).
    distances: Tensor = (zhat - c[sets]).square().sum(-1)
    return factor * distances


def _precise(x: Tensor) -> Tensor:
    """fp32, or fp64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
