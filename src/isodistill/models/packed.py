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
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["PackedAttention", "PackedRows"]

_KEPT_WIDTH = 256
"""Up to this width P is kept for the backward (2 H width bytes a token in bf16); beyond it, it is made again."""
_SCORES = 1 << 22
"""Most scores at a time, so that they stay in the processor's cache."""
_STEP = 16
"""Widths are multiples of this: few distinct shapes, which a CPU's products are compiled for one by one."""


class PackedRows:
    """Where the tokens of a padded micro-batch are, and the slots that attention sees.

    Args:
        mask: (rows, width), 1 on tokens; padding may be on either side.

    Attributes:
        tokens: (T,) flat position in the padded micro-batch of every token.
        places: (rows * width,) the way back: the number of the token at a flat position.
        offsets: (T,) position of every token in its row.
        groups: (first slot, rows, width) of the rows that attention treats together.
    """

    def __init__(self, mask: Tensor, n_heads: int) -> None:
        flat = mask.flatten()
        self.tokens = flat.nonzero().squeeze(1)
        self.places = flat.cumsum(0) - 1
        self.offsets = (mask.cumsum(1) - 1).flatten()[self.tokens]
        lengths = mask.sum(1)
        self._ends = [0, *lengths.cumsum(0).tolist()]
        widths = [-(-length // _STEP) * _STEP for length in lengths.tolist()]
        first = [0] * len(widths)
        self.groups: list[tuple[int, int, int]] = []
        self.n_slots = 0
        for width, rows in groupby(sorted(range(len(widths)), key=widths.__getitem__), widths.__getitem__):
            most = max(1, _SCORES // (n_heads * width**2))
            members = list(rows)
            for some in (members[i : i + most] for i in range(0, len(members), most)):
                self.groups.append((self.n_slots, len(some), width))
                for row in some:
                    first[row] = self.n_slots
                    self.n_slots += width
        self._slots = torch.tensor(first, device=mask.device)[self.tokens // mask.shape[1]] + self.offsets

    def bounds(self, rows: Sequence[int]) -> list[int]:
        """First tokens of the given rows; the number of rows stands for the end."""
        return [self._ends[row] for row in rows]

    def pad(self, x: Tensor) -> Tensor:
        """(n_slots, m) of x (T, m): rows of one group side by side, with zeros on the right of shorter ones."""
        return x.new_zeros(self.n_slots, x.shape[1]).index_copy_(0, self._slots, x)

    def unpad(self, x: Tensor) -> Tensor:
        """(T, m) of x (n_slots, m)."""
        return x[self._slots]


@dataclass(frozen=True)
class _Kept:
    """Of one group: q (n * n_kv, group * width, size), k and v (n * n_kv, width, size), P or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    P: Tensor | None


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
        self._biases: dict[int, Tensor] = {}

    def prepare(self, rows: PackedRows) -> None:
        """Tables for a micro-batch: cos and sin of every token, the causal mask of every width."""
        cos, sin = self._rotary(torch.empty(0, device=rows.offsets.device), rows.offsets[None])
        self._cos, self._sin = cos[0, :, None], sin[0, :, None, : self.size // 2]
        self._biases = {width: self._bias(width, cos.device) for _, _, width in rows.groups}

    def forward(self, qkv: Tensor, rows: PackedRows) -> tuple[Tensor, list[_Kept]]:
        """Outputs (T, n_heads * size) of query, key and value side by side (T, (n_heads + 2 n_kv) * size).

        Overwrites ``qkv``.
        """
        self._rotate_(qkv, self._sin)
        slots, kept = rows.pad(qkv), []
        attended = slots.new_empty(rows.n_slots, self.n_heads * self.size)
        for group in rows.groups:
            q, k, v = (self._by_group(x) for x in self._heads(slots, group))
            P = self._weights(q, k)
            self._heads(attended, group)[0].copy_(self._by_token(torch.bmm(P, v), group))
            kept.append(_Kept(q, k, v, P if group[2] <= _KEPT_WIDTH else None))
        return rows.unpad(attended), kept

    def backward(self, dout: Tensor, rows: PackedRows, kept: list[_Kept]) -> Tensor:
        """Gradient of ``qkv`` from that of the outputs."""
        douts = rows.pad(dout)
        slots = douts.new_empty(rows.n_slots, (self.n_heads + 2 * self.n_kv) * self.size)
        for group, (q, k, v, known) in zip(rows.groups, ((x.q, x.k, x.v, x.P) for x in kept), strict=True):
            do = self._by_group(self._heads(douts, group)[0])
            P = self._weights(q, k) if known is None else known
            dP = torch.bmm(do, v.transpose(1, 2))
            dS = torch._softmax_backward_data(dP, P, -1, self.dtype).mul_(self.scale)
            found = (torch.bmm(dS, k), torch.bmm(dS.transpose(1, 2), q), torch.bmm(P.transpose(1, 2), do))
            for place, gradient in zip(self._heads(slots, group), found, strict=True):
                place.copy_(self._by_token(gradient, group))
        dqkv = rows.unpad(slots)
        self._rotate_(dqkv, -self._sin)
        return dqkv

    def _bias(self, width: int, device: torch.device) -> Tensor:
        known = self._biases.get(width)
        if known is not None:
            return known
        future = torch.ones(width, width, dtype=torch.bool, device=device).triu(1)
        bias = torch.zeros(width, width, dtype=self.dtype, device=device).masked_fill_(future, -math.inf)
        return bias.repeat(self.n_heads // self.n_kv, 1)[None]

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = torch.baddbmm(self._biases[k.shape[1]], q, k.transpose(1, 2), alpha=self.scale)
        return torch.softmax(scores, dim=-1)

    def _rotate_(self, qkv: Tensor, sin: Tensor) -> None:
        """Rotary positions of the queries and keys, in place; with -sin the gradient's way back."""
        half = self.size // 2
        heads = qkv.view(len(qkv), -1, self.size)[:, : self.n_heads + self.n_kv]
        x = heads.float()
        y = x * self._cos
        y[..., :half].addcmul_(x[..., half:], sin, value=-1)
        y[..., half:].addcmul_(x[..., :half], sin)
        heads.copy_(y)

    def _heads(self, slots: Tensor, group: tuple[int, int, int]) -> tuple[Tensor, ...]:
        """Views (n, width, heads, size) of a group's queries, and of its keys and values where ``slots`` holds them."""
        start, n, width = group
        heads = slots[start : start + n * width].view(n, width, -1, self.size)
        sizes = [self.n_heads, self.n_kv, self.n_kv] if heads.shape[2] > self.n_heads else [self.n_heads]
        return cast("tuple[Tensor, ...]", heads.split(sizes, dim=2))

    def _by_group(self, x: Tensor) -> Tensor:
        """(n, width, heads, size) to (n * n_kv, heads / n_kv * width, size)."""
        n, width, heads, size = x.shape
        return x.transpose(1, 2).reshape(n * self.n_kv, heads // self.n_kv * width, size)

    def _by_token(self, x: Tensor, group: tuple[int, int, int]) -> Tensor:
        """The inverse of ``_by_group``, as a view."""
        _, n, width = group
        return x.view(n, -1, width, self.size).transpose(1, 2)
