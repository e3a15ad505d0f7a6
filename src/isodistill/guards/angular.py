"""Angular drift (arXiv 2112.09175) as a guard of a LoRA student, which cannot grow nodes without surgery."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from isodistill.alignment import Alignment, InvariantGradientAlignment
from isodistill.guards.base import Guard, StageEnd
from isodistill.guards.drift import NODES, Drift, NodeGroup, Nodes, Piece, node_groups
from isodistill.guards.ranks import from_first

__all__ = ["Angular"]

Mode = Literal["monitor", "freeze", "bands"]
Metric = Literal["angular", "cosine", "l2"]


@dataclass
class Angular(Guard):
    """Nodes that turned too far since the last stage stop.

        theta = 2 atan2(|u - v|, |u + v|),  u and v the node's weights of the last stage and of now, at norm 1

        monitor   measures alone; no weight changes
        freeze    a node with theta > threshold takes ``damp`` times its steps for the rest of the stage
        bands     freeze, and at the end a node with theta < lower gets its old weights back

    What a growing network would duplicate is frozen where it crossed the threshold: a transformer cannot grow a node.
    Row i of W0 + s B A moves through B_i: and through A, which all rows share: with ``freeze_shared`` the A of a layer
    stops with its first frozen row (in ``bands`` it is held from the begin of the stage, so that old weights can come
    back bit for bit); without it a frozen row still moves with A. Of an MLP's down projection nodes are columns, and A
    and B change places. Steps, not gradients, are damped: Adam undoes a constant factor on a gradient.

    The paper measures the angle; levels, thresholds and the LoRA form are ours. Nodes are decided by the first process
    and told to the others.

    Args:
        mode: see above; default ``monitor``.
        nodes: ``rows`` of linear layers, MLP hidden ``units``, or rank ``components`` (``monitor`` alone: they depend
            on the gauge of B A).
        metric: ``angular`` (radians), ``cosine`` (1 - cos theta), or ``l2`` (norm of the change).
        threshold: default 0.1 pi; search 0.02, 0.05, 0.1, 0.2 pi. pi is fine-tuning.
        lower: of ``bands``; default 0.02 pi.
        norm_guard: freeze also where |log(norm now / norm then)| is above this; None: rescaling is no drift.
        damp: share of a frozen node's steps that is still taken; default 0.
        freeze_shared: see above; default True.
        every: steps between two measurements; default 10.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    mode: Mode = "monitor"
    nodes: Nodes = "rows"
    metric: Metric = "angular"
    threshold: float = 0.1 * math.pi
    lower: float = 0.02 * math.pi
    norm_guard: float | None = None
    damp: float = 0.0
    freeze_shared: bool = True
    every: int = 10

    def __post_init__(self) -> None:
        for name, allowed in (("mode", get_args(Mode)), ("nodes", NODES), ("metric", get_args(Metric))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        most = {"angular": math.pi, "cosine": 2.0, "l2": math.inf}[self.metric]
        if not 0 <= self.threshold <= most or math.isinf(self.threshold):
            raise ValueError(
                f"threshold is {self.threshold}; drifts of metric {self.metric} lie in 0 to {most:g}, finite"
            )
        if self.mode == "bands" and not 0 <= self.lower <= self.threshold:
            raise ValueError(f"lower is {self.lower}; it must lie between 0 and threshold ({self.threshold})")
        if self.norm_guard is not None and not 0 < self.norm_guard < math.inf:
            raise ValueError(f"norm_guard is {self.norm_guard}; it must be above 0 and finite, or null for none")
        if not 0 <= self.damp <= 1:
            raise ValueError(f"damp is {self.damp}; it is a share, 0 to 1")
        if self.every < 1:
            raise ValueError(f"every is {self.every}; it counts steps and must be at least 1")
        if self.mode != "monitor" and self.nodes == "components":
            raise ValueError(
                "nodes components can be monitored only: B R^-1 and R A are the same student and have other "
                "components, so decisions by them would not be about the student"
            )
        if self.mode == "bands" and not (self.freeze_shared and self.damp == 0):
            raise ValueError("mode bands gives old weights back bit for bit, so it needs freeze_shared and damp 0")

    def clashes(self, alignment: Alignment) -> list[str]:
        """The alignment must not make its step from both factors together."""
        if self.mode == "monitor" or not isinstance(alignment, InvariantGradientAlignment):
            return []
        if alignment.space == "factor":
            return []
        return [
            f"angular {self.mode} holds one factor of a layer and lets the other go, but IGA in space "
            f"{alignment.space} shares its step out between both; use space factor, or another guard"
        ]

    def obstacles(self, model: nn.Module) -> list[str]:
        """Nodes of the kind must exist."""
        if node_groups(model, self.nodes):
            return []
        return [f"angular found no {self.nodes}: adapt the linear layers (of units gate, up and down) with LoRA"]

    def begin(self, model: nn.Module, past: Mapping[str, Tensor] | None, seed: int) -> None:
        """Nothing is frozen yet."""
        super().begin(model, past, seed)
        self.groups = node_groups(model, self.nodes)
        self.active = self.mode != "monitor" and not self.first
        self._then = {id(p): self.reference[name] for name, p in self.parameters.items()}
        self.frozen = {group.name: self._none(group) for group in self.groups}
        self._halted = set[str]()
        self._before: dict[int, Tensor] = {}
        self._step, self._seen = 0, dict[str, float]()

    def _none(self, group: NodeGroup) -> Tensor:
        return torch.zeros(group.n_nodes, dtype=torch.bool, device=group.pieces[0].own.device)

    def _holds_shared(self, group: NodeGroup) -> bool:
        return self.freeze_shared and (self.mode == "bands" or group.name in self._halted)

    def _note_halted(self) -> None:
        """The groups with a frozen node, asked for once per measurement: a GPU is waited for at every question."""
        some = torch.stack([self.frozen[group.name].any() for group in self.groups]).tolist()
        self._halted = {group.name for group, any_frozen in zip(self.groups, some, strict=True) if any_frozen}

    @torch.no_grad()
    def after_backward(self) -> dict[str, float]:
        """Remember what may not move."""
        if self.active:
            self._before = {}
            for group in self.groups:
                held = [piece.shared for piece in group.pieces] if self._holds_shared(group) else []
                if group.name in self._halted:
                    held += [piece.own for piece in group.pieces]
                self._before |= {id(p): p.detach().clone() for p in held}
        return {}

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        """Take back, or damp, the step of what is frozen; measure again where it is time."""
        self._step += 1
        if self.active:
            for group in self.groups:
                for piece in group.pieces:
                    self._hold(group, piece)
        if self._step % self.every == 0:
            self._measure()
        return self._seen

    def _hold(self, group: NodeGroup, piece: Piece) -> None:
        shared, own = (self._before.get(id(p)) for p in (piece.shared, piece.own))
        if shared is not None:
            piece.shared.copy_(shared)
        if own is not None:
            frozen = self.frozen[group.name][:, None]
            now, then = piece.by_node(piece.own), piece.by_node(own)
            # Not then + 0 (now - then): that would turn a -0.0 into 0.0.
            kept = then if self.damp == 0 else torch.lerp(then, now, self.damp)
            now.copy_(torch.where(frozen, kept, now))

    def _measure(self) -> None:
        largest, n_frozen, n = [], [], 0
        for group in self.groups:
            drift = group.drift(self._then)
            if self.active:
                too_far = self._values(drift) > self.threshold
                if self.norm_guard is not None:
                    too_far |= drift.log_ratio.abs() > self.norm_guard
                self.frozen[group.name] |= from_first(too_far)
            largest.append(drift.theta.max())
            n_frozen.append(self.frozen[group.name].sum())
            n += len(drift.theta)
        self._note_halted()
        frozen = int(torch.stack(n_frozen).sum())
        self._seen = {"guard/theta_max": float(torch.stack(largest).max()) / math.pi, "guard/frozen": frozen / n}

    def _values(self, drift: Drift) -> Tensor:
        if self.metric == "l2":
            return drift.moved
        return drift.theta if self.metric == "angular" else 2 * torch.sin(drift.theta / 2) ** 2

    @torch.no_grad()
    def end(self, stage: StageEnd) -> dict[str, Any]:
        """In ``bands``, give small drifts their old weights back; returns the shares of the nodes per group."""
        decided = {}
        for group in self.groups:
            frozen, restored = self.frozen[group.name], self._none(group)
            if self.active and self.mode == "bands":
                restored = from_first(self._values(group.drift(self._then)) < self.lower) & ~frozen
                for piece in group.pieces:
                    now, then = (piece.by_node(x) for x in (piece.own, self._then[id(piece.own)]))
                    now.copy_(torch.where(restored[:, None], then, now))
            n = len(frozen)
            shares = {"frozen": int(frozen.sum()) / n, "restored": int(restored.sum()) / n}
            decided[group.name] = shares | {"updated": 1 - sum(shares.values()), "nodes": n}
        return {"nodes": decided}

    def state_dict(self) -> dict[str, Tensor]:
        """Who is frozen, the step, and what was last logged."""
        seen = {f"seen/{name}": torch.tensor(value, dtype=torch.float64) for name, value in self._seen.items()}
        return {"step": torch.tensor(self._step), **seen} | {f"frozen/{n}": mask for n, mask in self.frozen.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state back."""
        self._step = int(state["step"])
        self._seen = {key[5:]: float(value) for key, value in state.items() if key.startswith("seen/")}
        self.frozen = {name: state[f"frozen/{name}"].to(mask.device) for name, mask in self.frozen.items()}
        self._note_halted()
