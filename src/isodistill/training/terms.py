"""A term beside the losses of a training: whether it can be had, and what each domain's loss is raised by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor

from isodistill.alignment import Alignment
from isodistill.data.encode import Encoded
from isodistill.models.lora import segment_obstacles
from isodistill.objectives import StudentOutput, TrainedTokens
from isodistill.terms import IsomerConsistency, SetMembers
from isodistill.training.config import DistillConfig

__all__ = ["StepTerm", "alignment_obstacles", "term_obstacles"]


class StepTerm:
    """The term over the micro-batches and processes of an optimizer step.

    Args:
        term: None adds nothing.
        n_domains: K.
        world_size: processes.
    """

    def __init__(self, term: IsomerConsistency | None, n_domains: int, world_size: int) -> None:
        self.term = None if term is None or term.is_neutral else term
        self.n_domains = n_domains
        self.world_size = world_size

    def begin(self, batches: Sequence[Mapping[str, Tensor]], counts: Tensor) -> None:
        """Take in the step: its micro-batches, and the trained tokens (K,) of each domain."""
        if self.term is None:
            return
        members = torch.zeros(self.n_domains, dtype=torch.float64)
        for batch in batches:
            sets = batch["set_index"].cpu()
            compared = torch.bincount(sets)[sets] > 1
            members += torch.bincount(batch["domain_index"].cpu()[compared], minlength=self.n_domains)
        members = members.to(counts.device)
        if self.world_size > 1:
            dist.all_reduce(members)
        self._share = counts / members.clamp(min=1)

    def __call__(
        self, student: StudentOutput, tokens: TrainedTokens, positions: Tensor, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """What the summed token losses of each domain are raised by in this micro-batch, (K,) with gradient.

        It is n_k / N_k times the sum of the members' parts, n_k the trained tokens and N_k the members of domain k in
        the step: after the division by n_k the loss of the domain is raised by the mean of its members' parts. The
        weight of a row is on its part as it is on its token losses.

        Args:
            student: at the N trained positions.
            tokens: these.
            positions: (N,) flat positions in input_ids (R, T) that predict them.
            batch: the micro-batch.
        """
        if self.term is None:
            return torch.zeros(self.n_domains, dtype=torch.float64, device=positions.device)
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
        summed = parts.new_zeros(self.n_domains).index_add_(0, batch["domain_index"], parts)
        return summed * self._share.to(summed)

    def take_metrics(self) -> dict[str, float]:
        """What the term measured since the last call."""
        return {} if self.term is None else self.term.take_metrics()


def term_obstacles(
    term: IsomerConsistency | None,
    alignment: Alignment,
    args: DistillConfig,
    rows: Sequence[Encoded],
    model: PeftModel,
) -> list[str]:
    """Why this term cannot stand beside this alignment, with these rows and arguments; empty where it can."""
    if term is None or term.is_neutral:
        return []
    missing = alignment_obstacles(alignment, args.method)
    alone = sum(row.set_id is None for row in rows)
    if alone:
        missing.append(
            f"isomer_consistency compares the members of a set, and {alone} of {len(rows)} training rows have no "
            "set_id; give every row the set it belongs to, or leave the term out"
        )
    elif not _has_a_set(rows):
        missing.append("isomer_consistency compares the members of a set, and no set has rows of two domains")
    elif term.answers > 0 and not any(row.answer_at for row in rows):
        missing.append(
            "isomer_consistency compares the student where a completion tells the answer, and no completion has its "
            "row's `answer` word for word; set term.answers to 0 to compare the states alone"
        )
    if args.split_ranks_by == "domains" and args.world_size > 1:
        missing.append("the members of a set must be in one process: set split_ranks_by to sets")
    by_domain = args.gradients == "domain_major" or segment_obstacles(model)
    if alignment.needs_domain_gradients and by_domain:
        missing.append(
            "the members of a set must be in one forward, and gradients are taken domain by domain; the term needs "
            "gradients: segment, and plain LoRA linears without dropout"
        )
    if term.control == "shuffled" and args.sets_per_batch < 2:
        missing.append("term.control shuffled mixes the sets of a micro-batch: set sets_per_batch to 2 or more")
    return missing


def alignment_obstacles(alignment: Alignment, method: str) -> list[str]:
    """Why the term cannot stand beside this alignment; empty where it can."""
    if alignment.needs_recompute:
        return [
            f"the alignment of {method} takes the gradient of one domain alone at parameters that it has moved, where "
            "the other members of the sets are not seen; leave the term out, or take another alignment"
        ]
    if alignment.needs_halves:
        return ["alignment.debias compares the token losses of two halves of a domain: set it to false beside a term"]
    return []


def _has_a_set(rows: Sequence[Encoded]) -> bool:
    """Some set has rows of two domains."""
    pairs = sorted({(str(row.set_id), row.domain) for row in rows})
    return any(len(list(members)) > 1 for _, members in groupby(pairs, key=lambda pair: pair[0]))
