"""Gradient reversal (arXiv 1409.7495): the identity whose backward changes the sign."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["reverse_gradient"]


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * upstream, None


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    """R(x) = x with dR/dx = -scale, so that one loss is minimised behind it and maximised before it."""
    return cast(Tensor, _Reversal.apply(x, scale))  # type: ignore[no-untyped-call]
