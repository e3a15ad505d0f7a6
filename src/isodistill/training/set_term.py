"""Isomer consistency inside training: whole sets in every micro-batch, and each member's part in its domain's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isodistill.alignment import Alignment
from isodistill.data.encode import Encoded
from isodistill.models.lora import segment_obstacles
from isodistill.objectives import StudentOutput, TeacherOutput, TrainedTokens
from isodistill.terms import IsomerConsistency, SetMembers
from isodistill.training.config import DistillConfig
from isodistill.training.step_term import StepTerm, alignment_obstacles

__all__ = ["SetTerm"]


class SetTerm(StepTerm):
    """The term over the micro-batches and processes of an optimizer step.

    Args:
        trainer: the ``DistillTrainer``.
        args: of the training.
        term: not the neutral one.
    """

    def __init__(self, trainer: Any, args: DistillConfig, term: IsomerConsistency) -> None:
        super().__init__(trainer, args)
        self.term = term

    @property
    def looks_ahead(self) -> bool:
        """The members of the step are counted."""
        return True

    def obstacles(
        self, alignment: Alignment, encoded: Sequence[Encoded], student: nn.Module, teacher: object
    ) -> list[str]:
        """See ``StepTerm``."""
        args = self.args
        missing = alignment_obstacles(alignment, args.method)
        alone = sum(row.set_id is None for row in encoded)
        if alone:
            missing.append(
                f"isomer_consistency compares the members of a set, and {alone} of {len(encoded)} training rows have "
                "no set_id; give every row the set it belongs to, or leave the term out"
            )
        elif not _has_a_set(encoded):
            missing.append("isomer_consistency compares the members of a set, and no set has rows of two domains")
        elif self.term.answers > 0 and not any(row.answer_at for row in encoded):
            missing.append(
                "isomer_consistency compares the student where a completion tells the answer, and no completion has "
                "its row's `answer` word for word; set term.answers to 0 to compare the states alone"
            )
        if args.split_ranks_by == "domains" and args.world_size > 1:
            missing.append("the members of a set must be in one process: set split_ranks_by to sets")
        by_domain = args.gradients == "domain_major" or segment_obstacles(student)
        if alignment.needs_domain_gradients and by_domain:
            missing.append(
                "the members of a set must be in one forward, and gradients are taken domain by domain; the term needs "
                "gradients: segment, and plain LoRA linears without dropout"
            )
        if self.term.control == "shuffled" and args.sets_per_batch < 2:
            missing.append("term.control shuffled mixes the sets of a micro-batch: set sets_per_batch to 2 or more")
        return missing

    def begin(self, batches: Sequence[Mapping[str, Tensor]], counts: Tensor) -> None:
        """Count the members of the step that have something to be compared with."""
        n_domains = len(self.trainer.domains)
        members = torch.zeros(n_domains, dtype=torch.float64)
        for batch in batches:
            sets = batch["set_index"].cpu()
            compared = torch.bincount(sets)[sets] > 1
            members += torch.bincount(batch["domain_index"].cpu()[compared], minlength=n_domains)
        members = members.to(counts.device)
        if self.args.world_size > 1:
            dist.all_reduce(members)
        self._share = counts / members.clamp(min=1)

    def __call__(
        self,
        student: StudentOutput,
        tokens: TrainedTokens,
        positions: Tensor,
        batch: Mapping[str, Tensor],
        teacher: TeacherOutput | None,
    ) -> Tensor:
        """n_k / N_k times the sum of the members' parts, N_k the members of domain k in the step: see ``StepTerm``.

        So the loss of the domain is raised by the mean of its members' parts. The weight of a row is on its part as it
        is on its token losses.
        """
        R, T = batch["input_ids"].shape
        # What predicts the first trained token of a row stands on the last of its prompt.
        first = torch.searchsorted(tokens.rows, torch.arange(R, device=tokens.rows.device))
        start, stop = batch["answer_at"][tokens.rows].T
        at = positions - tokens.rows * T + 1
        chosen = (at >= start) & (at < stop) & (self.term.answers > 0)
        seen = SetMembers(
            states=student.hidden[first],
            sets=batch["set_index"],
            domains=batch["domain_index"],
            logits=student.head(student.hidden[chosen]),
            answers=tokens.targets[chosen],
            rows=tokens.rows[chosen],
        )
        parts = self.term.parts(seen) * batch["weights"]
        summed = parts.new_zeros(len(self.trainer.domains)).index_add_(0, batch["domain_index"], parts)
        return summed * self._share.to(summed)

    def step(self) -> dict[str, float]:
        """See ``StepTerm``."""
        return self.term.take_metrics()


def _has_a_set(rows: Sequence[Encoded]) -> bool:
    """Some set has rows of two domains."""
    pairs = sorted({(str(row.set_id), row.domain) for row in rows})
    return any(len(list(members)) > 1 for _, members in groupby(pairs, key=lambda pair: pair[0]))
