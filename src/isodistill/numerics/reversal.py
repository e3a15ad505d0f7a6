"""Gradient reversal (arXiv 1409.7495): the identity whose backward changes the sign."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["reverse_gradient"]


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return -upstream


def reverse_gradient(x: Tensor) -> Tensor:
    """R(x) = x with dR/dx = -1, so that one loss is minimised behind it and maximised before it."""
    return cast(Tensor, _Reversal.apply(x))  # type: ignore[no-untyped-call]
