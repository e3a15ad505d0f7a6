"""The place of a term in a training: what every kind of term may do there, and what it does where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isodistill.alignment import Alignment
from isodistill.data.encode import Encoded
from isodistill.objectives import StudentOutput, TeacherOutput, TrainedTokens
from isodistill.training.config import DistillConfig

__all__ = ["StepTerm", "alignment_obstacles"]


class StepTerm:
    """No term; each kind of term has a subclass.

    Before training ``prompted`` gets all encoded rows and ``setup`` its length. An optimizer step calls ``begin``, then
    ``forward`` and the object itself in every micro-batch, and ``step`` when the last backward is done.

    Args:
        trainer: the ``DistillTrainer``, not yet made.
        args: of the training.
    """

    def __init__(self, trainer: Any, args: DistillConfig) -> None:
        self.trainer, self.args = trainer, args

    @property
    def looks_ahead(self) -> bool:
        """``begin`` is given the micro-batches of the step."""
        return False

    @property
    def more_rows(self) -> bool:
        """Rows that are not in the micro-batch go through the student with it, so its rows are not all segments."""
        return False

    def obstacles(
        self, alignment: Alignment, encoded: Sequence[Encoded], student: nn.Module, teacher: object
    ) -> list[str]:
        """Why it cannot stand in this training; empty where it can.

        Args:
            alignment: of the training.
            encoded: the rows that are trained on.
            student: the model that is trained.
            teacher: its teacher, or None.
        """
        return []

    def prompted(self, encoded: list[Encoded]) -> list[Encoded]:
        """The rows as the student reads them."""
        return encoded

    def layers(self, side: int) -> tuple[int, ...]:
        """Hidden layers of the teacher (0) or the student (1), beside the last one, that it looks at."""
        return ()

    def group(self, optimizer: torch.optim.Optimizer) -> None:
        """Give what is trained beside LoRA its own learning rate."""

    def setup(self, total_steps: int) -> None:
        """Learn the length of training, before any state is loaded."""

    def begin(self, batches: Sequence[Mapping[str, Tensor]], counts: Tensor) -> None:
        """Take in the step: its micro-batches where it ``looks_ahead``, and the trained tokens (K,) of each domain."""

    def forward(self, batch: Mapping[str, Tensor], positions: Tensor) -> tuple[StudentOutput, Tensor | float]:
        """The student at its trained positions, and what the loss is raised by that belongs to no domain."""
        return self.trainer.student(batch, positions), 0.0

    def __call__(
        self,
        student: StudentOutput,
        tokens: TrainedTokens,
        positions: Tensor,
        batch: Mapping[str, Tensor],
        teacher: TeacherOutput | None,
    ) -> Tensor:
        """What the summed token losses of each domain are raised by in this micro-batch, (K,) with gradient.

        After the division by n_k, the trained tokens of domain k in the step, it is a part of the loss of the domain.

        Args:
            student: at the N trained positions.
            tokens: these.
            positions: (N,) flat positions in input_ids (R, T) that predict them.
            batch: the micro-batch.
            teacher: at the same positions.
        """
        return torch.zeros(len(self.trainer.domains), dtype=torch.float64, device=positions.device)

    def step(self) -> dict[str, float]:
        """The last backward of a step is done: move parameters of its own; returns what it measured."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """All that an exact resume needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state back."""

    def save(self, folder: Path) -> None:
        """Write what belongs to a saved student beside its adapter."""


def alignment_obstacles(alignment: Alignment, method: str) -> list[str]:
    """Why no term that looks at several rows at once can stand beside this alignment; empty where it can."""
    if alignment.needs_recompute:
        return [
            f"the alignment of {method} takes the gradient of one domain alone at parameters that it has moved, where "
            "a term would not see the rest of the step; leave the term out, or take another alignment"
        ]
    if alignment.needs_halves:
        return ["alignment.debias compares the token losses of two halves of a domain: set it to false beside a term"]
    return []
