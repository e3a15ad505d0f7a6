"""Orthogonal subspaces for the adapters of a stream of tasks: O-LoRA (arXiv 2310.14152)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from isodistill.guards.base import Guard
from isodistill.models.lora import lora_layers, segment_obstacles

__all__ = ["OLoRA"]


@dataclass
class OLoRA(Guard):
    """Each stage has an adapter of its own that reads another subspace of the inputs than the earlier ones.

        l1 sum |A_old A'| + l2 (|A| + |B|)        A_old (r_old, n): the A of all earlier stages below each other

    The earlier adapters are frozen: they lie in the weights below the new one while it is trained, and beside it in the
    student that is saved, whose rank so grows by r with every stage.

    Args:
        l1: default 0.5 (the authors', 5 for some long orders). 0 with l2 0 is a stack of plain adapters.
        l2: on the 2-norms of the new factors; default 0.

    Raises:
        ValueError: an option is negative or not finite.
    """

    fresh_adapter: ClassVar[bool] = True
    adds_direction: ClassVar[bool] = True

    l1: float = 0.5
    l2: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.l1 < math.inf and 0 <= self.l2 < math.inf):
            raise ValueError(f"l1 is {self.l1} and l2 {self.l2}; both must be 0 or more, and finite")

    def obstacles(self, model: nn.Module) -> list[str]:
        """Only plain LoRA factors can be stacked."""
        found = segment_obstacles(model)
        return ["o_lora stacks plain LoRA adapters: " + "; ".join(found[:5])] if found else []

    def begin(self, model: nn.Module, past: Mapping[str, Tensor] | None, seed: int) -> None:
        """The A of the earlier stages by layer."""
        super().begin(model, past, seed)
        self.layers = {layer.name: layer for layer in lora_layers(model)}
        self.A_old = {name: (past or {})[f"A/{name}"].to(x.A.device) for name, x in self.layers.items() if past}

    @torch.no_grad()
    def after_backward(self) -> dict[str, float]:
        """Add d/dA = l1 sign(A A_old') A_old + l2 A / |A|, and for B the second part alone."""
        overlaps = []
        for name, A_old in self.A_old.items():
            A, B = self.layers[name].A, self.layers[name].B
            S = A @ A_old.T  # (r, r_old)
            overlaps.append(S.abs().sum())
            for p, pull in ((A, self.l1 * S.sign() @ A_old), (B, torch.zeros_like(B))):
                norm = torch.linalg.vector_norm(p)
                if p.grad is not None:
                    p.grad.add_(pull + self.l2 * p / norm.clamp(min=torch.finfo(p.dtype).tiny))
        return {"guard/overlap": float(torch.stack(overlaps).double().sum())} if overlaps else {}

    def carried(self) -> dict[str, Tensor]:
        """All A so far, the newest last."""
        now = {name: layer.A.detach() for name, layer in self.layers.items()}
        return {f"A/{n}": torch.cat([self.A_old[n], A]) if n in self.A_old else A.clone() for n, A in now.items()}
