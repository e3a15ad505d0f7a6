"""What the rows of a task must be, said before a network learns from them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_rows"]


def check_rows(x: Tensor, y: Tensor, n_classes: int, width: int, task: int) -> None:
    """Refuse rows that a task cannot be learned from.

    Raises:
        ValueError: what is wrong, in which task and row.
    """
    if not isinstance(n_classes, int) or n_classes < 1:
        raise ValueError(f"task {task}: n_classes is {n_classes}; it must be a whole number, 1 or more")
    if x.dim() != 2 or x.shape[1] != width:
        raise ValueError(f"task {task}: x has shape {tuple(x.shape)}; the network reads rows of {width}: (N, {width})")
    if not len(x):
        raise ValueError(f"task {task} has no rows to train on")
    if x.dtype != torch.float32:
        raise ValueError(f"task {task}: x is {x.dtype}; give torch.float32, as the weights are")
    if y.shape != (len(x),):
        raise ValueError(f"task {task}: y has shape {tuple(y.shape)}; give one class per row of x: ({len(x)},)")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"task {task}: y is {y.dtype}; classes are whole numbers, such as torch.int64")
    # F.cross_entropy would pass over the class -100 in silence.
    if len(wrong := ((y < 0) | (y >= n_classes)).nonzero()):
        row = int(wrong[0])
        raise ValueError(f"task {task}: row {row} of y has class {int(y[row])}; they go from 0 to {n_classes - 1}")
    if len(wrong := (~x.isfinite()).nonzero()):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"task {task}: row {row} of x holds {float(x[row, column])} in column {column}; it must be finite"
        )
