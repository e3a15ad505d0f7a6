"""Text encoders in the style of sentence-transformers: mean of the last hidden states."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from isodistill.errors import UserError

__all__ = ["TextEncoder", "count_tokens", "load_text_encoder", "require_folder"]


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, none cut off."""
    return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


class TextEncoder(nn.Module):
    """Texts to texts: both sides of a pair are read by one model of hidden states.

    Args:
        model: any ``AutoModel`` of texts.
        tokenizer: its own.
        name: what results print.
    """

    takes_images = False

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name = model, tokenizer, name

    @property
    def context(self) -> int:
        """Most tokens that are read: the smaller of what the model and its tokenizer name."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize
        return int(min(positions, self.tokenizer.model_max_length))

    def count_longer(self, texts: Sequence[str]) -> int:
        """How many texts have more tokens than are read; the rest of them is cut off."""
        return sum(n > self.context for n in count_tokens(self.tokenizer, texts))

    def encode_a(self, items: Sequence[str]) -> Tensor:
        """(n, d): the mean over the tokens of each text."""
        batch = self.tokenizer(
            list(items), padding=True, truncation=True, max_length=self.context, return_tensors="pt"
        ).to(self.model.device)
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None].to(hidden)
        mean: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return mean

    def encode_b(self, items: Sequence[str]) -> Tensor:
        """As ``encode_a``."""
        return self.encode_a(items)


def require_folder(source: str) -> None:
    """A source that looks like a path must be a folder, else the hub would be asked for it.

    Raises:
        UserError: there is no such folder.
    """
    if source.startswith((".", "/")) and not Path(source).is_dir():
        raise UserError(f"There is no folder {source}. --model takes the folder of an encoder, or a hub id.")


def load_text_encoder(source: str) -> TextEncoder:
    """Load a folder or a hub id, in fp32 and eval mode, with attention that can be differentiated twice.

    Raises:
        UserError: nothing that transformers can load is there.
    """
    require_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            source, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"The text encoder {source!r} could not be loaded: {error}") from error
    if model.config.model_type == "clip":
        raise UserError(f"{source} is a CLIP, which needs images: for pairs of texts, name a text encoder.")
    return TextEncoder(model.eval(), tokenizer, source)
