"""Decoding for Llama-like models, layer by layer: fused projections and a preallocated cache.

The same computation as transformers' ``LlamaForCausalLM`` (RMSNorm, rotary positions, grouped queries, SwiGLU), with what
a decoder of many short rows needs: query, key and value in one product, gate and up in another, keys and values written in
place, the logits of last positions only, and the tokens that all prompts begin with computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["LlamaDecoder", "why_not_llama"]

_MODEL_TYPES = ("llama", "mistral", "qwen2")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def why_not_llama(model: PreTrainedModel) -> str | None:
    """Why ``LlamaDecoder`` cannot run this model; None when it can."""
    config = model.config
    if type(model).__name__ not in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"):
        return f"{type(model).__name__} is not one of {', '.join(_MODEL_TYPES)}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    if config.rope_parameters["rope_type"] not in _STATIC_ROPE:
        return f"its rotary embedding of type {config.rope_parameters['rope_type']} changes with the length"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        config.model_type == "mistral" and config.sliding_window is not None
    ):
        return "it has sliding-window attention"
    odd = {type(m).__name__ for name, m in model.named_modules() if name.endswith(("_proj", "lm_head"))} - {"Linear"}
    if odd:
        return f"its linear layers are {', '.join(sorted(odd))}"
    return None


class _Layer:
    """One decoder layer: fused weights, and keys and values (slots * n_kv, length, head_dim)."""

    def __init__(self, layer: nn.Module, cache_shape: tuple[int, int, int]) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm_1, self.norm_2 = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.qkv = _fused(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o = _fused(attention.o_proj)
        self.gate_up = _fused(mlp.gate_proj, mlp.up_proj)
        self.down = _fused(mlp.down_proj)
        # Zeros, not empty: masked positions are multiplied by 0, and 0 * NaN would be NaN.
        self.k = self.norm_1.new_zeros(cache_shape)
        self.v = self.norm_1.new_zeros(cache_shape)


class LlamaDecoder:
    """See ``Decoder``; a row lives in one slot of the cache, and rows 0..rows-1 are the active slots.

    Args:
        model: a model for which ``why_not_llama`` is None.
        slots: most rows at a time.
        max_length: most tokens in a row, prompt and answer.
        prefix: tokens that every prompt begins with; each prompt must be longer.
    """

    def __init__(self, model: PreTrainedModel, slots: int, max_length: int, prefix: Sequence[int] = ()) -> None:
        config = model.config
        self._n_heads, self._n_kv = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._eps = config.rms_norm_eps
        self._max_length = max_length
        self._embedding, self._norm = model.model.embed_tokens.weight, model.model.norm.weight
        self._device = self._embedding.device
        self._layers = [_Layer(m, (slots * self._n_kv, max_length, self._head_dim)) for m in model.model.layers]
        self._head = _fused(model.lm_head)
        cos, sin = model.model.rotary_emb(self._embedding, torch.arange(max_length, device=self._device)[None])
        half = self._head_dim // 2
        self._cos = cos[0]
        self._sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        self._lengths = torch.zeros(0, dtype=torch.long, device=self._device)
        self._prefix = len(prefix)
        if prefix:
            self._run_prefix(prefix, slots)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """See ``Decoder.prefill``. Rows are padded on the right: what is cached beyond a row's end is never read."""
        first, n, p = len(self._lengths), len(prompts), self._prefix
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        width = int(lengths.max())
        tokens = torch.tensor([[*prompt[p:], *[0] * (width - len(prompt))] for prompt in prompts], device=self._device)
        hidden = self._forward(tokens, torch.arange(p, width, device=self._device).expand(n, -1), first, None)
        self._lengths = torch.cat([self._lengths, lengths])
        last = self._rms_norm(hidden[torch.arange(n, device=self._device), lengths - p - 1], self._norm)
        return F.linear(last, *self._head), last

    def step(self, tokens: Tensor) -> Tensor:
        """See ``Decoder.step``."""
        positions = self._lengths[:, None]
        length = int(positions.max()) + 1
        unseen = torch.arange(length, device=self._device) > positions
        mask = torch.zeros(unseen.shape, dtype=self._cos.dtype, device=self._device).masked_fill_(unseen, -math.inf)
        hidden = self._forward(tokens[:, None], positions, 0, mask)
        self._lengths = self._lengths + 1
        return F.linear(self._rms_norm(hidden[:, 0], self._norm), *self._head)

    def keep(self, order: Sequence[int]) -> None:
        """See ``Decoder.keep``; only rows that change their slot are copied."""
        for i, j in enumerate(order):
            if i == j:
                continue
            to, of = slice(i * self._n_kv, (i + 1) * self._n_kv), slice(j * self._n_kv, (j + 1) * self._n_kv)
            length = int(self._lengths[j])
            for layer in self._layers:
                layer.k[to, :length] = layer.k[of, :length]
                layer.v[to, :length] = layer.v[of, :length]
        self._lengths = self._lengths[torch.tensor(order, dtype=torch.long, device=self._device)]

    def _run_prefix(self, prefix: Sequence[int], slots: int) -> None:
        """Compute the common prefix in slot 0 and copy it to every slot, where it stays."""
        positions = torch.arange(len(prefix), device=self._device)[None]
        self._forward(torch.tensor([prefix], device=self._device), positions, 0, None)
        for layer in self._layers:
            for cache in (layer.k, layer.v):
                cache[self._n_kv :, : len(prefix)] = cache[: self._n_kv, : len(prefix)].repeat(slots - 1, 1, 1)

    def _forward(self, tokens: Tensor, positions: Tensor, first: int, mask: Tensor | None) -> Tensor:
        """Hidden states (n, T, d) before the final norm of tokens (n, T) at ``positions``, in slots first..first+n-1.

        ``mask`` (n, length), 0 or -inf, says what one new token per row may see; without it every row holds the same
        positions, and each sees all before it.
        """
        n, width = tokens.shape
        heads = torch.arange(first * self._n_kv, (first + n) * self._n_kv, device=self._device).view(n, 1, self._n_kv)
        cells = (heads * self._max_length + positions[:, :, None]).flatten()
        cos, sin = self._cos[positions][:, :, None], self._sin[positions][:, :, None]
        rows = slice(first * self._n_kv, (first + n) * self._n_kv)
        h = F.embedding(tokens, self._embedding)
        if mask is None:
            seen = torch.ones(width, int(positions[0, -1]) + 1, dtype=torch.bool, device=self._device)
            seen = seen.tril(diagonal=int(positions[0, 0]))
        else:
            bias = mask.repeat_interleave(self._n_kv, 0)[:, None]
        for layer in self._layers:
            x = self._rms_norm(h, layer.norm_1)
            qkv = F.linear(x, *layer.qkv).view(n, width, -1, self._head_dim)
            qk, v = qkv.split([self._n_heads + self._n_kv, self._n_kv], dim=2)
            qk = torch.addcmul(qk * cos, qk.roll(self._head_dim // 2, -1), sin)
            q, k = qk.split([self._n_heads, self._n_kv], dim=2)
            layer.k.view(-1, self._head_dim).index_copy_(0, cells, k.reshape(-1, self._head_dim))
            layer.v.view(-1, self._head_dim).index_copy_(0, cells, v.reshape(-1, self._head_dim))
            if mask is None:
                a = self._attend_prompt(q, layer.k[rows], layer.v[rows], seen)
            else:
                a = self._attend_token(q, layer.k[rows], layer.v[rows], bias)
            h = h + F.linear(a.reshape(n, width, -1), *layer.o)
            gate, up = F.linear(self._rms_norm(h, layer.norm_2), *layer.gate_up).chunk(2, dim=-1)
            h = h + F.linear(F.silu(gate).mul_(up), *layer.down)
        return h

    def _attend_prompt(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """Attention (n, T, n_heads, head_dim) of T new tokens per row over ``seen`` (T, length)."""
        n, length = len(q), seen.shape[1]
        k, v = (x[:, :length].view(n, self._n_kv, length, self._head_dim) for x in (k, v))
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=seen, enable_gqa=True).transpose(1, 2)

    def _attend_token(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attention (n, 1, n_heads, head_dim) of one token per row; ``bias`` (n * n_kv, 1, length).

        Two batched products: twice as fast here as ``scaled_dot_product_attention``, which is made for long queries.
        """
        length = bias.shape[2]
        grouped = q.reshape(len(k), -1, self._head_dim)
        scores = torch.baddbmm(bias, grouped, k[:, :length].transpose(1, 2), alpha=self._head_dim**-0.5)
        return torch.bmm(scores.softmax(-1), v[:, :length]).view(q.shape)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """x / rms(x) in fp32, times the weight in the model's dtype; the order of roundings is transformers'."""
        y = x.float()
        return weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self._eps)).to(x.dtype)


def _fused(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of linear layers with one input, one below the other."""
    weight = torch.cat([m.weight for m in linears]) if len(linears) > 1 else linears[0].weight
    if all(m.bias is None for m in linears):
        return weight, None
    return weight, torch.cat([m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in linears])
