"""What a model with any head of transformers shows of a batch: features, logits and targets, position by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill.data.encode import IGNORE_INDEX
from isodistill.errors import UserError
from isodistill.models.hidden import POOLED, predicting, watched_states
from isodistill.terms.scoring import hidden_gradient

__all__ = ["AnyHead", "Seen"]


@dataclass(frozen=True)
class Seen:
    """A batch through a model.

    Attributes:
        features: layer -> (N, d) states at the positions that the head reads.
        logits: (N, V) there.
        targets: (N,) classes or tokens.
    """

    features: dict[int, Tensor]
    logits: Tensor
    targets: Tensor


class AnyHead:
    """A classifier, causal LM or encoder-decoder of transformers.

    Where a classifier reads its feature is found by asking for the gradient of its log-likelihood on some rows: it is
    zero at all other positions.

    Args:
        model: with a body that returns ``last_hidden_state``.
        layers: 1 to L or -1; see ``watched_states``.
        rows: a small batch with ``labels``: (B,) classes, or (B, T) tokens with -100 on what is not valid.
        who: for messages.

    Raises:
        UserError: labels are of another kind than the logits or beyond them; features are not finite; the head reads
            them where no model known here does; or its loss is not the cross-entropy of classes, of the next token, or
            of an encoder-decoder's token.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int], rows: Mapping[str, Tensor], who: str) -> None:
        self.model, self.layers = model, list(layers)
        self._config = cast(Any, model).config
        self.classifies = rows["labels"].dim() == 1
        self.encoder_decoder = bool(self._config.is_encoder_decoder)
        self._who = f"{who}, {type(model).__name__},"
        training = model.training
        model.eval()
        try:
            self._require_logits(rows)
            self._reads = self._found_pool(rows, who) if self.classifies else None
            self._require_cross_entropy(rows, who)
        finally:
            model.train(training)

    def see(self, batch: Mapping[str, Tensor]) -> Seen:
        """Features, logits and targets of a batch; the gradient is the caller's matter."""
        self._require_known(batch["labels"])
        with watched_states(self.model, self.layers) as found:
            logits = self.model(**self._inputs(batch), output_hidden_states=any(n != -1 for n in self.layers)).logits
        positions, targets = self.positions(batch)
        features = {layer: h.flatten(0, 1)[positions] for layer, h in found.items()}
        return Seen(features, logits if self.classifies else logits.flatten(0, 1)[positions], targets)

    def positions(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Flat positions (N,) of hidden states (B, T, d) that the head reads, and the targets there."""
        labels = batch["labels"]
        if self._reads is None:
            return predicting(labels, self.encoder_decoder)
        rows = torch.arange(len(labels), device=labels.device)
        return rows * batch["input_ids"].shape[1] + self._place(batch, self._reads), labels

    def gradients(self, batch: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """g and h (N, d) of every layer, for the scores of a teacher."""
        positions, _ = self.positions(batch)
        both = (hidden_gradient(self.model, batch, layer) for layer in self.layers)
        return [(g.flatten(0, 1)[positions], h.flatten(0, 1)[positions]) for g, h in both]

    def _inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Labels go in where the model makes its decoder's inputs from them, and nowhere else."""
        with_labels = self.encoder_decoder and not self.classifies
        return {name: value for name, value in batch.items() if with_labels or name != "labels"}

    def _place(self, batch: Mapping[str, Tensor], rule: str) -> Tensor:
        eos = self._config.eos_token_id
        return POOLED[rule](batch, eos if isinstance(eos, list) else [] if eos is None else [eos])

    @torch.no_grad()
    def _require_logits(self, rows: Mapping[str, Tensor]) -> None:
        """A classifier has logits (B, C), the others (B, T, V)."""
        if not self.classifies:  # an encoder-decoder reads them
            self._require_known(rows["labels"])
        logits = self.model(**self._inputs(rows)).logits
        if logits.dim() != (2 if self.classifies else 3):
            meant = "a class" if self.classifies else "tokens"
            raise UserError(
                f"Every row has {meant} for its labels, and the {self._who} gives logits of shape "
                f"{tuple(logits.shape)}. Take {'a classifier' if self.classifies else 'a language model'} for it."
            )
        self._require_known(rows["labels"])

    def _require_known(self, labels: Tensor) -> None:
        n = self._config.num_labels if self.classifies else self._config.vocab_size
        largest = int(labels.max()) if labels.numel() else 0
        if largest >= n:
            raise UserError(
                f"A row has the label {largest}, and the {self._who} knows 0 to {n - 1}. Look at the labels of the "
                f"rows{', or set num_labels in its config' if self.classifies else ''}."
            )

    def _found_pool(self, rows: Mapping[str, Tensor], who: str) -> str:
        gradient, h = hidden_gradient(self.model, rows)
        if not bool(torch.isfinite(gradient).all() & torch.isfinite(h).all()):
            raise UserError(
                f"The features of the {who}, or the gradient of its log-likelihood, are not finite on the first "
                "training rows. Load it in fp32, or take another one."
            )
        read = gradient.abs().sum(-1) > 0
        for rule in POOLED:
            alone = F.one_hot(self._place(rows, rule), read.shape[1]).bool() if read.any() else read
            if read.any() and torch.equal(read, alone):
                return rule
        raise UserError(
            f"The head of the {who}, {type(self.model).__name__}, reads its feature neither at the first token, nor at "
            "the last one, nor at the last end-of-sequence token, so features cannot be paired. Take a classifier that "
            "does."
        )

    @torch.no_grad()
    def _require_cross_entropy(self, rows: Mapping[str, Tensor], who: str) -> None:
        seen = self.see(rows)
        own = F.cross_entropy(seen.logits.float(), seen.targets, ignore_index=IGNORE_INDEX)
        theirs = self.model(**rows).loss
        if not torch.isfinite(own):
            raise UserError(f"The loss of the {who} is not finite on the first training rows.")
        if not torch.allclose(own, theirs.float(), rtol=1e-3, atol=1e-3):
            raise UserError(
                f"The loss of the {who}, {type(self.model).__name__}, is not the cross-entropy of classes, of the next "
                "token, or of an encoder-decoder's token, which alone are distilled here."
            )
