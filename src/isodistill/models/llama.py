"""Training of Llama-like LoRA students, forward and backward written out for the whole stack of layers.

The same computation as transformers' decoder with peft's adapters (RMSNorm, rotary positions, grouped queries, SwiGLU),
with what a CPU needs: padding is left out of everything but attention, linears with one input are one product with
packed weights, one node of autograd instead of some thirty per layer, and cheap elementwise results are made again in
the backward instead of being kept. The residual stream is fp32, the products run in the compute dtype.

With x_hat = h / rms(h), c = mean(g * x_hat) over the features and g the gradient of x_hat:

    dh = (g - x_hat c) / rms(h)                          RMSNorm, its weight inside the products that follow
    dgate = (da * up) silu'(gate);  dup = da * silu(gate)  SwiGLU, a = silu(gate) * up
    dS = P * (dP - sum(dP * P))                          attention, P = softmax(S)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from isodistill.models.fused import FusedLinears, Low
from isodistill.models.llama_like import why_not_llama_like
from isodistill.models.lora import DomainAdapter, DomainGradients, domain_adapters
from isodistill.models.packed import PackedAttention, PackedRows

__all__ = ["FusedDecoder", "why_not_fused"]


def why_not_fused(model: PreTrainedModel) -> str | None:
    """Why ``FusedDecoder`` cannot train this model (without its peft wrapper); None when it can."""
    if model.device.type != "cpu":
        return f"the fused layers are made for CPUs, and the student is on {model.device}"
    if getattr(model.config, "attention_dropout", 0.0):
        return "it has attention dropout"
    return why_not_llama_like(model)


class FusedDecoder:
    """Token ids in, hidden states of chosen positions out; K gradients of every adapter into ``gradients``.

    Holds the frozen weights of all layers twice, packed for either direction, in the compute dtype.

    Args:
        model: a peft model without ``segment_obstacles`` whose base model has no ``why_not_fused``.
        gradients: buffers; the caller sets ``row_bounds`` before each forward.
        dtype: of the products.
        checkpoint: keep only the input of each layer and compute the rest again in the backward: a quarter of the
            memory for a third more time.
    """

    def __init__(
        self, model: PeftModel, gradients: DomainGradients, dtype: torch.dtype, *, checkpoint: bool = False
    ) -> None:
        causal = cast(PreTrainedModel, model.get_base_model())
        config, body = causal.config, causal.model
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.attention = PackedAttention(
            config.num_attention_heads, config.num_key_value_heads, size, body.rotary_emb, dtype
        )
        adapters = domain_adapters(model, gradients)
        self.gradients, self.checkpoint = gradients, checkpoint
        self.anchor = next(iter(gradients.parameters.values()))
        self.embedding, self.norm = body.embed_tokens.weight.detach(), body.norm.weight.detach().float()
        self.eps = config.rms_norm_eps
        self.layers = [_Layer(layer, adapters, self.attention, dtype, self.eps) for layer in body.layers]

    def __call__(self, batch: Mapping[str, Tensor], positions: Tensor) -> Tensor:
        """Hidden states (N, d), fp32, after the final norm, at flat positions of input_ids (rows, T)."""
        rows = PackedRows(batch["attention_mask"], self.attention.n_heads)
        self.attention.prepare(rows)
        h = F.embedding(batch["input_ids"].flatten()[rows.tokens], self.embedding).float()
        chosen = rows.places[positions]
        if torch.is_grad_enabled():
            hidden = cast(Tensor, _Stack.apply(self.anchor, h, self, rows, chosen))  # type: ignore[no-untyped-call]
        else:
            for layer in self.layers:
                h, _ = layer.forward(h, rows)
            hidden = h[chosen]
        return F.rms_norm(hidden, hidden.shape[-1:], self.norm, self.eps)


class _Stack(torch.autograd.Function):
    """All layers as one node; its gradients go to the domain buffers, not to ``.grad``."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, h: Tensor, decoder: FusedDecoder, rows: PackedRows, chosen: Tensor) -> Tensor:
        ctx.decoder, ctx.rows, ctx.chosen, ctx.shape = decoder, rows, chosen, h.shape
        ctx.kept = []
        for layer in decoder.layers:
            out, kept = layer.forward(h, rows)
            ctx.kept.append(h if decoder.checkpoint else kept)
            h = out
        return h[chosen]

    @staticmethod
    def backward(ctx: Any, dhidden: Tensor) -> tuple[Tensor | None, ...]:
        decoder: FusedDecoder = ctx.decoder
        dh = dhidden.new_zeros(ctx.shape).index_add_(0, ctx.chosen, dhidden)
        bounds = ctx.rows.bounds(decoder.gradients.row_bounds)
        for index in reversed(range(len(decoder.layers))):
            kept, layer = ctx.kept.pop(), decoder.layers[index]
            if decoder.checkpoint:
                _, kept = layer.forward(kept, ctx.rows)
            layer.backward(dh, ctx.rows, bounds, kept, dx=index > 0)
        return None, None, None, None, None


@dataclass(frozen=True)
class _Kept:
    """What a layer's backward needs; 13.8 KB a token in bf16 for SmolLM2-135M, and the weights of attention."""

    normed: Tensor  # x_hat (T, d) before attention
    rstd: Tensor  # (T, 1)
    low_qkv: Low | None
    attention: list[Any]
    attended: Tensor  # (T, n_heads * size)
    low_o: Low | None
    normed_mlp: Tensor
    rstd_mlp: Tensor
    low_gate_up: Low | None
    gate_up: Tensor  # (T, 2 d_ff)
    low_down: Low | None


class _Layer:
    """One decoder layer: h <- h + o(attention(norm(h))), h <- h + down(silu(gate) * up)."""

    def __init__(
        self,
        layer: nn.Module,
        adapters: dict[int, DomainAdapter],
        attention: PackedAttention,
        dtype: torch.dtype,
        eps: float,
    ) -> None:
        parts = cast(Any, layer)
        projections, mlp = parts.self_attn, parts.mlp
        self.qkv = FusedLinears(
            [projections.q_proj, projections.k_proj, projections.v_proj], adapters, dtype, parts.input_layernorm.weight
        )
        self.o = FusedLinears([projections.o_proj], adapters, dtype)
        self.gate_up = FusedLinears(
            [mlp.gate_proj, mlp.up_proj], adapters, dtype, parts.post_attention_layernorm.weight
        )
        self.down = FusedLinears([mlp.down_proj], adapters, dtype)
        self.attention, self.dtype, self.eps = attention, dtype, eps

    def forward(self, h: Tensor, rows: PackedRows) -> tuple[Tensor, _Kept]:
        """h (T, d) after the layer, and what ``backward`` needs; the given h is left as it is."""
        normed, rstd = self._normed(h)
        qkv, low_qkv = self.qkv.forward(normed)
        attended, kept = self.attention.forward(qkv, rows)
        update, low_o = self.o.forward(attended)
        h = h + update
        normed_mlp, rstd_mlp = self._normed(h)
        gate_up, low_gate_up = self.gate_up.forward(normed_mlp)
        gate, up = gate_up.chunk(2, dim=1)
        update, low_down = self.down.forward(F.silu(gate).mul_(up))
        h += update
        return h, _Kept(
            normed, rstd, low_qkv, kept, attended, low_o, normed_mlp, rstd_mlp, low_gate_up, gate_up, low_down
        )

    def backward(self, dh: Tensor, rows: PackedRows, bounds: list[int], kept: _Kept, *, dx: bool) -> None:
        """Turn dh (T, d), fp32, from the gradient of the layer's output into that of its input (if ``dx``)."""
        D = dh.to(self.dtype)
        gate, up = kept.gate_up.chunk(2, dim=1)
        act = F.silu(gate)
        # silu(gate) is needed for dup, silu(gate) * up for the factors of down.
        da = self.down.backward(act * up, kept.low_down, D, bounds)
        dgate_up = torch.empty_like(kept.gate_up)
        dgate, dup = dgate_up.chunk(2, dim=1)
        torch.mul(da, act, out=dup)
        torch.ops.aten.silu_backward.grad_input(da.mul_(up), gate, grad_input=dgate)
        g = self.gate_up.backward(kept.normed_mlp, kept.low_gate_up, dgate_up, bounds)
        _add_norm_gradient(dh, g, kept.normed_mlp, kept.rstd_mlp)
        D = dh.to(self.dtype)
        dout = self.o.backward(kept.attended, kept.low_o, D, bounds)
        dqkv = self.attention.backward(dout, rows, kept.attention)
        g = self.qkv.backward(kept.normed, kept.low_qkv, dqkv, bounds, dx=dx)
        if dx:
            _add_norm_gradient(dh, g, kept.normed, kept.rstd)

    def _normed(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """x_hat = h / rms(h) in the compute dtype, and 1 / rms(h) (T, 1)."""
        norm = torch.linalg.vector_norm(h, dim=1, keepdim=True)
        rstd = torch.rsqrt(norm * norm / h.shape[1] + self.eps)
        return torch.mul(h, rstd, out=torch.empty_like(h, dtype=self.dtype)), rstd


def _add_norm_gradient(dh: Tensor, g: Tensor, normed: Tensor, rstd: Tensor) -> None:
    """dh += (g - x_hat mean(g * x_hat)) * rstd, for g = dL/dx_hat."""
    g, normed = g.float(), normed.float()
    c = (g * normed).mean(1, keepdim=True)
    dh.addcmul_(g.addcmul_(normed, c, value=-1), rstd)
