"""VCRD: the strength of the teacher's pull follows from how much more valid its next step is (arXiv 2605.04078).

At one prefix the teacher proposes a^T, the student a^S, and a scorer gives each a validity v in [0, 1]:

    delta = v(a^T) - v(a^S)                                       in [-1, 1]
    w     = clip(2 sigmoid(beta delta), w_min, w_max)             no gradient
    L_t   = lam_ce CE_t + lam_kd w_t temp^2 D_t

The paper's idea is the relative validity at the same prefix that scales the pull; estimator, weight function and
numbers are not public, and are our choice. Equally valid steps give w = 1, plain distillation; beta = 0 does so always.

Token mode asks nobody: a^T = argmax p, a^S = argmax q, v = p(a) / max p, so delta_t = 1 - p(a^S) / max p. There the
teacher never loses: w is in [1, 2]. Step mode (``steps``) takes delta from outside, where the next steps were proposed
and scored before the training step, one number per trained token (the batch's column ``deltas``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from isodistill.numerics.divergences import DIVERGENCES, divergence
from isodistill.objectives.base import StudentOutput, TeacherOutput, TopK, TrainedTokens
from isodistill.objectives.distillation import Distillation, Rows, rows_of, spans
from isodistill.objectives.steps import StepSettings
from isodistill.recipe import parse_settings

__all__ = ["VCRD", "token_delta", "validity_weight"]

CONTROLS = ("none", "ones", "permuted", "constant", "reversed", "teacher_confidence", "student_confidence")
_DELTAS = (-1.0, -0.5, -0.05, 0.05, 0.5, 1.0)
_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0)


def validity_weight(delta: Tensor, beta: float, w_min: float = 0.0, w_max: float = 2.0) -> Tensor:
    """w = clip(2 sigmoid(beta delta), w_min, w_max), without gradient; 1 at delta = 0, growing with delta."""
    return (2 * torch.sigmoid(beta * delta.detach())).clamp(w_min, w_max)


def token_delta(z: Tensor, teacher: Tensor | TopK, temperature: float = 1.0) -> Tensor:
    """delta (n,) = 1 - p(a^S) / max p of student logits z (n, n_vocab) and teacher logits or top k.

    Outside the top k, p(a^S) is at most that of the last stored token, which stands for it.
    """
    if isinstance(teacher, TopK):
        log_probs, hit = teacher.log_probs.float(), _hit(z, teacher)
        chosen = torch.where(hit.any(1), (log_probs * hit).sum(1), log_probs[:, -1])
        return 1 - (chosen - log_probs[:, 0]).exp()
    n = min(z.shape[1], teacher.shape[1])
    scaled = teacher[:, :n].float() / temperature
    chosen = scaled.gather(1, z[:, :n].argmax(1, keepdim=True)).squeeze(1)
    return 1 - (chosen - scaled.amax(1)).exp()


def _hit(z: Tensor, teacher: TopK) -> Tensor:
    """(n, k) which stored token is the student's; no one in a row where it lies outside the top k."""
    z = z[:, : teacher.n_vocab] if teacher.n_vocab else z
    return teacher.ids.long() == z.argmax(1, keepdim=True)


@dataclass(kw_only=True)
class VCRD(Distillation):
    """See the module.

    Controls and ``w_norm`` look at all tokens of the optimizer step, over micro-batches and processes; the trainer
    makes a first pass for them (``strengths``). Without a trainer the micro-batch is the whole step.

    Args:
        divergence_name: D: fkl (default), rkl, jsd, skl or srkl; in step mode also ``ce``, -log q(y_t), which asks no
            teacher at the tokens, so that any teacher's text serves.
        mix: beta of jsd, alpha of skl and srkl; default 0.5.
        beta: how sharply w follows delta; default 4, in step mode 2. 0 is plain distillation.
        w_min: least weight; default 0.
        w_max: largest weight; default 2.
        w_norm: ``none``, or ``mean``: divide w by its mean over the tokens of the optimizer step.
        control: ``none``; or one that takes the idea out: ``ones``; ``permuted`` over the tokens of the optimizer
            step; ``constant``, their mean; ``reversed``, -delta; token mode also ``teacher_confidence``, delta =
            1 - max p, and ``student_confidence``, 1 - max q.
        steps: settings of step mode (``StepSettings``); None is token mode.
    """

    divergence_name: str = "fkl"
    mix: float = 0.5
    beta: float | None = None
    w_min: float = 0.0
    w_max: float = 2.0
    w_norm: str = "none"
    control: str = "none"
    steps: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.step_settings: StepSettings | None = None
        if self.steps is not None:
            self.step_settings = parse_settings(StepSettings, self.steps, [], "the group steps of the objective vcrd")
            self.steps = asdict(self.step_settings)
        if self.beta is None:
            self.beta = 4.0 if self.steps is None else 2.0
        if self.divergence_name == "ce" and (self.steps is None or self.rho):
            raise ValueError("divergence_name ce needs the group steps and rho 0: it imitates a teacher's trace")
        if self.control.endswith("confidence") and self.steps is not None:
            raise ValueError(f"control {self.control} belongs to token mode; leave the group steps out")
        for name, allowed in (
            ("divergence_name", (*DIVERGENCES, "ce")),
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

    @property
    def needs_teacher(self) -> bool:
        """Not where D is the cross-entropy on the teacher's text."""
        return self.divergence_name != "ce"

    @property
    def needs_whole_step(self) -> bool:
        """w depends on all tokens of the optimizer step."""
        return self.control in ("permuted", "constant") or self.w_norm == "mean"

    def distance(self, z: Tensor, rows: Rows, ce: Tensor) -> Tensor:
        """See ``Distillation``; the cross-entropy for ``ce``."""
        return super().distance(z, rows, ce) if self.needs_teacher else ce

    def weights_of(self, z: Tensor, rows: Rows) -> Tensor | None:
        """w (n,) of token mode; in step mode tokens without a delta have w = 1."""
        if self.steps is not None:
            return None
        assert rows.teacher is not None
        delta = self._token_delta(z, rows.teacher)
        self.see("delta", delta)
        if isinstance(rows.teacher, TopK):
            self.see("outside_top_k", (~_hit(z, rows.teacher).any(1)).float())
        return self.weight(delta)

    def given_weights(
        self, student: StudentOutput, tokens: TrainedTokens, teacher: TeacherOutput | None
    ) -> Tensor | None:
        """w (N,) made from the whole step, or from deltas that come from outside."""
        if tokens.strengths is not None:
            return tokens.strengths
        if not self.needs_whole_step:
            return None if tokens.deltas is None else self.weight(tokens.deltas)
        # Seeded by what is permuted, so that a resumed run draws what an uninterrupted one drew.
        return self.settled(self.weight(self.deltas(student, tokens, teacher)), int(tokens.targets.sum()))

    @torch.no_grad()
    def deltas(self, student: StudentOutput, tokens: TrainedTokens, teacher: TeacherOutput | None) -> Tensor:
        """delta (N,): from outside, 0 in step mode where there is none, else that of token mode."""
        if tokens.deltas is not None:
            return tokens.deltas
        if self.steps is not None:
            return torch.zeros(len(tokens.targets), device=tokens.targets.device)
        parts = []
        for span in spans(len(tokens.targets), self.chunk):
            asked = rows_of(tokens, teacher, None, span).teacher
            assert asked is not None
            parts.append(self._token_delta(student.head(student.hidden[span]).float(), asked))
        return torch.cat(parts)

    def _token_delta(self, z: Tensor, teacher: Tensor | TopK) -> Tensor:
        """delta (n,) of token mode, or what a control puts in its place."""
        if self.control == "student_confidence":
            return 1 - torch.softmax(z / self.temperature, 1).amax(1)
        if self.control == "teacher_confidence":
            if isinstance(teacher, TopK):
                return 1 - teacher.log_probs[:, 0].exp()
            return 1 - torch.softmax(teacher.float() / self.temperature, 1).amax(1)
        return token_delta(z, teacher, self.temperature)

    def weight(self, delta: Tensor) -> Tensor:
        """w of delta, as far as one token decides it."""
        assert self.beta is not None
        if self.control == "ones":
            delta = torch.zeros_like(delta)
        return validity_weight(-delta if self.control == "reversed" else delta, self.beta, self.w_min, self.w_max)

    def settled(self, w: Tensor, seed: int) -> Tensor:
        """w (M,) of all tokens of an optimizer step, after the control and the norm that look at all of them."""
        if self.control == "permuted":
            w = w[torch.randperm(len(w), generator=torch.Generator().manual_seed(seed)).to(w.device)]
        elif self.control == "constant":
            w = torch.full_like(w, float(w.mean()))
        return w / w.mean().clamp(min=1e-12) if self.w_norm == "mean" else w

    def report(self, tokens: TrainedTokens, seen: dict[str, Tensor]) -> None:
        """How delta and w are spread, and where in the trace the signal w D goes, by tenths of it."""
        super().report(tokens, seen)
        if "outside_top_k" in seen:
            self.measure("outside_top_k", seen["outside_top_k"])
        delta, w = seen.get("delta", tokens.deltas), seen.get("weight")
        if delta is None or w is None:
            return
        self.measure("student_beats_teacher", (delta < 0).float())
        tenths, signal = tokens.tenths(), w * seen["kd"]
        for name, values, borders in (("delta", delta, _DELTAS), ("weight", w, _WEIGHTS)):
            self.measure(name, values)
            inside = torch.bucketize(values, values.new_tensor(borders[1:-1]), right=True)
            for i, (low, high) in enumerate(pairwise(borders)):
                self.measure(f"{name}_{low:g}_{high:g}", (inside == i).float())
        for i in range(10):
            here = tenths == i
            for name, values in (("delta", delta), ("weight", w), ("signal", signal)):
                self.measure(f"{name}_at_{i}", values[here])
