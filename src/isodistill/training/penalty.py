"""The first pass over an optimizer step, for alignments with a penalty on statistics of its sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from isodistill.alignment import Penalised, SeenTokens
from isodistill.objectives import StudentOutput
from isodistill.training.forward import Student, trained_tokens

__all__ = ["PenaltyPass"]


class PenaltyPass:
    """Makes the statistics of all micro-batches and processes, asks for their pulls, and hands these out in turn.

    Args:
        alignment: what they are for.
        n_domains: K.
        student: makes the hidden states.
        accelerator: gathers over processes.
    """

    def __init__(self, alignment: Penalised, n_domains: int, student: Student, accelerator: Accelerator) -> None:
        self.alignment = alignment
        self.n_domains = n_domains
        self.student = student
        self.accelerator = accelerator
        self._pulls: list[Tensor] = []

    def __call__(self, batch: Mapping[str, Tensor], positions: Tensor) -> tuple[StudentOutput, Tensor]:
        """The student at its trained positions, and sum_i c_i . s_i of the next micro-batch of the step.

        The gradient of the latter is the micro-batch's part of the gradient of the penalty.
        """
        student, s = self._forward(batch, positions)
        return student, (self._pulls.pop(0).to(s) * s).sum()

    def _forward(self, batch: Mapping[str, Tensor], positions: Tensor) -> tuple[StudentOutput, Tensor]:
        """One forward for both: the output at the trained positions, and the statistics (R, F)."""
        ids = batch["input_ids"]
        following = F.pad(ids[:, 1:], (0, 1)).flatten()
        n, looked_at = len(positions), slice(0, len(positions))
        if self.alignment.looks_at == "question":
            asked = (batch["attention_mask"].bool() & (batch["labels"] == -100)).flatten().nonzero().squeeze(1)
            positions, looked_at = torch.cat([positions, asked]), slice(n, None)
        out = self.student(batch, positions)
        chosen = positions[looked_at]
        rows, weight = chosen // ids.shape[1], self.student.projection.weight.detach()
        seen = SeenTokens(out.hidden[looked_at], following[chosen], rows, batch["weights"], out.head, weight)
        layers = {layer: states[:n] for layer, states in out.layers.items()}
        return StudentOutput(out.hidden[:n], out.head, layers), self.alignment.statistics(seen)

    def measure(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """The pull of every sequence of the step; the same forwards as in training, so the same numbers."""
        measured = []
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for index, batch in enumerate(batches):
            tokens, positions = trained_tokens(batch)
            s = self._forward(batch, positions)[1].detach().double()
            counts = torch.bincount(tokens.rows, minlength=len(s))
            # The place in the order of the sampler, which deals batches to the processes in turn.
            place = torch.full_like(counts, index * world + rank)
            measured.append(torch.cat([torch.stack([place, batch["domain_index"], counts], 1).double(), s], 1))
        table = torch.cat(measured)
        if world > 1:
            table = self.accelerator.gather(self.accelerator.pad_across_processes(table, dim=0, pad_index=-1))
            table = table[table[:, 0] >= 0]
        table = table.cpu()
        table = table[table[:, 0].argsort(stable=True)]
        place, domains, counts = table[:, :3].long().T
        c = self.alignment.pull(table[:, 3:], domains, counts, self.n_domains)
        self._pulls = [c[place == index * world + rank] for index in range(len(batches))]
