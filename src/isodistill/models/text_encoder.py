"""Frozen text encoders in the style of sentence-transformers: mean of the last hidden states, norm 1."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from isodistill.errors import UserError

__all__ = ["TextEncoder", "load_text_encoder"]


@dataclass(frozen=True)
class TextEncoder:
    """A model of hidden states with its tokenizer; ``name`` is what results print."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def context(self) -> int:
        """Most tokens that are read: the smaller of what the model and its tokenizer name."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize
        return int(min(positions, self.tokenizer.model_max_length))

    def count_longer(self, texts: Sequence[str]) -> int:
        """How many texts have more tokens than are read."""
        ids = self.tokenizer(list(texts), verbose=False)["input_ids"]
        return sum(len(each) > self.context for each in ids)

    @torch.no_grad()
    def features(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """(n, d) fp32: the mean over the tokens of each text, norm 1; longer texts are cut at ``context``."""
        rows = []
        for start in tqdm(range(0, len(texts), batch_size), desc="features"):
            batch = self.tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=self.context,
                return_tensors="pt",
            )
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None].to(hidden)
            rows.append(nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(rows)


def load_text_encoder(source: str) -> TextEncoder:
    """Load a folder or a hub id, in fp32 and eval mode.

    Raises:
        UserError: nothing that transformers can load is there.
    """
    if source.startswith((".", "/")) and not Path(source).is_dir():
        raise UserError(f"There is no folder {source}. --model takes the folder of a text encoder, or a hub id.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"The text encoder {source!r} could not be loaded: {error}") from error
    return TextEncoder(model.eval(), tokenizer, source)
