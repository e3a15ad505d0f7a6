"""Frozen features of both sides of pairs; an item that cannot be read costs its pair, not the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isodistill.data.files import Refusal
from isodistill.data.pairs import Pair
from isodistill.errors import UserError
from isodistill.models.image_encoder import Clip, OpenClip, load_image_encoder, open_image
from isodistill.models.text_encoder import TextEncoder, load_text_encoder

__all__ = ["DEFAULTS", "Encoder", "Features", "load_encoder", "read_features"]

Encoder = TextEncoder | Clip | OpenClip

_BATCH = 32
DEFAULTS = {False: "sentence-transformers/all-MiniLM-L6-v2", True: "openai/clip-vit-base-patch32"}
"""Whether first items are images -> the encoder."""


@dataclass(frozen=True)
class Features:
    """What an encoder made of pairs.

    Attributes:
        pairs: those that were read, n of them.
        a: (n, d) fp32, rows of norm 1.
        b: (n, d).
        unread: the others, each with its line, column and reason.
        n_longer: texts that the encoder cut.
    """

    pairs: list[Pair]
    a: Tensor
    b: Tensor
    unread: list[Refusal]
    n_longer: int


def load_encoder(source: str | None, images: bool) -> Encoder:
    """The encoder of pairs of texts, or of images and captions; a small usual one where no source is named.

    Raises:
        UserError: nothing that can be loaded is there.
    """
    source = source or DEFAULTS[images]
    return load_image_encoder(source) if images else load_text_encoder(source)


@torch.no_grad()
def read_features(encoder: Encoder, pairs: Sequence[Pair], file: Path) -> Features:
    """Encode both sides once; an image that does not decode or an embedding that is not finite takes its pair out.

    Raises:
        UserError: not a single pair is left; names the first.
    """
    read: list[Pair] = []
    rows: list[tuple[Tensor, Tensor]] = []
    unread: list[Refusal] = []
    for start in tqdm(range(0, len(pairs), _BATCH), desc="features"):
        batch = list(pairs[start : start + _BATCH])
        items: Tensor | list[str]
        if isinstance(encoder, TextEncoder):
            items = [pair.a for pair in batch]
        else:
            batch, items = _pixels(encoder, batch, file, unread)
        if not batch:
            continue
        sides = encoder.encode_a(items), encoder.encode_b([pair.b for pair in batch])  # type: ignore[arg-type]
        for pair, u, v in zip(batch, *sides, strict=True):
            if u.isfinite().all() and v.isfinite().all():
                read.append(pair)
                rows.append((u, v))
            else:
                column = _column(pair, 1 if u.isfinite().all() else 0)
                unread.append(Refusal(str(file), pair.line, column, "its embedding is not finite"))
    if not read:
        raise UserError(f"None of the {len(pairs)} pairs could be read. The first: {unread[0]}.")
    a, b = (nn.functional.normalize(torch.stack(side).cpu(), dim=-1) for side in zip(*rows, strict=True))
    texts = [pair.b for pair in read] + [pair.a for pair in read if not pair.image]
    return Features(read, a, b, sorted(unread, key=lambda each: each.line or 0), encoder.count_longer(texts))


def _pixels(
    encoder: Clip | OpenClip, batch: Sequence[Pair], file: Path, unread: list[Refusal]
) -> tuple[list[Pair], Tensor]:
    """The pairs whose image decodes, with its pixels; the others are appended to ``unread``."""
    kept, images = [], []
    for pair in batch:
        try:
            images.append(open_image(pair.a))
        except UserError as error:
            unread.append(Refusal(str(file), pair.line, _column(pair, 0), str(error)))
        else:
            kept.append(pair)
    return kept, encoder.pixels(images) if images else torch.empty(0)


def _column(pair: Pair, side: int) -> str:
    return (("image", "caption") if pair.image else ("a", "b"))[side]
