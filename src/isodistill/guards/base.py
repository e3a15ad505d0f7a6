"""What a guard owes: what earlier stages taught is kept while the student learns the next one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from isodistill.alignment import Alignment
from isodistill.data.encode import Encoded
from isodistill.objectives import StudentOutput, TrainedTokens

__all__ = ["Guard", "StageEnd"]


class StageEnd(Protocol):
    """What a guard may ask of a finished stage."""

    @property
    def rows(self) -> Sequence[Encoded]:
        """The rows that the stage was trained on."""
        ...

    def gradients(self, n: int, *, sampled: bool) -> Iterator[Mapping[str, Tensor]]:
        """d log p(y | x) / d theta by parameter name, one row at a time: this process's share of n rows drawn once.

        ``sampled``: y is drawn from the student at every trained position instead of taken from the row.
        """
        ...


class Guard:
    """What protects earlier skills while the student is distilled again.

    Within a step the trainer calls ``token_losses`` in every micro-batch, ``after_backward`` once the alignment has
    left its direction in ``.grad`` (before clipping), and ``after_step`` once the optimizer has moved the parameters
    and the alignment has masked that move. Around a stage it calls ``begin`` and ``end``; what ``carried`` gives at the
    end is what the next ``begin`` gets.

    Attributes:
        parameters: trainable tensors by name.
        reference: copies of them at the begin of the stage, theta*.
        first: no stage was trained before this one, so there is nothing to protect yet.
    """

    needs_old_student: ClassVar[bool] = False
    """``token_losses`` gets the student of the last stage at the same positions."""

    adds_direction: ClassVar[bool] = False
    """``after_backward`` adds to ``.grad``."""

    learns_again: ClassVar[bool] = False
    """There may be ``past_rows``, of which a teacher is asked too."""

    fresh_adapter: ClassVar[bool] = False
    """Each stage trains a new adapter; the earlier ones are frozen in the weights below it."""

    def clashes(self, alignment: Alignment) -> list[str]:
        """Why this guard cannot protect any student under this alignment; empty where it can."""
        return []

    def obstacles(self, model: nn.Module) -> list[str]:
        """Why this guard cannot protect this student; empty where it can."""
        return []

    def begin(self, model: nn.Module, past: Mapping[str, Tensor] | None, seed: int) -> None:
        """A stage begins, with the student as the last one left it.

        Args:
            model: a peft model.
            past: what ``carried`` gave at the end of the last stage; None in the first one.
            seed: of what is drawn.
        """
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.reference = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.first = past is None

    def past_rows(self, step: int, n_rows: int) -> list[Encoded]:
        """Rows of earlier stages that are learned from again in a step of ``n_rows``."""
        return []

    def take_replayed(self, gradient: Mapping[str, Tensor]) -> None:
        """Take in the gradient, by parameter name, of the mean token loss of ``past_rows``."""
        raise NotImplementedError

    def token_losses(self, student: StudentOutput, tokens: TrainedTokens, old: StudentOutput) -> Tensor:
        """What is added to the losses (N,) of the trained tokens, given the student of the last stage."""
        raise NotImplementedError

    def after_backward(self) -> dict[str, float]:
        """Add to the direction in ``.grad``; returns metrics to log, the same in every process."""
        return {}

    def after_step(self) -> dict[str, float]:
        """Called just after the parameters moved; returns metrics to log, the same in every process."""
        return {}

    def take_metrics(self) -> dict[str, float]:
        """What this process measured since the last call."""
        return {}

    def end(self, stage: StageEnd) -> dict[str, Any]:
        """The stage is over: measure what the next one needs; may still change the parameters.

        Returns:
            What was decided, in numbers that JSON takes.
        """
        return {}

    def carried(self) -> dict[str, Tensor]:
        """What the next stage needs beyond the student, after ``end``."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What an exact resume inside a stage needs beyond the weights."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take that state back."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, but the checkpoint holds {sorted(state)}")


class NoGuard(Guard):
    """Plain fine-tuning, stage after stage: what every guard is compared with."""


class QuadraticGuard(Guard):
    """A pull towards the weights of the last stage, each entry with a strength of its own.

        (strength / 2) sum_i F_i (theta_i - theta*_i)^2        gradient: strength F_i (theta_i - theta*_i)

    The gradient is added in closed form to the direction that the alignment left, so clipping sees both, and a mask on
    the optimizer's step covers both.
    """

    adds_direction: ClassVar[bool] = True

    def clashes(self, alignment: Alignment) -> list[str]:
        """theta* must be in the basis of theta."""
        if getattr(alignment, "project_back", None) == "retract":
            return [
                "alignment.project_back retract changes the basis of A and B at every step, so their distance to the "
                "last stage says nothing; choose pullback, or another guard"
            ]
        return []

    @property
    def strength(self) -> float:
        """The factor of the penalty."""
        raise NotImplementedError

    def weights(self) -> Mapping[str, Tensor]:
        """F by parameter name; tensors that broadcast to the parameter."""
        raise NotImplementedError

    def anchors(self) -> Mapping[str, Tensor]:
        """theta* by parameter name."""
        return self.reference

    @torch.no_grad()
    def after_backward(self) -> dict[str, float]:
        """Add the pull; logs the penalty."""
        if self.first:
            return {}
        F, anchors = self.weights(), self.anchors()
        parts = []
        for name, p in self.parameters.items():
            away = p - anchors[name]
            pull = F[name] * away
            parts.append((pull * away).sum())
            if p.grad is not None:
                p.grad.add_(pull.to(p.grad), alpha=self.strength)
        # Read at once: a GPU would be waited for at every number.
        return {"guard/penalty": self.strength / 2 * float(torch.stack(parts).double().sum())}
