"""What the tiers of IGA share that mask in the space of W = W0 + s B A: from a layer's mask back to A and B.

    D = (1 - M) * x is taken out of what ERM would do, x being its gradient or the optimizer's step, in W:
    apply_to gradient, pullback   A.grad -= s B'D;  B.grad -= s D A'          (the chain rule)
    apply_to gradient, lora_pro   (A.grad, B.grad) = closest factor directions to P_T(x - D)
    apply_to gradient, retract    pullback, then (A, B) = factors of SVD_r(s B A + P_T(step of W))
    apply_to update               cA = (1/s) (B'B)^-1 B'D_A;  cB = (1/s) D_B A' (AA')^-1;  dA -= cA;  dB -= cB
                                  D_A = (1 - M) * s B dA;  D_B = (1 - M) * s dB A

Removing D instead of setting M * x leaves ERM bit for bit where M = 1. A step of W is masked by halves (ours): each
factor answers for what it did itself, so norm(cA) is at most the condition number of B times norm(dA). P_T(D) of the
whole would be nearer in W, but brings part of what leaves dB A back through (B'B)^-1, which throws A away while B is
small, as it is when LoRA begins.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, but not in its __all__
from torch.nn import Parameter

from isodistill.alignment.iga_factor import remove_by_entry, tensor_masks
from isodistill.alignment.masking import DomainStep, MaskOptions, RememberedStep, Removed, Space, named
from isodistill.models.lora import LoraLayer
from isodistill.numerics import (
    DenseMask,
    Halves,
    MaskStats,
    Removal,
    SeparableMask,
    SubspaceState,
    TangentBasis,
    Thin,
    TileMask,
    lora_pro,
    map_on_cores,
    retract,
    sylvester_gauge,
    tangent_gradient,
    truncated_svd,
)

__all__ = ["LayerMask", "LayerSpace"]

LayerMask: TypeAlias = DenseMask | TileMask | SeparableMask


class LayerSpace(Space):
    """One mask (m, n) per LoRA layer; other trainable tensors are masked in their own space, entry by entry."""

    def __init__(self, options: MaskOptions, layers: list[LoraLayer], generator: torch.Generator) -> None:
        self.options = options
        self.layers = layers
        self.generator = generator
        self.bases: dict[str, TangentBasis] = {}
        self.masks: dict[str, LayerMask] = {}
        self.by_entry: dict[Parameter, Tensor] = {}
        self.subspaces: dict[str, SubspaceState] = {}

    def observe(self, step: DomainStep, tau: float) -> dict[str, float]:
        """Factorise every layer's Grams, then make the masks; a layer that fails is masked in tier F for this step."""
        self.bases, failed = {}, 0
        for layer in self.layers:
            try:
                self.bases[layer.name] = TangentBasis(layer.A, layer.B)
            except LinAlgError:
                failed += 1
        averaged, metrics = self.make_masks(step, tau, [layer for layer in self.layers if layer.name in self.bases])
        factors = {p for layer in self.layers if layer.name in self.bases for p in (layer.A, layer.B)}
        others = [p for p in step.parameters if p not in factors]
        self.by_entry = tensor_masks(others, step, averaged, tau, self.options)
        return metrics | {"tier_fallbacks": float(failed)}

    @abstractmethod
    def make_masks(self, step: DomainStep, tau: float, layers: list[LoraLayer]) -> tuple[Tensor, dict[str, float]]:
        """Set ``self.masks`` for the layers whose basis exists; returns averaged flat gradients and metrics."""

    @abstractmethod
    def gradient(self, layer: LoraLayer, step: DomainStep) -> Thin | Tensor:
        """What is masked with apply_to gradient: the mean gradient of W, or its tangent part."""

    def removed_gradient(self, step: DomainStep) -> tuple[Removed, dict[str, float]]:
        """By the chain rule, or LoRA-Pro's closed form."""
        stats, kept, removed = MaskStats(), _Energy(), []
        masked = [layer for layer in self.layers if layer.name in self.masks and layer.B.grad is not None]
        means = [self.gradient(layer, step) for layer in masked]
        jobs = [self._job(layer, x, layer.A.float(), layer.B.float()) for layer, x in zip(masked, means, strict=True)]
        for job, x, removal in zip(jobs, means, _removals(jobs), strict=True):
            layer, mask, A, B = job.layer, job.mask, job.A, job.B
            assert layer.A.grad is not None
            assert layer.B.grad is not None
            s = layer.scale
            stats.add(removal.sums, removal.count)
            L_x, R_x = layer.A.grad.float() / s, layer.B.grad.float() / s
            kept.add(self.bases[layer.name].energy(L_x - removal.L, R_x - removal.R), removal.sums[3])
            L, R = removal.L, removal.R
            if self.options.svd_rank is not None:
                D = (x.dense()[0] if isinstance(x, Thin) else x) - self._truncated(layer, mask.masked(x))
                L, R = B.T @ D, D @ A.T
            if self.options.project_back == "lora_pro":
                L, R = L_x - L, R_x - R
                gA, gB = lora_pro(L, R, A, B, s, sylvester_gauge(L, A, B, s))
                removed += [(layer.A, layer.A.grad - gA), (layer.B, layer.B.grad - gB)]
            else:
                removed += [(layer.A, s * L), (layer.B, s * R)]
        gradients = {p: p.grad for p in step.parameters if p.grad is not None}
        removed += remove_by_entry(self.by_entry, gradients, self.options, self.generator, stats)
        return removed, named(stats) | kept.named()

    def removed_step(self, remembered: RememberedStep) -> tuple[Removed, dict[str, float]]:
        """What is masked of each factor's half of the step; with ``retract``, the way to the new factors."""
        if self.options.project_back == "retract":
            return self._retracted(remembered), {}
        stats, kept, deltas, removed, jobs = MaskStats(), _Energy(), remembered.deltas(), [], []
        for layer in self.layers:
            if layer.name not in self.masks or layer.A not in deltas or layer.B not in deltas:
                continue
            basis = self.bases[layer.name]
            A, B = basis.A.float(), basis.B.float()
            dA, dB = deltas[layer.A].float(), deltas[layer.B].float()
            x = Halves(Thin(B[None], layer.scale * dA[None]), Thin(dB[None], layer.scale * A[None]))
            jobs.append(self._job(layer, x, A, B))
        for job, removal in zip(jobs, _removals(jobs), strict=True):
            layer = job.layer
            basis, s = self.bases[layer.name], layer.scale
            stats.add(removal.sums, removal.count)
            cA, cB = (basis.inverse_B @ removal.L.double()) / s, (removal.R.double() @ basis.inverse_A) / s
            dA, dB = deltas[layer.A].double() - cA, deltas[layer.B].double() - cB
            step = Halves(Thin(job.B.double()[None], s * dA[None]), Thin(dB[None], s * job.A.double()[None]))
            kept.add(step.whole.energy()[0], removal.sums[3])
            removed += [(layer.A, cA), (layer.B, cB)]
        removed += remove_by_entry(self.by_entry, deltas, self.options, self.generator, stats)
        return removed, named(stats) | kept.named()

    def _retracted(self, remembered: RememberedStep) -> Removed:
        deltas, removed = remembered.deltas(), []
        for layer in self.layers:
            if layer.A not in deltas or layer.B not in deltas or layer.name not in self.bases:
                continue
            A0, B0 = self.bases[layer.name].A, self.bases[layer.name].B
            left, right = tangent_gradient(deltas[layer.A].double(), deltas[layer.B].double(), A0, B0, layer.scale)
            r = len(A0)
            right[:r] += layer.scale * A0
            A, B = retract(left, right, layer.scale, r)
            removed += [(layer.A, layer.A.detach() - A), (layer.B, layer.B.detach() - B)]
        return removed

    def _job(self, layer: LoraLayer, x: Thin | Halves | Tensor, A: Tensor, B: Tensor) -> _Job:
        A, B = A.detach(), B.detach()
        return _Job(layer, self._controlled(self.masks[layer.name], x, A, B), x, A, B)

    def _controlled(self, mask: LayerMask, x: Thin | Halves | Tensor, A: Tensor, B: Tensor) -> LayerMask:
        """The mask, or the control that shares its density and step ratio on ``x``."""
        if self.options.control == "none":
            return mask
        after, before = self._norms(mask, x, A, B)
        if self.options.control == "uniform":
            ones = SeparableMask(A.new_ones(mask.shape[0]), A.new_ones(mask.shape[1]))
            return ones.scaled(torch.where(before > 0, after / before, 1.0))
        order = [torch.randperm(size, generator=self.generator).to(A.device) for size in mask.shape]
        permuted = mask.permuted(*order)
        moved, _ = self._norms(permuted, x, A, B)
        return permuted.scaled(torch.where(moved > 0, after / moved, 1.0))

    @staticmethod
    def _norms(mask: LayerMask, x: Thin | Halves | Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        sums = mask.remove(x, A, B).sums
        return sums[3].sqrt(), sums[4].sqrt()

    def _truncated(self, layer: LoraLayer, G: Tensor) -> Tensor:
        """SVD_p(G), dense."""
        name, p = layer.name, self.options.svd_rank
        rank = len(layer.A) if p == "r" else int(p or 0)
        state = None if self.options.exact_svd else self.subspaces.get(name, SubspaceState())
        U, S, Vh, state = truncated_svd(G, rank, state)
        if not self.options.exact_svd:
            self.subspaces[name] = state
        return (U * S) @ Vh

    def state_dict(self) -> dict[str, Tensor]:
        """The generator of the control and the warm subspaces."""
        state = {"generator": self.generator.get_state()}
        return state | {f"subspace/{name}": s.basis for name, s in self.subspaces.items() if s.basis is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self.generator.set_state(state["generator"])
        bases = {key.removeprefix("subspace/"): x for key, x in state.items() if key.startswith("subspace/")}
        self.subspaces = {name: SubspaceState(basis) for name, basis in bases.items()}


@dataclass(frozen=True)
class _Job:
    """A layer whose x is to be masked; see ``TiledMask.remove``."""

    layer: LoraLayer
    mask: LayerMask
    x: Thin | Halves | Tensor
    A: Tensor
    B: Tensor


def _removals(jobs: list[_Job]) -> list[Removal]:
    """What the masks take out, all layers at a time: they are independent, and their tiles small."""
    device = jobs[0].A.device if jobs else torch.device("cpu")
    return map_on_cores(lambda job: job.mask.remove(job.x, job.A, job.B), jobs, device)


class _Energy:
    """The share of the masked direction's energy that lies in the tangent space, over layers, read once."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def add(self, inside: Tensor, whole: Tensor) -> None:
        self._sums.append(torch.stack([inside.double(), whole.double()]))

    def named(self) -> dict[str, float]:
        if not self._sums:
            return {}
        inside, whole = torch.stack(self._sums).sum(0).tolist()
        return {"tangent_kept": min(1.0, max(0.0, inside / whole)) if whole else 1.0}
