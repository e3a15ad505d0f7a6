"""What ranks tell each other: sums of what each one measured, and the checksum after every reduction."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainingArguments

from isodistill.errors import UserError

__all__ = ["agreed", "over_processes"]


def over_processes(values: Tensor, args: TrainingArguments) -> Tensor:
    """The sum of a tensor over all processes; with one process the tensor itself."""
    if args.world_size > 1:
        values = values.to(args.device)
        dist.all_reduce(values)
    return values


def agreed(metrics: dict[str, float], args: TrainingArguments, step: int) -> dict[str, float]:
    """What the alignment reported, after all ranks were found to report the same, bit for bit.

    Density, step ratio and cosine sum up the whole mask, so they serve as its checksum. One all-reduce of two numbers
    per metric; none with one process.

    Raises:
        UserError: they differ, so the ranks would train different students from here on.
    """
    if args.world_size > 1 and metrics:
        own = torch.tensor(list(metrics.values()), dtype=torch.float64, device=args.device)
        bounds = torch.cat([own, -own])
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
        apart = (bounds[: len(own)] != -bounds[len(own) :]).tolist()
        differing = [name for name, differs in zip(metrics, apart, strict=True) if differs]
        if differing:
            raise UserError(
                f"The processes made different masks in step {step} ({', '.join(differing)} differ). Use processors of "
                "one kind for all processes; the last checkpoint is intact."
            )
    return metrics
