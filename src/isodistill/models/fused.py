"""LoRA linears that read the same input, as one product, with the gradients of K domains kept apart.

    y = x W' + b + [s_i (x A_i') B_i']_i      W: the frozen weights below each other, i: the adapted ones among them

and a backward that is written out: see ``isodistill.models.lora`` for the K gradients. The weight of a norm in front,
x = w * x_hat, is multiplied into W and A once instead of into the tokens of every layer: W diag(w) x_hat = W x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from isodistill.models.frozen import FrozenLinear
from isodistill.models.lora import DomainAdapter

__all__ = ["FusedLinears", "Low"]


@dataclass(frozen=True)
class Low:
    """What a forward leaves for its backward: h = x A' (T, R), A (R, n), and s_i B_i (m_i, r_i) of each adapter."""

    h: Tensor
    A: Tensor
    B: list[Tensor]


@dataclass(frozen=True)
class _Part:
    """An adapter's place: its columns of the output and of h."""

    adapter: DomainAdapter
    out: slice
    low: slice


class FusedLinears:
    """See the module.

    Args:
        modules: the linears, adapted by peft or not, in the order of their outputs.
        adapters: id of a peft module -> its adapter with the domain buffers.
        dtype: of the products.
        norm: weight (n,) of the norm in front; None for none.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        adapters: dict[int, DomainAdapter],
        dtype: torch.dtype,
        norm: Tensor | None = None,
    ) -> None:
        linears = [cast(nn.Linear, m.base_layer if isinstance(m, PeftLinear) else m) for m in modules]
        weights = [m.weight.detach() for m in linears]
        W = torch.cat(weights) if norm is None else torch.cat(weights) * norm.detach()
        biases: list[Tensor] = [
            w.new_zeros(len(w)) if m.bias is None else m.bias for m, w in zip(linears, weights, strict=True)
        ]
        self.frozen = FrozenLinear(W, None if all(m.bias is None for m in linears) else torch.cat(biases), dtype)
        self.norm = None if norm is None else norm.detach().float()
        self.dtype = dtype
        self.parts: list[_Part] = []
        start = low = 0
        for module, weight in zip(modules, weights, strict=True):
            stop = start + len(weight)
            if id(module) in adapters:
                adapter = adapters[id(module)]
                self.parts.append(_Part(adapter, slice(start, stop), slice(low, low + len(adapter.A))))
                low += len(adapter.A)
            start = stop

    def forward(self, x: Tensor) -> tuple[Tensor, Low | None]:
        """y (T, m) of x (T, n), and what ``backward`` needs."""
        y = self.frozen.forward(x)
        if not self.parts:
            return y, None
        A = torch.cat([part.adapter.A.detach() for part in self.parts])
        A = (A if self.norm is None else A * self.norm).to(self.dtype)
        B = [(part.adapter.scale * part.adapter.B.detach()).to(self.dtype) for part in self.parts]
        h = x @ A.T
        for part, B_i in zip(self.parts, B, strict=True):
            y[:, part.out].addmm_(h[:, part.low], B_i.T)
        return y, Low(h, A, B)

    def backward(self, x: Tensor, low: Low | None, D: Tensor, bounds: Sequence[int], *, dx: bool = True) -> Tensor:
        """dL/dx (T, n) of D = dL/dy (T, m), empty unless ``dx``; adds the gradients of each domain to its buffers.

        Args:
            x: (T, n), as in the forward.
            low: what the forward returned.
            D: (T, m).
            bounds: (K + 1,) tokens where each domain begins and ends.
            dx: False where nothing before this layer is trained.
        """
        result = self.frozen.backward(D) if dx else D.new_empty(0)
        if low is None:
            return result
        dh = torch.empty_like(low.h)
        for part, B_i in zip(self.parts, low.B, strict=True):
            torch.mm(D[:, part.out], B_i, out=dh[:, part.low])
        if dx:
            result.addmm_(dh, low.A)
        domains = [(k, slice(*pair)) for k, pair in enumerate(pairwise(bounds)) if pair[0] < pair[1]]
        grad_A = _products([(dh[tokens], x[tokens]) for _, tokens in domains])
        if self.norm is not None:
            grad_A = grad_A * self.norm
        rows = slice(None) if len(domains) == len(bounds) - 1 else [k for k, _ in domains]
        for part in self.parts:
            grad_B = _products([(D[tokens, part.out], low.h[tokens, part.low]) for _, tokens in domains])
            part.adapter.add(rows, grad_A[:, part.low], grad_B)
            if part.adapter.grad_W is not None:
                for k, tokens in domains:
                    grad_W = D[tokens, part.out].T @ x[tokens]
                    part.adapter.grad_W[k] += grad_W if self.norm is None else grad_W * self.norm
        return result


def _products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """x'y of every pair (T_k, m), (T_k, n), as (K, m, n)."""
    x, y = pairs[0]
    out = x.new_empty(len(pairs), x.shape[1], y.shape[1])
    for (x, y), product in zip(pairs, out, strict=True):
        torch.mm(x.T, y, out=product)
    return out
