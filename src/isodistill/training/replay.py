"""The batches of an optimizer step seen more than once: for penalties, and for gradients at moved parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from isodistill.alignment import Penalised
from isodistill.objectives import StudentOutput
from isodistill.training.penalty import PenaltyPass

__all__ = ["StepReplay"]


class StepReplay:
    """Keeps the micro-batches of the step for alignments that need them again.

    Args:
        trainer: the ``DistillTrainer``, with student and gradient buffers made.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.batches: list[Mapping[str, Tensor]] = []
        self.penalty: PenaltyPass | None = None
        if isinstance(trainer.alignment, Penalised):
            self.penalty = PenaltyPass(trainer.alignment, len(trainer.domains), trainer.student, trainer.accelerator)
        if trainer.alignment.needs_recompute:
            trainer.gradients.recompute = self.recompute

    def begin(self, batches: Sequence[Any], counts: Tensor) -> None:
        """Take in the step: its micro-batches, and the trained tokens (K,) of each domain."""
        self.trainer.guarding.begin_step()
        term = self.trainer.term
        if self.penalty is not None or self.trainer.alignment.needs_recompute or term.looks_ahead:
            self.batches = [self.trainer._prepare_inputs(batch) for batch in batches]
            self.counts = counts
        if self.penalty is not None:
            with self.trainer._autocast():
                self.penalty.measure(self.batches)
        term.begin(self.batches, counts)

    def forward(self, inputs: Mapping[str, Tensor], positions: Tensor) -> tuple[StudentOutput, Tensor | float]:
        """The student at the trained positions, and what the loss of the micro-batch is raised by."""
        return self.trainer.term.forward(inputs, positions) if self.penalty is None else self.penalty(inputs, positions)

    def recompute(self, domain: int) -> Tensor:
        """dL_k (P,) at the parameters as they stand now, over the whole step; any ``.grad`` is left alone."""
        trainer, gradients = self.trainer, self.trainer.gradients
        grads = {p: p.grad for p in gradients.parameters.values()}
        for p in grads:
            p.grad = None
        gradients.flat.zero_()
        with torch.enable_grad():
            for batch in self.batches:
                rows = batch["domain_index"] == domain
                if bool(rows.any()):
                    mine = {name: t[rows] for name, t in batch.items()}
                    trainer._accumulate(mine, trainer.alignment.domain_weights(self.counts))
        if trainer.args.world_size > 1:
            dist.all_reduce(gradients.flat)
        for p, grad in grads.items():
            p.grad = grad
        again: Tensor = gradients.flat[domain].clone()
        return again
