"""Decisions that are made once and told to every process, and sums over all of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["from_first", "summed"]


def from_first(decided: Tensor) -> Tensor:
    """The decision (bool) of the first process; its own with one process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return decided
    told = decided.to(torch.uint8)
    dist.broadcast(told, src=0)
    return told.bool()


def summed(x: Tensor) -> Tensor:
    """The sum over all processes, in place; x with one process."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x
