"""What an audit fits: two heads over the frozen features of an encoder, or parameters of the encoder itself."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from isodistill.data.pairs import Pair
from isodistill.errors import UserError
from isodistill.influence import Epochs, Fit, Influence, Items, Refit, divide, fit_encoder, fit_heads
from isodistill.models.image_encoder import open_image
from isodistill.models.text_encoder import TextEncoder
from isodistill.pipeline.pair_features import Encoder, Features

__all__ = ["ENCODER_FIT", "AuditModel", "audit_model", "parameter_patterns"]

ENCODER_FIT = Fit(epochs=3, batch_size=32, lr=1e-3, delta=1e-4, recorded=1, damping=0.1, probes=4)
"""Of parameters of an encoder: each epoch costs three passes over the texts or images, so there are few."""

_DRAWS = 4
"""Gradients that EK-FAC draws for each batch."""

_LORA_ON = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "q", "v")
_SHOWN_NAMES = 3


@dataclass(frozen=True)
class AuditModel:
    """A contrastive model of pairs, and the items that it reads.

    Attributes:
        a: first items of the pairs, features or what the encoder reads.
        b: second items.
        query_a: first items of the queries.
        query_b: second items.
        how: the settings of a fit.
        fit: fits it from its start to batches of the pairs.
        frozen: the encoder is frozen, so that fits and products with the Hessian are cheap.
    """

    a: Items
    b: Items
    query_a: Items
    query_b: Items
    how: Fit
    fit: Refit
    frozen: bool

    def fit_to_all(self) -> Influence:
        """The fit to all pairs, ready for solves: by EK-FAC, fitted once, where each product reads all texts again."""
        influence = self.fit(divide(torch.arange(len(self.a)), self.how))
        if not self.frozen:
            influence.approximation = influence.factors("ekfac", n_draws=_DRAWS, seed=self.how.seed)
        return influence


def parameter_patterns(encoder: Encoder, parameters: str) -> list[str] | None:
    """What of an encoder is fitted, as patterns of names of its parameters; None for heads of their own.

    Args:
        encoder: LoRA is put into it where that is asked for.
        parameters: "heads", two linear ones over frozen features; "lora", of rank 8 on the encoder's queries and
            values; or patterns by commas.

    Raises:
        UserError: a pattern that names no parameter, even where others do; or no layer that LoRA could go on.
    """
    if parameters == "heads":
        return None
    patterns = _with_lora(encoder) if parameters == "lora" else [name.strip() for name in parameters.split(",")]
    names = [name for name, _ in encoder.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[-_SHOWN_NAMES:])
            raise UserError(
                f"--parameters names no parameter of the encoder with {pattern!r}. It takes heads, lora, or patterns "
                f"by commas; there are {len(names)} names, such as {shown}."
            )
    return patterns


def audit_model(
    encoder: Encoder, patterns: Sequence[str] | None, read: Features, asked: Features, how: Fit | None
) -> AuditModel:
    """The model whose parameters the influences are about.

    Args:
        encoder: of the features.
        patterns: of ``parameter_patterns``.
        read: the pairs.
        asked: the queries.
        how: settings of the fit; None takes ``Fit()`` for heads, else ``ENCODER_FIT``, for CLIP at its own temperature.
    """
    if patterns is None:
        settings = how or Fit()
        sides = (read.a, read.b, asked.a, asked.b)
        return AuditModel(*sides, settings, lambda epochs: fit_heads(read.a, read.b, settings, epochs), True)
    reader = _Reader(encoder).requires_grad_(False)  # or backward would also go to what is not theta
    inside = [f"encoder.{pattern}" for pattern in patterns]
    tuned = how or _own_temperature(encoder, ENCODER_FIT)
    a, b = _items(read.pairs)

    def fit(epochs: Epochs) -> Influence:
        return fit_encoder(deepcopy(reader), inside, a, b, tuned, epochs)

    return AuditModel(a, b, *_items(asked.pairs), tuned, fit, False)


class _Reader(nn.Module):
    """An encoder of texts, or of captions and the paths of images, which are opened when they are read."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def encode_a(self, items: Sequence[str]) -> Tensor:
        """Embeddings of texts or images."""
        if isinstance(self.encoder, TextEncoder):
            return self.encoder.encode_a(items)
        return self.encoder.encode_a(self.encoder.pixels([open_image(path) for path in items]))

    def encode_b(self, items: Sequence[str]) -> Tensor:
        """Embeddings of texts."""
        return self.encoder.encode_b(items)


def _items(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    return [pair.a for pair in pairs], [pair.b for pair in pairs]


def _with_lora(encoder: Encoder) -> list[str]:
    """Put LoRA into the encoder; the patterns of its parameters."""
    try:
        inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=list(_LORA_ON)), encoder.model)
    except ValueError as error:
        raise UserError(
            f"{encoder.name} has no linear layers named {', '.join(_LORA_ON)}, which LoRA goes on: "
            "name parameters of the encoder with --parameters instead."
        ) from error
    return ["*lora_*"]


def _own_temperature(encoder: Encoder, how: Fit) -> Fit:
    """CLIP has learned the temperature of its logits; text encoders have none."""
    if isinstance(encoder, TextEncoder):
        return how
    scale: Tensor = encoder.model.logit_scale  # type: ignore[assignment]
    return replace(how, temperature=float(torch.exp(-scale)))
