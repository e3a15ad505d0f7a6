"""The nodes of a LoRA student, and how far each one turned since a reference.

rows         output row i of W = W0 + s B A: moves through B_i: alone and through A, which all rows share
units        hidden unit i of an MLP: row i of gate and up, column i of down, side by side
components   rank component j, [B_:j ; A_j:] with both halves of one norm; gauge dependent, to look at only
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from isodistill.models.lora import LoraLayer, lora_layers
from isodistill.numerics.angles import angle_of_products, component_angles, lora_products

__all__ = ["NODES", "Drift", "NodeGroup", "Nodes", "Piece", "drift_summary", "node_groups"]

Nodes = Literal["rows", "units", "components"]
NODES: tuple[Nodes, ...] = get_args(Nodes)

_MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Drift:
    """What happened to U nodes: theta (U,) in radians, norm of the change, log of the norm ratio, and who was zero."""

    theta: Tensor
    moved: Tensor
    log_ratio: Tensor
    degenerate: Tensor


@dataclass(frozen=True)
class Piece:
    """A layer's part in its nodes: its rows, or its columns."""

    layer: LoraLayer
    W0: Tensor
    columns: bool

    @property
    def own(self) -> nn.Parameter:
        """The factor with one row (B) or one column (A) for each node."""
        return self.layer.A if self.columns else self.layer.B

    @property
    def shared(self) -> nn.Parameter:
        """The factor through which all nodes move together."""
        return self.layer.B if self.columns else self.layer.A

    def by_node(self, own: Tensor) -> Tensor:
        """A view of ``own`` (or of a copy) with the nodes first."""
        return own.T if self.columns else own

    def products(self, reference: Mapping[int, Tensor]) -> Tensor:
        """aa, ad, dd (3, U) of the nodes from their reference to now."""
        now = (self.layer.A.detach(), self.layer.B.detach())
        old = (reference[id(self.layer.A)], reference[id(self.layer.B)])
        if not self.columns:
            return lora_products(self.W0, old, now, self.layer.scale)
        (A0, B0), (A1, B1) = old, now
        return lora_products(self.W0.T, (B0.T, A0.T), (B1.T, A1.T), self.layer.scale)


@dataclass(frozen=True)
class NodeGroup:
    """Nodes that are compared with each other: the rows of one layer, or the units of one MLP."""

    name: str
    pieces: list[Piece]
    components: bool = False

    @property
    def n_nodes(self) -> int:
        """U."""
        piece = self.pieces[0]
        return len(piece.layer.A) if self.components else len(piece.by_node(piece.own))

    def drift(self, reference: Mapping[int, Tensor]) -> Drift:
        """How far each node turned; ``reference`` maps the id of a factor to its value then."""
        if self.components:
            layer = self.pieces[0].layer
            old = (reference[id(layer.A)], reference[id(layer.B)])
            theta, degenerate = component_angles(old, (layer.A.detach(), layer.B.detach()))
            nothing = torch.full_like(theta, math.nan)
            return Drift(theta, nothing, nothing, degenerate)
        products = torch.stack([piece.products(reference) for piece in self.pieces]).sum(0)
        theta, degenerate = angle_of_products(products)
        aa, ad, dd = products
        tiny = torch.finfo(aa.dtype).tiny
        ratio = ((aa + 2 * ad + dd).clamp(min=tiny) / aa.clamp(min=tiny)).log() / 2
        return Drift(theta, dd.sqrt(), ratio, degenerate)


def node_groups(model: nn.Module, nodes: Nodes) -> list[NodeGroup]:
    """The groups of a peft model, in module order; empty where it has none of the kind."""
    layers = {layer.name: layer for layer in lora_layers(model)}

    def piece(name: str, *, columns: bool = False) -> Piece:
        base: Any = model.get_submodule(name)
        return Piece(layers[name], base.base_layer.weight.detach(), columns)

    if nodes != "units":
        return [NodeGroup(name, [piece(name)], nodes == "components") for name in layers]
    blocks = dict.fromkeys(name.rpartition(".")[0] for name in layers if name.endswith(_MLP))
    return [
        NodeGroup(block, [piece(f"{block}.{part}", columns=part == "down_proj") for part in _MLP])
        for block in blocks
        if all(f"{block}.{part}" in layers for part in _MLP)
    ]


def drift_summary(groups: list[NodeGroup], reference: Mapping[int, Tensor]) -> dict[str, dict[str, float]]:
    """Layer -> mean, median, 0.9 quantile and largest theta / pi, number of zero vectors, and mean log norm ratio.

    Components have no norm ratio: their halves are balanced.
    """
    found: dict[str, dict[str, float]] = {}
    for group in groups:
        drift = group.drift(reference)
        share = drift.theta.double() / math.pi
        found[group.name] = {
            "mean": float(share.mean()),
            "median": float(share.median()),
            "q90": float(share.quantile(0.9)),
            "max": float(share.max()),
            "degenerate": int(drift.degenerate.sum()),
        }
        if not group.components:
            found[group.name]["log_ratio"] = float(drift.log_ratio.mean())
    return found
