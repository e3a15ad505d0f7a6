"""Hidden states of any model of transformers, and the positions at which its head reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill.data.encode import IGNORE_INDEX

__all__ = ["POOLED", "body_states", "logits_of", "predicting", "watched_states"]

_CHUNK = 256  # states whose logits exist at one time


@torch.no_grad()
def body_states(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """States (B, T, d) of ids (B, T) that the head of a causal LM reads."""
    states: Tensor = _body(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return states


@torch.no_grad()
def logits_of(model: nn.Module, states: Tensor) -> Iterator[Tensor]:
    """Logits (n, V) of states (N, d), 256 at a time, so that no (N, V) tensor exists.

    All that a causal LM does behind its body is done (scaling, soft-capping): it reads one token, and the states stand
    in the place of that token's.
    """
    one = torch.zeros(1, 1, dtype=torch.long, device=states.device)
    for chunk in states.split(_CHUNK):
        hook = _body(model).register_forward_hook(partial(_stand_in, chunk))
        try:
            logits: Tensor = model(input_ids=one, use_cache=False).logits[0]
        finally:
            hook.remove()
        yield logits


@contextmanager
def watched_states(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While open, every forward leaves ``found[layer]`` (B, T, d); of an encoder-decoder, those of the decoder.

    Args:
        model: with a body (``base_model``) that returns ``last_hidden_state``.
        layers: 1 to L counts layers, -1 is the last one after the final norm. Others than -1 need a forward with
            ``output_hidden_states``.
    """
    found: dict[int, Tensor] = {}

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        for layer in layers:
            found[layer] = out.last_hidden_state if layer == -1 else out.hidden_states[layer]

    hook = _body(model).register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def _stand_in(states: Tensor, module: nn.Module, args: Any, out: Any) -> Any:
    out.last_hidden_state = states.unsqueeze(0)
    return out


def _body(model: nn.Module) -> nn.Module:
    """The part whose states the head reads; of OPT and BART it is the decoder."""
    base = cast(Any, model).base_model
    return cast(nn.Module, getattr(base, "decoder", base))


def predicting(labels: Tensor, encoder_decoder: bool) -> tuple[Tensor, Tensor]:
    """Flat positions (N,) whose states predict the valid tokens of labels (B, T), and these tokens (N,).

    A causal LM predicts them one to the left, an encoder-decoder in place.
    """
    shifted = labels if encoder_decoder else F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    positions = (shifted.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
    return positions, shifted.flatten()[positions]


def _first(batch: Mapping[str, Tensor], eos: Sequence[int]) -> Tensor:
    return torch.zeros_like(batch["input_ids"][:, 0])


def _last(batch: Mapping[str, Tensor], eos: Sequence[int]) -> Tensor:
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids))
    return (mask * torch.arange(ids.shape[1], device=ids.device)).argmax(1)


def _last_eos(batch: Mapping[str, Tensor], eos: Sequence[int]) -> Tensor:
    ids = batch["input_ids"]
    return (
        torch.isin(ids, torch.tensor(eos, device=ids.device)).long() * torch.arange(ids.shape[1], device=ids.device)
    ).argmax(1)


POOLED = {"first token": _first, "last token": _last, "last end-of-sequence token": _last_eos}
"""Where classifiers of transformers read their feature: BERT's, those of decoders, BART's. Of a batch and the ids
that end a sequence, the place (B,) in every row."""
