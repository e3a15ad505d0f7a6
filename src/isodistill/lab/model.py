"""A transformer of a quarter million parameters whose backward keeps the gradients of K domains apart.

Pre-norm (RMS without gain), learned positions, no biases, a head for the tokens of a trace. Weights come as
(G, *shape), one copy for each of G groups of rows, so that their gradients are the K gradients of the domains (G = K),
or the plain one (G = 1), from one backward. The copies are views of one tensor, never written out. With LoRA the copies
are of W = W0 + s B A, and the gradients of the factors follow from those of W: dA = s B' dW, dB = s dW A'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill.models.lora import LoraLayer

__all__ = ["LabModel", "grouped"]

_HEADS = 4
_LORA_SCALE = 2.0
_OUTSIDE_BLOCKS = ("tokens", "positions", "head")


class LabModel(nn.Module):
    """Causal transformer over fixed-length sequences.

    Args:
        vocabulary: number of tokens.
        outputs: the first tokens, which a trace may hold.
        length: longest sequence.
        width: d, a multiple of the 4 heads.
        layers: blocks.
        generator: of the initial weights: N(0, 1/n_in) for matrices, N(0, 0.1^2) for embeddings,
            N(0, 0.02^2) for what is added to the residual stream.

    Attributes:
        lora: name of a matrix -> its factors; empty before ``adapt``.
    """

    def __init__(
        self, vocabulary: int, outputs: int, length: int, width: int, layers: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.layers = layers
        self.lora: dict[str, LoraLayer] = {}
        shapes = {"tokens": (vocabulary, width), "positions": (length, width), "head": (outputs, width)}
        for i in range(layers):
            shapes |= {f"query_{i}": (width, width), f"key_value_{i}": (2 * width, width), f"out_{i}": (width, width)}
            shapes |= {f"up_{i}": (4 * width, width), f"down_{i}": (width, 4 * width)}
        for name, shape in shapes.items():
            embedding = name in _OUTSIDE_BLOCKS[:2]
            std = 0.1 if embedding else 0.02 if name.startswith(("out", "down")) else shape[1] ** -0.5
            self.register_parameter(name, nn.Parameter(std * torch.randn(shape, generator=generator)))

    def adapt(self, rank: int, generator: torch.Generator) -> None:
        """Freeze all weights and give every matrix of the blocks factors A (r, n) and B = 0 (m, r), to be trained."""
        self.requires_grad_(False)
        for name, W in [*self.named_parameters()]:
            if name in _OUTSIDE_BLOCKS:
                continue
            m, n = W.shape
            A = nn.Parameter(n**-0.5 * torch.randn(rank, n, generator=generator))
            B = nn.Parameter(torch.zeros(m, rank))
            self.register_parameter(f"{name}_A", A)
            self.register_parameter(f"{name}_B", B)
            self.lora[name] = LoraLayer(name, A, B, _LORA_SCALE)

    def weights(self) -> dict[str, Tensor]:
        """Name -> W, or W0 + s B A where there are factors; without a graph."""
        factors = {id(factor) for layer in self.lora.values() for factor in (layer.A, layer.B)}
        found = {name: p.detach() for name, p in self.named_parameters() if id(p) not in factors}
        for name, layer in self.lora.items():
            found[name] = found[name] + layer.scale * layer.B.detach() @ layer.A.detach()
        return found

    def of_trained(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients (G, *shape) of ``weights()`` -> those of what is trained, in the order of the parameters."""
        found = dict(gradients)
        for name, layer in self.lora.items():
            dW = found.pop(name)
            found[f"{name}_A"] = layer.scale * layer.B.detach().T @ dW
            found[f"{name}_B"] = layer.scale * dW @ layer.A.detach().T
        return {name: found[name] for name, p in self.named_parameters() if p.requires_grad}

    def forward(self, weights: Mapping[str, Tensor], tokens: Tensor, last: int) -> tuple[Tensor, Tensor]:
        """Logits and final states of the last positions.

        Args:
            weights: name -> (G, *shape), see `grouped`.
            tokens: (G, R, T).
            last: positions asked for; the last block computes no other.

        Returns:
            logits (G, R, last, outputs) and states after the final norm (G, R, last, d).
        """
        groups, _, length = tokens.shape
        vocabulary = weights["tokens"].shape[1]
        offset = vocabulary * torch.arange(groups)[:, None, None]
        x = F.embedding(tokens + offset, weights["tokens"].reshape(groups * vocabulary, -1))
        x = x + weights["positions"][:, None, :length]
        for i in range(self.layers):
            n = last if i == self.layers - 1 else length
            normed = _norm(x)
            q = _linear(normed[:, :, length - n :], weights[f"query_{i}"])
            k, v = _linear(normed, weights[f"key_value_{i}"]).chunk(2, dim=-1)
            x = x[:, :, length - n :] + _linear(_attention(q, k, v), weights[f"out_{i}"])
            x = x + _linear(F.gelu(_linear(_norm(x), weights[f"up_{i}"]), approximate="tanh"), weights[f"down_{i}"])
        states = _norm(x)
        return _linear(states, weights["head"]), states


def grouped(model: LabModel, groups: int) -> dict[str, Tensor]:
    """The weights of a model as (groups, *shape), views of one tensor; leaves with a gradient for each group, but for
    those that LoRA leaves frozen."""
    copies = {name: W.expand(groups, *W.shape) for name, W in model.weights().items()}
    return {name: W.requires_grad_(not model.lora or name in model.lora) for name, W in copies.items()}


class _GroupedLinear(torch.autograd.Function):
    """y = x W' with one W for all groups in the forward; the backward gives dW of each group, D_g' X_g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(x, W)
        return F.linear(x, W[0])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, W = ctx.saved_tensors
        X, D = x.flatten(1, -2), dy.flatten(1, -2)
        return dy @ W[0], torch.bmm(D.mT, X)


def _linear(x: Tensor, W: Tensor) -> Tensor:
    y: Tensor = _GroupedLinear.apply(x, W)  # type: ignore[no-untyped-call]
    return y


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, the n queries being the last of T positions: (G, R, n, d), (G, R, T, d) twice -> (G, R, n, d)."""
    groups, _, n, _ = q.shape
    length = k.shape[-2]
    q, k, v = (z.flatten(0, 1).unflatten(-1, (_HEADS, -1)).transpose(1, 2) for z in (q, k, v))
    seen = torch.ones(n, length, dtype=torch.bool).tril(length - n)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    heads: Tensor = mixed.transpose(1, 2).flatten(2).unflatten(0, (groups, -1))
    return heads
