"""LoRA linear layers whose backward keeps the gradients of K domains apart, at the cost of one backward.

Rows of a micro-batch are sorted by domain, so the tokens of a domain are one contiguous segment and the K gradients

    dL_k/dA = s (D_k B)' X_k          X_k (T_k, n) inputs, D_k (T_k, m) output gradients of domain k
    dL_k/dB = s D_k' (X_k A')

cost together what the one summed gradient costs: the tokens are partitioned, not repeated (ours; see arXiv 2606.05025
for the method that needs them). The frozen weight is cast to the compute dtype once, not at every forward, unless it
is sharded. With ``dense=True`` the backward also keeps G_k = D_k' X_k, the gradient of the effective weight
W = W0 + s B A. Products are in the compute dtype, sums over micro-batches in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

__all__ = [
    "DomainAdapter",
    "DomainGradients",
    "LoraLayer",
    "domain_adapters",
    "lora_layers",
    "lora_variants",
    "segment_obstacles",
    "segmented_lora",
]

Frozen = Callable[[], tuple[Tensor, Tensor | None]]
"""W0 (m, n) and its bias (m,) or None, in the compute dtype."""


@dataclass(frozen=True)
class LoraLayer:
    """One adapted linear layer: W = W0 + scale * B @ A, with A (r, n) and B (m, r)."""

    name: str
    A: nn.Parameter
    B: nn.Parameter
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the effective weight."""
        return self.B.shape[0], self.A.shape[1]


def _nothing_to_recompute(domain: int) -> Tensor:
    raise ValueError(f"gradients of domain {domain} were asked for again by an alignment without needs_recompute")


@dataclass
class DomainGradients:
    """fp32 gradients of every trainable tensor, one row per domain, accumulated over the micro-batches of a step.

    Attributes:
        flat: (K, P), all trainable entries of a domain side by side.
        views: name -> (K, *shape), windows into ``flat``.
        dense: layer name -> (K, m, n), gradients of the effective weights; empty unless asked for.
        losses: (K,) mean token loss L_k of every domain in the step, fp64, whose gradient row k is.
        recompute: k -> dL_k (P,) at the parameters as they stand now, over the whole step and all processes; overwrites
            the buffers. Set where an alignment needs it.
        row_bounds: rows of the current micro-batch where each domain begins and ends, (K + 1,) ascending.
        n_tokens: rows times padded length of the current micro-batch.
        half_tokens: (K, 2), trained tokens of the two halves of every domain in the step, where the buffers have two
            rows per domain; None where they have one.
    """

    parameters: dict[str, nn.Parameter]
    flat: Tensor
    views: dict[str, Tensor]
    dense: dict[str, Tensor] = field(default_factory=dict)
    losses: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    recompute: Callable[[int], Tensor] = field(default=_nothing_to_recompute)
    row_bounds: list[int] = field(default_factory=list)
    n_tokens: int = 0
    half_tokens: Tensor | None = None

    @classmethod
    def allocate(cls, model: nn.Module, n_domains: int, *, dense: bool = False) -> DomainGradients:
        """Zeroed buffers for all trainable parameters of ``model``; 4 K P bytes, plus 4 K m n per layer if dense."""
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        size = sum(p.numel() for p in parameters.values())
        device = next(iter(parameters.values())).device
        flat = torch.zeros(n_domains, size, device=device)
        views, start = {}, 0
        for name, p in parameters.items():
            views[name] = flat[:, start : start + p.numel()].view(n_domains, *p.shape)
            start += p.numel()
        layers = lora_layers(model) if dense else []
        buffers = {layer.name: torch.zeros(n_domains, *layer.shape, device=device) for layer in layers}
        losses = torch.zeros(n_domains, dtype=torch.float64, device=device)
        return cls(parameters, flat, views, buffers, losses)

    def zero(self) -> None:
        """Forget the step's gradients."""
        self.flat.zero_()
        self.losses.zero_()
        for buffer in self.dense.values():
            buffer.zero_()

    def fold(self, domain: int) -> None:
        """Add every ``.grad`` to the row of a domain and clear it; fp32 whatever the dtype of the parameter."""
        for name, p in self.parameters.items():
            if p.grad is not None:
                self.views[name][domain].add_(p.grad)
                p.grad = None


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """The adapted linear layers of a peft model with one active adapter, in module order."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, PeftLinear):
            adapter = module.active_adapters[0]
            A = cast(nn.Parameter, module.lora_A[adapter].weight)
            B = cast(nn.Parameter, module.lora_B[adapter].weight)
            found.append(LoraLayer(name, A, B, float(module.scaling[adapter])))
    return found


def lora_variants(model: nn.Module) -> list[str]:
    """Adapted layers whose weight is not W0 + s B A: DoRA and other variants."""
    variants = [(name, m) for name, m in model.named_modules() if isinstance(m, PeftLinear) and m.lora_variant]
    return [f"{name} is {type(next(iter(m.lora_variant.values()))).__name__}" for name, m in variants]


def segment_obstacles(model: nn.Module) -> list[str]:
    """Why per-domain gradients cannot be had in one backward; empty when they can.

    Obstacles: trainable tensors outside plain LoRA linears, LoRA dropout or variants (DoRA, ...), several adapters.
    """
    obstacles, covered = [], set()
    for name, module in model.named_modules():
        if not isinstance(module, PeftLinear):
            continue
        adapter = module.active_adapters[0]
        if len(module.active_adapters) > 1:
            obstacles.append(f"{name} has several active adapters")
        if not isinstance(module.lora_dropout[adapter], nn.Identity):
            obstacles.append(f"{name} has LoRA dropout")
        if module.lora_variant or type(module.base_layer) is not nn.Linear or module.fan_in_fan_out:
            obstacles.append(f"{name} is not plain LoRA on torch.nn.Linear")
        if module.lora_A[adapter].bias is not None or module.lora_B[adapter].bias is not None:
            obstacles.append(f"{name} has a LoRA bias")
        covered |= {id(module.lora_A[adapter].weight), id(module.lora_B[adapter].weight)}
    obstacles += [
        f"{n} is trained but is not a LoRA factor"
        for n, p in model.named_parameters()
        if p.requires_grad and id(p) not in covered
    ]
    return obstacles


class _SegmentedLinear(torch.autograd.Function):
    """y = x W0' + b + s (x A') B'; the factors' gradients go to the domain buffers, not to ``.grad``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, frozen: Frozen, layer: DomainAdapter) -> Tensor:
        W0, bias = frozen()
        x = x.to(W0.dtype)
        A, B = layer.A.detach().to(W0.dtype), (layer.scale * layer.B.detach()).to(W0.dtype)
        h = F.linear(x, A)
        y = F.linear(x, W0, bias)
        y.view(-1, y.shape[-1]).addmm_(h.view(-1, h.shape[-1]), B.T)
        ctx.save_for_backward(x, h, A, B)
        ctx.frozen, ctx.layer = frozen, layer
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, A, B = ctx.saved_tensors
        layer: DomainAdapter = ctx.layer
        D = dy.reshape(-1, dy.shape[-1])
        dh = D @ B
        dx = None
        if ctx.needs_input_grad[0]:
            dx = D @ ctx.frozen()[0]
            dx.addmm_(dh, A)
            dx = dx.view(x.shape)
        layer.accumulate(x.view(-1, x.shape[-1]), h.view(-1, h.shape[-1]), dh, D)
        return dx, None, None, None


@dataclass
class DomainAdapter:
    """The factors of one adapted layer, and the buffers of their gradients by domain."""

    A: Tensor
    B: Tensor
    scale: float
    grad_A: Tensor  # (K, r, n)
    grad_B: Tensor  # (K, m, r)
    grad_W: Tensor | None  # (K, m, n)
    gradients: DomainGradients

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]

    def add(self, domains: slice | list[int], grad_A: Tensor, grad_B: Tensor) -> None:
        """Add dL/dA (K', r, n) and (1/s) dL/dB (K', m, r) to the buffers of the domains."""
        if isinstance(domains, slice):
            self.grad_A.add_(grad_A)
            self.grad_B.add_(grad_B, alpha=self.scale)
        else:
            self.grad_A[domains] += grad_A
            self.grad_B[domains] += self.scale * grad_B

    def accumulate(self, x: Tensor, h: Tensor, dh: Tensor, D: Tensor) -> None:
        n_tokens = self.gradients.n_tokens
        if len(D) != n_tokens:
            raise ValueError(
                f"a LoRA layer of shape {self.shape} saw {len(D)} of the {n_tokens} tokens of the micro-batch, so they "
                "cannot be told apart by domain; set gradients: domain_major"
            )
        tokens_per_row = n_tokens // self.gradients.row_bounds[-1]
        bounds = [row * tokens_per_row for row in self.gradients.row_bounds]
        for k, (start, stop) in enumerate(pairwise(bounds)):
            if start == stop:
                continue
            self.grad_A[k].add_(dh[start:stop].T @ x[start:stop])
            self.grad_B[k].add_(D[start:stop].T @ h[start:stop], alpha=self.scale)
            if self.grad_W is not None:
                self.grad_W[k].add_(D[start:stop].T @ x[start:stop])


def domain_adapters(model: nn.Module, gradients: DomainGradients) -> dict[int, DomainAdapter]:
    """id of a peft linear of ``model`` -> its adapter with its windows into ``gradients``."""
    names = {id(p): name for name, p in gradients.parameters.items()}
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, PeftLinear):
            adapter = module.active_adapters[0]
            A, B = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            found[id(module)] = DomainAdapter(
                A,
                B,
                float(module.scaling[adapter]),
                gradients.views[names[id(A)]],
                gradients.views[names[id(B)]],
                gradients.dense.get(name),
                gradients,
            )
    return found


@contextmanager
def segmented_lora(model: nn.Module, gradients: DomainGradients, dtype: torch.dtype) -> Iterator[None]:
    """While open, every LoRA linear of ``model`` computes in ``dtype`` and sends its gradients to ``gradients``.

    The caller sets ``row_bounds`` and ``n_tokens`` of ``gradients`` before each forward. Layers go back to peft's own
    forward at the end.

    Raises:
        ValueError: the model has something that segments cannot serve (see ``segment_obstacles``).
    """
    obstacles = segment_obstacles(model)
    if obstacles:
        raise ValueError("per-domain gradients in one backward are not possible: " + "; ".join(obstacles))
    adapters = domain_adapters(model, gradients)
    patched: list[PeftLinear] = []
    try:
        for module in model.modules():
            if isinstance(module, PeftLinear):
                _patch(module, adapters[id(module)], dtype)
                patched.append(module)
        yield
    finally:
        for module in patched:
            del module.forward


def _patch(module: PeftLinear, layer: DomainAdapter, dtype: torch.dtype) -> None:
    frozen = _frozen_of(module.base_layer, dtype)
    # Autograd calls the backward only where some input needs a gradient; the first layer's input needs none, A does.
    peft_forward = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if module.disable_adapters or not torch.is_grad_enabled():
            return cast(Tensor, peft_forward(x, *args, **kwargs))
        return cast(Tensor, _SegmentedLinear.apply(x, layer.A, frozen, layer))  # type: ignore[no-untyped-call]

    module.forward = forward


def _frozen_of(base: nn.Linear, dtype: torch.dtype) -> Frozen:
    """W0 and its bias in ``dtype``: cast once, or, of a sharded layer, whenever it has been gathered."""

    def read() -> tuple[Tensor, Tensor | None]:
        return base.weight.detach().to(dtype), None if base.bias is None else base.bias.detach().to(dtype)

    if isinstance(base.weight, DTensor):
        return read
    kept = read()
    return lambda: kept


def row_bounds(domain_index: Sequence[int], n_domains: int) -> list[int]:
    """Where each domain's rows begin and end, for rows sorted by domain: (K + 1,) ascending."""
    counts = [0] * n_domains
    for k in domain_index:
        counts[k] += 1
    bounds = [0]
    for count in counts:
        bounds.append(bounds[-1] + count)
    return bounds


def half_bounds(bounds: Sequence[int], turn: int) -> list[int]:
    """``row_bounds`` with every domain cut into two halves, (2 K + 1,); odd turns give the first half the odd row."""
    halved = [bounds[0]]
    for start, stop in pairwise(bounds):
        halved += [(start + stop + turn % 2) // 2, stop]
    return halved
