"""Token-level distillation: the student's distribution against a teacher's at every trained position.

    L_t = lam_ce CE_t + lam_kd w_t temp^2 D(p_t, q_t),    p = softmax(z_T / temp), q = softmax(z_S / temp)

D is one of `isodistill.numerics.divergences`, in fp32 log space; the teacher has no gradient; w_t = 1 except in VCRD.
Only trained positions reach a head, ``chunk`` at a time, the teacher's too, so no (N, n_vocab) tensor exists. Under a
frozen head the gradient of the hidden states is made with the losses, as in cross-entropy; under another head the
logits are made again in the backward.

With ``rho`` a share of the optimizer steps trains on what the student itself writes (GKD, arXiv 2306.13649). There is
no trace to imitate then, so CE_t = 0 on such tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from isodistill.models.frozen import FrozenLinear
from isodistill.numerics.divergences import TAILS, divergence, truncated
from isodistill.objectives.base import StudentOutput, TeacherOutput, TopK, TrainedTokens

__all__ = ["JSD", "Distillation", "ForwardKL", "ReverseKL", "Skew"]

_ROWS = 16  # positions whose distributions exist at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class Rows:
    """One piece of the trained positions, all without gradient.

    ``teacher`` holds logits (n, n_vocab), a ``TopK``, or None where nobody is asked; ``targets`` (n,) are -100 where
    there is no trace to imitate; ``weights`` (n,) are given w_t, None where the objective makes them itself.
    """

    teacher: Tensor | TopK | None
    targets: Tensor
    weights: Tensor | None


@dataclass(kw_only=True)
class Distillation:
    """What all members share; see the module.

    Args:
        temperature: temp of both distributions; default 1.
        lam_ce: factor of the cross-entropy on the trace; default 0.5.
        lam_kd: factor of the divergence; default 0.5. 0 is fine-tuning.
        vocab: ``same``: refuse a teacher with other logits; ``truncate``: cut both to the common length before softmax.
        tail: what a stored top k says of all other tokens: ``bucket`` (default), ``renorm`` or ``drop``; see
            ``numerics.divergences.truncated``.
        rho: share of optimizer steps that train on samples of the student; default 0.
        sample_temperature: of these samples; default 1.
        sample_tokens: their longest; default 128.
        chunk: positions whose logits exist at one time; default 256.
    """

    temperature: float = 1.0
    lam_ce: float = 0.5
    lam_kd: float = 0.5
    vocab: str = "same"
    tail: str = "bucket"
    rho: float = 0.0
    sample_temperature: float = 1.0
    sample_tokens: int = 128
    chunk: int = 256

    @property
    def needs_teacher(self) -> bool:
        """See ``Objective``."""
        return True

    def __post_init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._seen: dict[str, list[Tensor]] = {}
        self.seen: dict[str, Tensor] = {}  # of the tokens last asked for: ce, kd, what a member adds; (N,) each
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature:g}; it must be above 0")
        if self.lam_ce < 0 or self.lam_kd < 0 or self.lam_ce + self.lam_kd == 0:
            raise ValueError(f"lam_ce is {self.lam_ce:g} and lam_kd {self.lam_kd:g}; neither below 0, one above")
        for name, allowed in (("vocab", ("same", "truncate")), ("tail", TAILS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho is {self.rho:g}; it is a share, 0 to 1")
        if self.rho and not self.lam_kd:
            raise ValueError("rho trains on samples of the student, where only lam_kd counts, and that is 0")
        if self.sample_temperature <= 0:
            raise ValueError(f"sample_temperature is {self.sample_temperature:g}; it must be above 0")
        for name in ("sample_tokens", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """D (n,) of log-probabilities (n, V)."""
        raise NotImplementedError

    def token_losses(
        self, student: StudentOutput, tokens: TrainedTokens, teacher: TeacherOutput | None = None
    ) -> tuple[Tensor, Tensor]:
        """Losses (N,) and the rows' weights (N,).

        Raises:
            ValueError: no teacher, a top k stored at another temperature, or logits of another length.
        """
        if teacher is None and self.needs_teacher:
            raise ValueError(f"{type(self).__name__} compares with a teacher, and none was given")
        if isinstance(teacher, TopK) and teacher.temperature != self.temperature:
            raise ValueError(
                f"the teacher's top k was stored at temperature {teacher.temperature:g}, and {self.temperature:g} is "
                "asked for; a truncated softmax cannot be tempered again"
            )
        self._seen = {}
        w = self.given_weights(student, tokens, teacher)
        if isinstance(student.head, FrozenLinear):
            losses = cast(Tensor, _FrozenHead.apply(student.hidden, self, student.head, tokens, teacher, w))  # type: ignore[no-untyped-call]
        else:
            parts = [
                checkpoint(self._piece, student.hidden[span], student, tokens, teacher, w, span, use_reentrant=False)
                for span in spans(len(tokens.targets), self.chunk)
            ]
            losses = torch.cat(parts)
        self.seen = {name: torch.cat(values) for name, values in self._seen.items()}
        self.report(tokens, self.seen)
        return losses, tokens.weights

    def given_weights(
        self, student: StudentOutput, tokens: TrainedTokens, teacher: TeacherOutput | None
    ) -> Tensor | None:
        """w (N,) where it must be known before the losses; None where ``weights_of`` makes it."""
        return None

    def weights_of(self, z: Tensor, rows: Rows) -> Tensor | None:
        """w (n,) of student logits z (n, n_vocab); None is w = 1."""
        return None

    def losses(self, z: Tensor, rows: Rows) -> Tensor:
        """L (n,) of student logits z (n, n_vocab) in fp32."""
        ce = F.cross_entropy(z, rows.targets, reduction="none")
        D = self.distance(z, rows, ce)
        w = self.weights_of(z.detach(), rows) if rows.weights is None else rows.weights
        self.see("ce", ce)
        self.see("kd", D)
        if w is not None:
            self.see("weight", w)
        return self.lam_ce * ce + self.lam_kd * (D if w is None else w * D)

    def distance(self, z: Tensor, rows: Rows, ce: Tensor) -> Tensor:
        """temp^2 D (n,) of student logits z (n, n_vocab)."""
        assert rows.teacher is not None
        log_p, log_q = self._log_probs(z, rows.teacher)
        self.see("teacher_nll", _nll(rows.teacher if isinstance(rows.teacher, TopK) else log_p, rows.targets))
        return self.temperature**2 * self.divergence(log_p, log_q)

    def see(self, name: str, values: Tensor) -> None:
        """Keep the values (n,) of the next tokens for ``report``."""
        self._seen.setdefault(name, []).append(values.detach())

    def report(self, tokens: TrainedTokens, seen: dict[str, Tensor]) -> None:
        """Measure what was seen of the N tokens, (N,) each."""
        ce = seen["ce"]
        self.measure("ce", ce if tokens.sampled is None else ce[~tokens.sampled])
        self.measure("kd", seen["kd"])
        for name in ("teacher_nll", "cut_mass"):
            if name in seen:
                self.measure(name, seen[name][~seen[name].isnan()])

    def measure(self, name: str, values: Tensor) -> None:
        """Add the values of some tokens (n,) to the mean that ``take_metrics`` gives."""
        one = torch.stack([values.detach().sum().double(), values.new_tensor(len(values)).double()])
        self._sums[name] = self._sums[name] + one if name in self._sums else one

    def take_metrics(self, over_processes: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Means over the tokens since the last call, each named ``objective/...``.

        ``ce``, ``kd``; ``teacher_nll``, of the trace under the teacher at its temperature; with ``vocab: truncate``
        ``cut_mass``, what the longer side's softmax gave to the ids that were cut; and what a member adds.
        """
        sums, self._sums = self._sums, {}
        if not sums:
            return {}
        table = torch.stack(list(sums.values()))
        total, n = (table if over_processes is None else over_processes(table)).T
        means = (total / n.clamp(min=1)).tolist()
        return {f"objective/{name}": value for name, value in zip(sums, means, strict=True)}

    def _log_probs(self, z: Tensor, teacher: Tensor | TopK) -> tuple[Tensor, Tensor]:
        if isinstance(teacher, TopK):
            z = z[:, : teacher.n_vocab] if teacher.n_vocab else z
            log_q = F.log_softmax(z / self.temperature, 1)
            stored = teacher.log_probs.float(), teacher.log_tail.float(), teacher.ids.long()
            return truncated(*stored, log_q, self.tail)
        if teacher.shape[1] != z.shape[1]:
            if self.vocab == "same":
                raise ValueError(
                    f"the teacher gives {teacher.shape[1]} logits and the student {z.shape[1]}; for one tokenizer with "
                    "padded embeddings set objective.vocab to truncate"
                )
            n = min(teacher.shape[1], z.shape[1])
            longer = max(teacher, z.detach(), key=lambda logits: logits.shape[1])
            self.see("cut_mass", -torch.expm1(longer[:, :n].logsumexp(1) - longer.logsumexp(1)))
            z, teacher = z[:, :n], teacher[:, :n]
        return tuple(F.log_softmax(x / self.temperature, 1) for x in (teacher, z))  # type: ignore[return-value]

    def _piece(
        self,
        hidden: Tensor,
        student: StudentOutput,
        tokens: TrainedTokens,
        teacher: TeacherOutput | None,
        w: Tensor | None,
        span: slice,
    ) -> Tensor:
        """Losses of one chunk, through autograd."""
        return self.losses(student.head(hidden).float(), rows_of(tokens, teacher, w, span))


def spans(n: int, size: int) -> Iterator[slice]:
    """n positions, ``size`` at a time."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def rows_of(tokens: TrainedTokens, teacher: TeacherOutput | None, w: Tensor | None, span: slice) -> Rows:
    """A chunk of the teacher, projected by its head, with its targets."""
    targets = tokens.targets[span]
    if tokens.sampled is not None:
        targets = targets.masked_fill(tokens.sampled[span], -100)
    return Rows(_teacher_at(teacher, span), targets, None if w is None else w[span])


def _teacher_at(teacher: TeacherOutput | None, span: slice) -> Tensor | TopK | None:
    if teacher is None:
        return None
    if isinstance(teacher, TopK):
        return teacher.at(span)
    with torch.no_grad():
        return teacher.head(teacher.hidden[span].detach())


def _nll(teacher: Tensor | TopK, targets: Tensor) -> Tensor:
    """-log p(y) (n,) of log-probs (n, V) or a top k; NaN where y is nothing (-100) or past the teacher's logits.

    Outside the top k, p(y) is at most that of the last stored token, which stands for it.
    """
    if isinstance(teacher, TopK):
        hit, log_probs = teacher.ids.long() == targets[:, None], teacher.log_probs.float()
        found = torch.where(hit.any(1), torch.where(hit, log_probs, 0.0).sum(1), log_probs[:, -1])
        known = targets >= 0
    else:
        known = (targets >= 0) & (targets < teacher.shape[1])
        found = teacher.gather(1, targets.where(known, 0)[:, None]).squeeze(1)
    return (-found).masked_fill(~known, torch.nan)


def _part(rows: Rows, span: slice) -> Rows:
    teacher = rows.teacher
    if teacher is not None:
        teacher = teacher.at(span) if isinstance(teacher, TopK) else teacher[span].float()
    return Rows(teacher, rows.targets[span], None if rows.weights is None else rows.weights[span])


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        objective: Distillation,
        head: FrozenLinear,
        tokens: TrainedTokens,
        teacher: TeacherOutput | None,
        w: Tensor | None,
    ) -> Tensor:
        losses, gradients = [], []
        for span in spans(len(tokens.targets), objective.chunk):
            logits, rows = head.forward(hidden[span].to(head.dtype)), rows_of(tokens, teacher, w, span)
            for part in spans(len(logits), _ROWS):
                z = logits[part].float().requires_grad_(ctx.needs_input_grad[0])
                with torch.enable_grad():
                    L = objective.losses(z, _part(rows, part))
                    total = L.sum()
                losses.append(L.detach())
                if ctx.needs_input_grad[0]:
                    logits[part] = torch.autograd.grad(total, z)[0].to(logits.dtype)
            if ctx.needs_input_grad[0]:
                gradients.append(head.backward(logits))
        ctx.gradient = torch.cat(gradients) if gradients else None
        ctx.dtype = hidden.dtype
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        return (factors[:, None] * ctx.gradient).to(ctx.dtype), None, None, None, None, None


@dataclass(kw_only=True)
class ForwardKL(Distillation):
    """D = KL(p, q): covers all that the teacher gives mass to."""

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """See the class."""
        return divergence("fkl", log_p, log_q)


@dataclass(kw_only=True)
class ReverseKL(Distillation):
    """D = KL(q, p): seeks one mode of the teacher; the token form, not MiniLLM's policy gradient."""

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """See the class."""
        return divergence("rkl", log_p, log_q)


@dataclass(kw_only=True)
class JSD(Distillation):
    """Generalised Jensen-Shannon divergence; ``beta`` 0 is ``fkl``, 1 is ``rkl`` by convention; default 0.5."""

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta:g}; it must be between 0 and 1")

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """See the class."""
        return divergence("jsd", log_p, log_q, self.beta)


@dataclass(kw_only=True)
class Skew(Distillation):
    """Skew KL of DistiLLM, at most log(1 / alpha): of p, or with ``reverse`` of q; ``alpha`` 0 is the plain KL."""

    alpha: float = 0.1
    reverse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha:g}; it must be between 0 and 1")

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """See the class."""
        return divergence("srkl" if self.reverse else "skl", log_p, log_q, self.alpha)
