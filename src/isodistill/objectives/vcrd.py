"""VCRD: the strength of the teacher's pull follows from how much more valid its next step is (arXiv 2605.04078).

At one prefix the teacher proposes a^T, the student a^S, and a scorer gives each a validity v in [0, 1]:

    delta = v(a^T) - v(a^S)                                       in [-1, 1]
    w     = clip(2 sigmoid(beta delta), w_min, w_max)             no gradient
    L_t   = lam_ce CE_t + lam_kd w_t temp^2 D_t

The paper's idea is the relative validity at the same prefix that scales the pull; estimator, weight function and
numbers are not public, and are our choice. Equally valid steps give w = 1, plain distillation; beta = 0 does so always.

Token mode asks nobody: a^T = argmax p, a^S = argmax q, v = p(a) / max p, so delta_t = 1 - p(a^S) / max p. There the
teacher never loses: w is in [1, 2]. Step mode takes delta from outside, one number per trained token (the batch's
column ``deltas``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isodistill.numerics.divergences import DIVERGENCES, divergence
from isodistill.objectives.base import StudentOutput, TeacherOutput, TopK, TrainedTokens
from isodistill.objectives.distillation import Distillation, Rows, rows_of, spans

__all__ = ["VCRD", "token_delta", "validity_weight"]

CONTROLS = ("none", "ones", "permuted", "constant", "reversed")


def validity_weight(delta: Tensor, beta: float, w_min: float = 0.0, w_max: float = 2.0) -> Tensor:
    """w = clip(2 sigmoid(beta delta), w_min, w_max), without gradient; 1 at delta = 0, growing with delta."""
    return (2 * torch.sigmoid(beta * delta.detach())).clamp(w_min, w_max)


def token_delta(z: Tensor, teacher: Tensor | TopK, temperature: float = 1.0) -> Tensor:
    """delta (n,) = 1 - p(a^S) / max p of student logits z (n, n_vocab) and teacher logits or top k.

    Outside the top k, p(a^S) is at most that of the last stored token, which stands for it.
    """
    if isinstance(teacher, TopK):
        log_probs = teacher.log_probs.float()
        hit = teacher.ids.long() == z.argmax(1, keepdim=True)
        chosen = torch.where(hit.any(1), (log_probs * hit).sum(1), log_probs[:, -1])
        return 1 - (chosen - log_probs[:, 0]).exp()
    n = min(z.shape[1], teacher.shape[1])
    scaled = teacher[:, :n].float() / temperature
    chosen = scaled.gather(1, z[:, :n].argmax(1, keepdim=True)).squeeze(1)
    return 1 - (chosen - scaled.amax(1)).exp()


@dataclass(kw_only=True)
class VCRD(Distillation):
    """See the module.

    Args:
        divergence_name: D: fkl (default), rkl, jsd, skl or srkl.
        mix: beta of jsd, alpha of skl and srkl; default 0.5.
        beta: how sharply w follows delta; default 4 (2 suits step mode). 0 is plain distillation.
        w_min: least weight; default 0.
        w_max: largest weight; default 2.
        w_norm: ``none``, or ``mean``: divide w by its mean over the micro-batch.
        control: ``none``; or one that takes the idea out: ``ones``; ``permuted`` over the tokens of the micro-batch;
            ``constant``, their mean; ``reversed``, -delta.
    """

    divergence_name: str = "fkl"
    mix: float = 0.5
    beta: float = 4.0
    w_min: float = 0.0
    w_max: float = 2.0
    w_norm: str = "none"
    control: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("divergence_name", DIVERGENCES),
            ("w_norm", ("none", "mean")),
            ("control", CONTROLS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix is {self.mix:g}; it must be between 0 and 1")
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta:g}; it must be at least 0, or w would fall with validity")
        if not 0 <= self.w_min <= 1 <= self.w_max:
            raise ValueError(f"w_min is {self.w_min:g} and w_max {self.w_max:g}; 0 <= w_min <= 1 <= w_max is needed")

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The divergence by its name."""
        return divergence(self.divergence_name, log_p, log_q, self.mix)

    def weights_of(self, z: Tensor, rows: Rows) -> Tensor | None:
        """w (n,) of token mode, measured."""
        return self._weight(token_delta(z, rows.teacher, self.temperature))

    @torch.no_grad()
    def given_weights(self, student: StudentOutput, tokens: TrainedTokens, teacher: TeacherOutput) -> Tensor | None:
        """w (N,) where deltas come from outside, or where a control or ``w_norm`` looks at all tokens at once."""
        whole = self.control in ("permuted", "constant") or self.w_norm == "mean"
        if tokens.deltas is None and not whole:
            return None
        delta = tokens.deltas
        if delta is None:
            n = len(tokens.targets)
            delta = torch.cat(
                [
                    token_delta(student.head(student.hidden[s]), rows_of(tokens, teacher, None, s).teacher)
                    for s in spans(n, self.chunk)
                ]
            )
        w = self._weight(delta)
        if self.control == "permuted":
            # Seeded by what is permuted, so that a resumed run draws what an uninterrupted one drew.
            seed = int(tokens.targets.sum()) + len(w)
            w = w[torch.randperm(len(w), generator=torch.Generator().manual_seed(seed)).to(w.device)]
        elif self.control == "constant":
            w = torch.full_like(w, float(w.mean()))
        return w / w.mean().clamp(min=1e-12) if self.w_norm == "mean" else w

    def _weight(self, delta: Tensor) -> Tensor:
        if self.control == "ones":
            delta = torch.zeros_like(delta)
        w = validity_weight(-delta if self.control == "reversed" else delta, self.beta, self.w_min, self.w_max)
        self.measure("delta", delta)
        self.measure("weight", w)
        self.measure("student_beats_teacher", (delta < 0).float())
        for low, high in ((0.0, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0)):
            inside = (w >= low) & (w < high) if high < 2 else w >= low
            self.measure(f"weight_{low:g}_{high:g}", inside.float())
        return w
