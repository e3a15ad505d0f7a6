"""The two ways to run a causal language model token by token: through its own forward, or layer by layer.

A decoder holds the active rows of a batch and their keys and values. ``generate`` adds prompts to it, asks for the next
logits, and drops rows that are finished; how the rows are stored is the decoder's own business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from isodistill.errors import UserError

__all__ = ["Decoder", "ForwardDecoder"]


class Decoder(Protocol):
    """Rows of a batch in the middle of their generation; rows are numbered 0, 1, ... in the order they were added.

    Attributes:
        drafts: whether a row may be given more than one token in a step, and ``undo`` is there.
    """

    drafts: bool

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Append one row per prompt; logits (n, V) and final hidden state (n, d) of each prompt's last token."""
        ...

    def step(self, runs: Sequence[Sequence[int]]) -> Tensor:
        """Append one token or more to every row; the logits (sum of the runs' lengths, V) after each of them."""
        ...

    def undo(self, counts: Sequence[int]) -> None:
        """Take back the last ``counts[i]`` tokens of every row i."""
        ...

    def keep(self, order: Sequence[int]) -> None:
        """Drop rows: row i is now what was row ``order[i]``, where ``order[i]`` is i or at least ``len(order)``."""
        ...


class ForwardDecoder:
    """Any decoder-only model of transformers, through its own ``forward`` and a left-padded dynamic cache.

    New rows join a running batch by padding the shorter of the two caches on the left; positions are passed explicitly,
    so padding changes no result. All layers keep their full cache, also those with a sliding window (the model's mask
    does the sliding).

    Raises:
        UserError: the model is an encoder-decoder, or keeps a recurrent state that rows cannot join or leave.
    """

    drafts = False

    def __init__(self, model: PreTrainedModel) -> None:
        if model.config.is_encoder_decoder or model._is_stateful:
            raise UserError(
                f"{type(model).__name__} cannot be used for batched generation: only decoder-only attention models can "
                "let rows join and leave a batch. Choose a causal language model such as Llama, Qwen or GPT-2."
            )
        self._model = model
        self._device = model.device
        self._cache = DynamicCache()
        self._mask = torch.empty(0, 0, dtype=torch.long, device=self._device)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """See ``Decoder.prefill``."""
        width = max(len(p) for p in prompts)
        tokens = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self._device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        captured: list[Tensor] = []
        head = self._model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: captured.append(args[0][:, -1]))
        try:
            cache = DynamicCache()
            logits = self._forward(tokens, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        finally:
            hook.remove()
        self._join(cache, mask)
        return logits, captured[0]

    def step(self, runs: Sequence[Sequence[int]]) -> Tensor:
        """See ``Decoder.step``; one token a row."""
        positions = self._mask.sum(1, keepdim=True)
        self._mask = torch.cat([self._mask, torch.ones_like(positions)], dim=1)
        return self._forward(torch.tensor(runs, device=self._device), self._mask, positions, self._cache)

    def undo(self, counts: Sequence[int]) -> None:
        """Nothing to take back: ``drafts`` is False, since a left-padded cache cannot be cut row by row."""

    def keep(self, order: Sequence[int]) -> None:
        """See ``Decoder.keep``; columns that are padding in every row that stays are dropped too."""
        rows = torch.tensor(order, dtype=torch.long, device=self._device)
        mask = self._mask[rows]
        start = mask.shape[1] - int(mask.sum(1).max()) if len(order) else mask.shape[1]
        self._mask = mask[:, start:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[rows, :, start:], layer.values[rows, :, start:]

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        out = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def _join(self, cache: Any, mask: Tensor) -> None:
        """Append the rows of a freshly prefilled cache below the running ones."""
        if len(self._mask) == 0:
            self._cache, self._mask = cache, mask
            return
        width = max(mask.shape[1], self._mask.shape[1])
        self._mask = torch.cat([_pad_left(self._mask, width, dim=1), _pad_left(mask, width, dim=1)])
        for old, new in zip(self._cache.layers, cache.layers, strict=True):
            old.keys = torch.cat([_pad_left(old.keys, width, dim=2), _pad_left(new.keys, width, dim=2)])
            old.values = torch.cat([_pad_left(old.values, width, dim=2), _pad_left(new.values, width, dim=2)])


def _pad_left(x: Tensor, width: int, dim: int) -> Tensor:
    shape = list(x.shape)
    shape[dim] = width - shape[dim]
    return torch.cat([x.new_zeros(shape), x], dim=dim)
