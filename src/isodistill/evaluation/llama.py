"""Decoding for Llama-like models, layer by layer: fused and packed weights, a cache in place, a shared prefix.

The same computation as transformers' ``LlamaForCausalLM`` (RMSNorm, rotary positions, grouped queries, SwiGLU), with
what a batch of many short rows needs: query, key and value in one product, gate and up in another, keys and values
written in place, the logits of last positions only, and the tokens that all prompts begin with computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from isodistill.models.llama_like import why_not_llama_like

__all__ = ["LlamaDecoder", "why_not_llama"]

_BLOCK = 32
"""The cache grows and shrinks by blocks of this many positions."""
_CHUNK = 512
"""Most positions of a prompt computed at once; bounds the attention scores to (n * n_heads, 512, length)."""


def why_not_llama(model: PreTrainedModel) -> str | None:
    """Why ``LlamaDecoder`` cannot run this model; None when it can."""
    obstacle = why_not_llama_like(model)
    if obstacle is not None:
        return obstacle
    odd = {type(m).__name__ for name, m in model.named_modules() if name.endswith(("_proj", "lm_head"))} - {"Linear"}
    if odd:
        return f"its linear layers are {', '.join(sorted(odd))}"
    return None


class LlamaDecoder:
    """See ``Decoder``; a row lives in one slot of the cache, and slots 0, 1, ... are the active rows.

    Several tokens a row cost one reading of the weights and of its cache, so drafts pay: see ``Drafts``.

    Holds a packed copy of the linear weights, and keys and values of slots * n_kv * (longest row) * head_dim per layer.

    Args:
        model: a model for which ``why_not_llama`` is None.
        slots: most rows at a time.
        prefix: tokens that every prompt begins with; each prompt must be longer.
    """

    drafts = True

    def __init__(self, model: PreTrainedModel, slots: int, prefix: Sequence[int] = ()) -> None:
        config, body = model.config, model.model
        self._n_heads, self._n_kv = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._eps = config.rms_norm_eps
        self._slots, self._capacity = slots, 0
        self._embedding, self._norm, self._rotary = body.embed_tokens.weight, body.norm.weight, body.rotary_emb
        self._device = self._embedding.device
        empty = self._embedding.new_zeros(slots * self._n_kv, 0, self._head_dim)
        self._layers = [_Layer(layer, empty) for layer in body.layers]
        self._head = _Linear(model.lm_head)
        self._lengths = torch.zeros(0, dtype=torch.long, device=self._device)
        self._prefix = len(prefix)
        if prefix:
            self._share(prefix)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """See ``Decoder.prefill``. Rows are padded on the right: what is cached beyond a row's end is never read."""
        n, start = len(prompts), self._prefix
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        width = int(lengths.max())
        tokens = torch.tensor([[*p[start:], *[0] * (width - len(p))] for p in prompts], device=self._device)
        hidden = self._run(tokens, start, first=len(self._lengths))
        self._lengths = torch.cat([self._lengths, lengths])
        last = self._rms_norm(hidden[torch.arange(n, device=self._device), lengths - start - 1], self._norm)
        return self._head(last), last

    def step(self, runs: Sequence[Sequence[int]]) -> Tensor:
        """See ``Decoder.step``. Runs of different length share the linear products; only attention pads them."""
        counts = torch.tensor([len(run) for run in runs], device=self._device)
        offsets = torch.arange(int(counts.max()), device=self._device)
        positions = self._lengths[:, None] + offsets
        at = (offsets < counts[:, None]).flatten().nonzero()[:, 0]
        self._fit(int((self._lengths + counts).max()))
        # Over the whole capacity: the batched products copy a cache that is cut.
        bias = self._bias(torch.arange(self._capacity, device=self._device) > positions[:, :, None])
        bias = bias.repeat_interleave(self._n_kv, 0)
        if len(offsets) > 1:
            bias = bias.repeat_interleave(self._n_heads // self._n_kv, 1)
        tokens = torch.tensor([token for run in runs for token in run], device=self._device)
        hidden = self._forward(tokens, positions, 0, bias, at)
        self._lengths = self._lengths + counts
        return self._head(self._rms_norm(hidden, self._norm))

    def undo(self, counts: Sequence[int]) -> None:
        """See ``Decoder.undo``; what is cached beyond a row's end is never read."""
        self._lengths = self._lengths - torch.tensor(counts, device=self._device)

    def keep(self, order: Sequence[int]) -> None:
        """See ``Decoder.keep``; only rows that change their slot are copied."""
        moves = [(i, j) for i, j in enumerate(order) if i != j]
        for layer in self._layers:
            for cache in (layer.k, layer.v):
                slots = cache.view(self._slots, -1)
                for i, j in moves:
                    slots[i] = slots[j]
        self._lengths = self._lengths[torch.tensor(order, dtype=torch.long, device=self._device)]

    def _share(self, prefix: Sequence[int]) -> None:
        """Compute the common prefix in slot 0 and copy it to every slot, where it stays."""
        self._run(torch.tensor([prefix], device=self._device), 0, first=0)
        for layer in self._layers:
            for cache in (layer.k, layer.v):
                slots = cache.view(self._slots, -1)
                slots[1:] = slots[0]

    def _run(self, tokens: Tensor, start: int, first: int) -> Tensor:
        """Hidden states (n, T, d) of tokens (n, T) at positions start, start + 1, ... of slots first, first + 1, ..."""
        self._fit(start + tokens.shape[1])
        hidden = []
        for chunk in tokens.split(_CHUNK, dim=1):
            positions = torch.arange(start, start + chunk.shape[1], device=self._device)
            start += chunk.shape[1]
            # Over whole blocks: the softmax in bf16 is three times slower over a length that is no multiple of 32.
            length = _whole_blocks(start)
            bias = self._bias(torch.arange(length, device=self._device) > positions[:, None])
            bias = bias.repeat_interleave(self._n_heads // self._n_kv, 0)[None]
            at = torch.arange(chunk.numel(), device=self._device)
            out = self._forward(chunk.flatten(), positions.expand(len(chunk), -1), first, bias, at)
            hidden.append(out.view(*chunk.shape, -1))
        return torch.cat(hidden, dim=1)

    def _forward(self, tokens: Tensor, positions: Tensor, first: int, bias: Tensor, at: Tensor) -> Tensor:
        """Hidden states (m, d), before the final norm, of tokens (m,).

        Token j stands at place ``at[j]`` (ascending) of the flattened ``positions`` (n, T), whose row i is slot
        first + i. ``bias`` is added to the attention scores (n * n_kv, T * group, L) over the first L cached positions;
        it broadcasts to their shape.
        """
        n, width = positions.shape
        rows, length = slice(first * self._n_kv, (first + n) * self._n_kv), bias.shape[-1]
        places = positions.flatten()[at]
        heads = (first + at[:, None] // width) * self._n_kv + torch.arange(self._n_kv, device=self._device)
        cells = (heads * self._capacity + places[:, None]).flatten()
        cos, sin = (x[places][:, None] for x in (self._cos, self._sin))
        h = F.embedding(tokens, self._embedding)
        for layer in self._layers:
            qkv = layer.qkv(self._rms_norm(h, layer.norm_1)).view(len(tokens), -1, self._head_dim)
            qk, v = qkv.split([self._n_heads + self._n_kv, self._n_kv], dim=1)
            qk = torch.addcmul(qk * cos, qk.roll(self._head_dim // 2, -1), sin)
            q, k = qk.split([self._n_heads, self._n_kv], dim=1)
            layer.k.view(-1, self._head_dim).index_copy_(0, cells, k.reshape(-1, self._head_dim))
            layer.v.view(-1, self._head_dim).index_copy_(0, cells, v.reshape(-1, self._head_dim))
            if len(at) < n * width:
                q = q.new_zeros(n * width, self._n_heads, self._head_dim).index_copy_(0, at, q)
            out = self._attend(
                q.view(n, width, -1, self._head_dim), layer.k[rows, :length], layer.v[rows, :length], bias
            )
            if len(at) < n * width:
                out = out[at]
            h = h + layer.o(out)
            gate, up = layer.gate_up(self._rms_norm(h, layer.norm_2)).chunk(2, dim=-1)
            h = h + layer.down(F.silu(gate).mul_(up))
        return h

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """softmax(q k' / sqrt(head_dim) + bias) v, (n * T, n_heads * head_dim), of q (n, T, n_heads, head_dim).

        Two batched products, the queries of one group below each other: half the time of
        ``scaled_dot_product_attention`` on a CPU, which is made for longer rows.
        """
        n, width, _, _ = q.shape
        grouped = q.unflatten(2, (self._n_kv, -1)).transpose(1, 2).reshape(n * self._n_kv, -1, self._head_dim)
        scores = torch.baddbmm(bias, grouped, k.transpose(1, 2), alpha=self._head_dim**-0.5)
        out = torch.bmm(scores.softmax(-1), v).view(n, self._n_kv, width, -1)
        return out.transpose(1, 2).reshape(n * width, -1)

    def _bias(self, unseen: Tensor) -> Tensor:
        """-inf where a position must not be seen, else 0."""
        return torch.zeros(unseen.shape, dtype=self._embedding.dtype, device=self._device).masked_fill_(
            unseen, -math.inf
        )

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """x / rms(x) in fp32, times the weight in the model's dtype; the order of roundings is transformers'."""
        y = x.float()
        return weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self._eps)).to(x.dtype)

    def _fit(self, length: int) -> None:
        """Give the cache room for ``length`` positions and every row; take back what is more than twice as much."""
        longest = max([length, *self._lengths.tolist()])
        wanted = _whole_blocks(longest)
        if wanted <= self._capacity <= 2 * wanted:
            return
        kept, self._capacity = min(self._capacity, wanted), wanted
        for layer in self._layers:
            layer.k, layer.v = _resized(layer.k, kept, wanted), _resized(layer.v, kept, wanted)
        cos, sin = self._rotary(self._embedding, torch.arange(wanted, device=self._device)[None])
        half = self._head_dim // 2
        self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)


class _Layer:
    """One decoder layer: its weights, and its keys and values (slots * n_kv, capacity, head_dim)."""

    def __init__(self, layer: Any, cache: Tensor) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm_1, self.norm_2 = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.qkv = _Linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o = _Linear(attention.o_proj)
        self.gate_up = _Linear(mlp.gate_proj, mlp.up_proj)
        self.down = _Linear(mlp.down_proj)
        self.k = self.v = cache


class _Linear:
    """Linear layers with one input as one product, the weights packed for the CPU where torch can."""

    def __init__(self, *linears: nn.Linear) -> None:
        weights: list[Tensor] = [m.weight for m in linears]
        biases: list[Tensor] = [m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in linears]
        self._weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        self._bias = None if all(m.bias is None for m in linears) else torch.cat(biases)
        self._packed = _can_pack(self._weight)
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight.detach(), 64)

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return out
        return F.linear(x, self._weight, self._bias)


def _can_pack(weight: Tensor) -> bool:
    """Packing spares a reordering in every product: 1.2 times faster with 64 rows, 2 times with 16, in bf16 and fp32.

    The two operators are those torch's compiler uses; they are not public, so a torch without them is served as well.
    """
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _whole_blocks(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _resized(cache: Tensor, kept: int, length: int) -> Tensor:
    """The first ``kept`` positions in a cache of ``length``; the rest is 0, since a masked NaN would still be NaN."""
    resized = cache.new_zeros(len(cache), length, cache.shape[2])
    resized[:, :kept] = cache[:, :kept]
    return resized
