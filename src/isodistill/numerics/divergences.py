"""Divergences between a teacher p and a student q over one set of outcomes, from log-probabilities (..., V) to (...).

    fkl   sum_v p (log p - log q)
    rkl   sum_v q (log q - log p)
    jsd   beta KL(p, m) + (1 - beta) KL(q, m),   m = beta p + (1 - beta) q     GKD, arXiv 2306.13649
    skl   KL(p, alpha p + (1 - alpha) q)                                         DistiLLM, arXiv 2402.03898
    srkl  KL(q, alpha q + (1 - alpha) p)

The formula of jsd is 0 at beta 0 and 1; by the usual convention these mean fkl and rkl. Mixtures stay in log space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["DIVERGENCES", "TAILS", "divergence", "truncated"]

TAILS = ("bucket", "renorm", "drop")
DIVERGENCES = ("fkl", "rkl", "jsd", "skl", "srkl")
_FLOOR = 1e-12  # least mass of the outcome that stands for everything outside the top k


def divergence(name: str, log_p: Tensor, log_q: Tensor, mix: float = 0.5) -> Tensor:
    """D (...) of ``log_p`` and ``log_q`` (..., V); ``mix`` is beta of jsd and alpha of skl and srkl, in [0, 1].

    Raises:
        ValueError: an unknown name, or a mix outside [0, 1].
    """
    if name not in DIVERGENCES:
        raise ValueError(f"divergence is {name!r}; choose one of {', '.join(DIVERGENCES)}")
    if not 0 <= mix <= 1:
        raise ValueError(f"the share of the mixture is {mix:g}; it must be between 0 and 1")
    if name == "fkl" or (name == "jsd" and mix == 0):
        return _kl(log_p, log_q)
    if name == "rkl" or (name == "jsd" and mix == 1):
        return _kl(log_q, log_p)
    if name == "skl":
        return _kl(log_p, _mixture(mix, log_p, log_q))
    if name == "srkl":
        return _kl(log_q, _mixture(mix, log_q, log_p))
    log_m = _mixture(mix, log_p, log_q)
    return mix * _kl(log_p, log_m) + (1 - mix) * _kl(log_q, log_m)


def truncated(
    log_probs: Tensor, log_tail: Tensor, ids: Tensor, log_q: Tensor, tail: str = "bucket"
) -> tuple[Tensor, Tensor]:
    """log p and log q over what is known of a teacher's k likeliest outcomes.

    bucket: k + 1 outcomes, the last one all others together, at least 1e-12 (KL never above that of all outcomes);
    renorm: both conditioned on the k; drop: the k as they are, which is no distribution and may give a sum below 0.

    Args:
        log_probs: (n, k) of the teacher, after the softmax over all outcomes.
        log_tail: (n,) log of the mass of all others.
        ids: (n, k) which outcomes.
        log_q: (n, V) of the student.
        tail: the rule.
    """
    kept = log_q.gather(-1, ids)
    if tail == "drop":
        return log_probs, kept
    if tail == "renorm":
        return log_probs - log_probs.logsumexp(-1, keepdim=True), kept - kept.logsumexp(-1, keepdim=True)
    rest = (-torch.expm1(kept.logsumexp(-1, keepdim=True).clamp(max=0))).clamp(min=_FLOOR).log()
    return torch.cat([log_probs, log_tail.clamp(min=math.log(_FLOOR))[:, None]], -1), torch.cat([kept, rest], -1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _mixture(share: float, log_a: Tensor, log_b: Tensor) -> Tensor:
    """log(share a + (1 - share) b)."""
    if share in (0.0, 1.0):
        return log_a if share else log_b
    return torch.logaddexp(math.log(share) + log_a, math.log1p(-share) + log_b)
