"""Rows of unequal length without their padding, and causal attention over them, forward and backward written out.

    S = q k' * scale;  P = softmax(S);  o = P v
    dv = P' do;  dS = P * (dP - sum(dP * P)) with dP = do v';  dq = scale dS k;  dk = scale dS' q

Tokens of all rows lie one row after the other, (T, ...); only attention sees them as rows of equal width. Padding is on
the right there, so the causal mask alone keeps it from being seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["PackedAttention", "PackedRows"]

_KEPT_WIDTH = 256
"""Up to this width P is kept for the backward (2 H width bytes a token in bf16); beyond it, it is made again."""
_SCORES = 1 << 22
"""Most scores at a time, so that they stay in the processor's cache."""


class PackedRows:
    """Where the tokens of a padded micro-batch are.

    Args:
        mask: (rows, width), 1 on tokens; padding may be on either side.

    Attributes:
        tokens: (T,) flat position in the padded micro-batch of every token.
        places: (rows * width,) the way back: the number of the token at a flat position.
        n_rows, width: rows, and tokens of the longest.
    """

    def __init__(self, mask: Tensor) -> None:
        flat = mask.flatten()
        self.tokens = flat.nonzero().squeeze(1)
        self.places = flat.cumsum(0) - 1
        lengths = mask.sum(1)
        self.n_rows, self.width = len(mask), int(lengths.max())
        self._ends = [0, *lengths.cumsum(0).tolist()]
        self._cells: Tensor | None = None
        if len(self.tokens) < self.n_rows * self.width:
            rows = self.tokens // mask.shape[1]
            self._cells = (mask.cumsum(1) - 1).flatten()[self.tokens] + rows * self.width

    def bounds(self, rows: Sequence[int]) -> list[int]:
        """First tokens of the given rows; the number of rows stands for the end."""
        return [self._ends[row] for row in rows]

    def pad(self, x: Tensor) -> Tensor:
        """(rows, width, m) of x (T, m), with zeros on the right of shorter rows."""
        if self._cells is not None:
            x = x.new_zeros(self.n_rows * self.width, x.shape[1]).index_copy_(0, self._cells, x)
        return x.view(self.n_rows, self.width, -1)

    def unpad(self, x: Tensor) -> Tensor:
        """(T, m) of x (rows, width, m)."""
        x = x.reshape(self.n_rows * self.width, -1)
        return x if self._cells is None else x[self._cells]


@dataclass(frozen=True)
class _Kept:
    q: Tensor  # (rows * n_kv, group * width, size)
    k: Tensor  # (rows * n_kv, width, size)
    v: Tensor
    P: list[Tensor | None]  # by slices of the rows: (n, group * width, width)


class PackedAttention:
    """Causal grouped-query attention with rotary positions; the queries of one key head lie below each other.

    Args:
        n_heads, n_kv, size: query heads, key heads, features of a head.
        rotary: transformers' module that gives cos and sin.
        dtype: of the products; rotations and softmax are computed in fp32.
    """

    def __init__(self, n_heads: int, n_kv: int, size: int, rotary: nn.Module, dtype: torch.dtype) -> None:
        self.n_heads, self.n_kv, self.size, self.dtype = n_heads, n_kv, size, dtype
        self.scale = size**-0.5
        self._rotary = rotary
        self._cos = self._sin = self._bias = torch.empty(0)

    def prepare(self, width: int, device: torch.device) -> None:
        """Tables for rows of this width."""
        if len(self._cos) == width:
            return
        cos, sin = self._rotary(torch.empty(0, device=device), torch.arange(width, device=device)[None])
        self._cos, self._sin = cos[0, :, None], sin[0, :, None, : self.size // 2]
        future = torch.ones(width, width, dtype=torch.bool, device=device).triu(1)
        bias = torch.zeros(width, width, dtype=self.dtype, device=device).masked_fill_(future, -math.inf)
        self._bias = bias.repeat(self.n_heads // self.n_kv, 1)[None]

    def forward(self, qkv: Tensor, rows: PackedRows) -> tuple[Tensor, _Kept]:
        """Outputs (T, n_heads * size) of query, key and value side by side (T, (n_heads + 2 n_kv) * size)."""
        x = rows.pad(qkv).unflatten(2, (-1, self.size))
        queries, keys, values = x.split([self.n_heads, self.n_kv, self.n_kv], dim=2)
        q = self._by_group(self._rotated(queries, self._sin))
        k = self._by_group(self._rotated(keys, self._sin))
        v = self._by_group(values)
        out, P = torch.empty_like(q), []
        for part in self._slices(rows):
            weights = self._weights(q[part], k[part])
            torch.bmm(weights, v[part], out=out[part])
            P.append(weights if rows.width <= _KEPT_WIDTH else None)
        return rows.unpad(self._by_token(out, rows)), _Kept(q, k, v, P)

    def backward(self, dout: Tensor, rows: PackedRows, kept: _Kept) -> Tensor:
        """Gradient of ``qkv`` from that of the outputs."""
        do = self._by_group(rows.pad(dout).unflatten(2, (-1, self.size)))
        dq, dk, dv = (torch.empty_like(x) for x in (kept.q, kept.k, kept.v))
        for part, known in zip(self._slices(rows), kept.P, strict=True):
            q, k, v = kept.q[part], kept.k[part], kept.v[part]
            P = self._weights(q, k) if known is None else known
            torch.bmm(P.transpose(1, 2), do[part], out=dv[part])
            dP = torch.bmm(do[part], v.transpose(1, 2))
            dS = torch._softmax_backward_data(dP, P, -1, self.dtype).mul_(self.scale)
            torch.bmm(dS, k, out=dq[part])
            torch.bmm(dS.transpose(1, 2), q, out=dk[part])
        heads = [
            self._rotated(self._by_token(dq, rows).unflatten(2, (-1, self.size)), -self._sin),
            self._rotated(self._by_token(dk, rows).unflatten(2, (-1, self.size)), -self._sin),
            self._by_token(dv, rows).unflatten(2, (-1, self.size)),
        ]
        return rows.unpad(torch.cat(heads, dim=2))

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = torch.baddbmm(self._bias, q, k.transpose(1, 2), alpha=self.scale)
        return torch.softmax(scores, dim=-1)

    def _rotated(self, x: Tensor, sin: Tensor) -> Tensor:
        """Rotary positions of x (rows, width, heads, size); with -sin the gradient's way back."""
        half = self.size // 2
        x = x.float()
        y = x * self._cos
        y[..., :half].addcmul_(x[..., half:], sin, value=-1)
        y[..., half:].addcmul_(x[..., :half], sin)
        return y.to(self.dtype)

    def _by_group(self, x: Tensor) -> Tensor:
        """(rows, width, heads, size) to (rows * n_kv, heads / n_kv * width, size)."""
        n_rows, width, heads, size = x.shape
        return x.transpose(1, 2).reshape(n_rows * self.n_kv, heads // self.n_kv * width, size)

    def _by_token(self, x: Tensor, rows: PackedRows) -> Tensor:
        """The inverse, heads side by side: (rows, width, heads * size)."""
        heads = x.view(rows.n_rows, -1, rows.width, self.size)
        return heads.transpose(1, 2).reshape(rows.n_rows, rows.width, -1)

    def _slices(self, rows: PackedRows) -> list[slice]:
        step = max(1, _SCORES // (self.n_heads * rows.width**2))
        return [
            slice(start * self.n_kv, min(start + step, rows.n_rows) * self.n_kv)
            for start in range(0, rows.n_rows, step)
        ]
