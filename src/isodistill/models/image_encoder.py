"""Dual encoders of images and captions: CLIP of transformers and the models of open_clip, by the same two calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, BaseImageProcessor, CLIPModel, PreTrainedTokenizerBase

from isodistill.errors import UserError
from isodistill.models.text_encoder import count_tokens, require_folder

__all__ = ["Clip", "ImageEncoder", "OpenClip", "load_image_encoder", "open_image"]

OPEN_CLIP = "open_clip:"


class ImageEncoder(Protocol):
    """A module that reads images on one side and captions on the other."""

    name: str
    context: int

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, channels, height, width), as the model reads them."""
        ...

    def encode_a(self, items: Tensor) -> Tensor:
        """(n, d), of pixels."""
        ...

    def encode_b(self, items: Sequence[str]) -> Tensor:
        """(n, d), of captions."""
        ...

    def count_longer(self, texts: Sequence[str]) -> int:
        """How many captions have more tokens than are read."""
        ...


def open_image(path: str | Path) -> Image.Image:
    """A decoded image in RGB.

    Raises:
        UserError: there is no such file, or it does not decode.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} does not decode as an image: {error}") from error


class Clip(nn.Module):
    """CLIP of transformers; its ``logit_scale`` is the log of 1 / temperature.

    Args:
        model: a ``CLIPModel``.
        tokenizer: its own.
        processor: its own image processor.
        name: what results print.
    """

    takes_images = True

    def __init__(
        self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, processor: BaseImageProcessor, name: str
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.processor, self.name = model, tokenizer, processor, name
        self.context = int(model.config.text_config.max_position_embeddings)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, channels, height, width), resized, cropped and normalised by the image processor."""
        values: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return values.to(self.model.device)

    def encode_a(self, items: Tensor) -> Tensor:
        """Projected features of pixels, (n, d)."""
        features: Tensor = self.model.visual_projection(self.model.vision_model(pixel_values=items).pooler_output)
        return features

    def encode_b(self, items: Sequence[str]) -> Tensor:
        """Projected features of captions, (n, d); longer ones are cut at ``context``."""
        batch = self.tokenizer(
            list(items), padding=True, truncation=True, max_length=self.context, return_tensors="pt"
        ).to(self.model.device)
        hidden = self.model.text_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        features: Tensor = self.model.text_projection(hidden.pooler_output)
        return features

    def count_longer(self, texts: Sequence[str]) -> int:
        """How many captions have more tokens than are read."""
        return sum(n > self.context for n in count_tokens(self.tokenizer, texts))


class OpenClip(nn.Module):
    """A model of open_clip; its ``logit_scale`` is the log of 1 / temperature.

    Args:
        model: with ``encode_image`` and ``encode_text``.
        preprocess: one image -> pixels.
        tokenizer: captions, context_length -> token ids, cut and padded to that length.
        context: tokens that the model reads.
        name: what results print.
    """

    takes_images = True

    def __init__(
        self,
        model: nn.Module,
        preprocess: Callable[[Image.Image], Tensor],
        tokenizer: Callable[..., Tensor],
        context: int,
        name: str,
    ) -> None:
        super().__init__()
        self.model, self.preprocess, self.tokenizer = model, preprocess, tokenizer
        self.context, self.name = context, name

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, channels, height, width)."""
        return torch.stack([self.preprocess(image) for image in images])

    def encode_a(self, items: Tensor) -> Tensor:
        """Features of pixels, (n, d)."""
        features: Tensor = self.model.encode_image(items)  # type: ignore[operator]
        return features

    def encode_b(self, items: Sequence[str]) -> Tensor:
        """Features of captions, (n, d)."""
        features: Tensor = self.model.encode_text(self.tokenizer(list(items)))  # type: ignore[operator]
        return features

    def count_longer(self, texts: Sequence[str]) -> int:
        """How many captions still hold a token, not the padding of an empty one, after the last that is read."""
        ids = self.tokenizer(["", *texts], context_length=self.context + 1)[:, self.context]
        return int((ids[1:] != ids[0]).sum())


def load_image_encoder(source: str) -> Clip | OpenClip:
    """Load CLIP from a folder or hub id, or ``open_clip:MODEL@PRETRAINED``, in fp32 and eval mode.

    Raises:
        UserError: it cannot be loaded, is no dual encoder, or open_clip is not installed.
    """
    if source.startswith(OPEN_CLIP):
        return _load_open_clip(source)
    require_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        model = CLIPModel.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"CLIP could not be loaded from {source!r}: {error}") from error
    return Clip(model.eval(), tokenizer, processor, source)


def _load_open_clip(source: str) -> OpenClip:
    try:
        import open_clip
    except ImportError:
        raise UserError(f"{source} needs open_clip: pip install open_clip_torch.") from None
    name, _, pretrained = source.removeprefix(OPEN_CLIP).partition("@")
    try:
        model, preprocess = open_clip.create_model_from_pretrained(name, pretrained=pretrained or None)
        tokenizer: Any = open_clip.get_tokenizer(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source} could not be loaded: {error}") from error
    return OpenClip(model.float().eval(), preprocess, tokenizer, int(tokenizer.context_length), source)
