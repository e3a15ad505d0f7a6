"""Dual encoders of images and captions by their two calls, images that do not decode, open_clip by a stand-in."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from isodistill.errors import UserError
from isodistill.influence import Influence
from isodistill.models.image_encoder import OpenClip, load_image_encoder, open_image
from isodistill.models.text_encoder import load_text_encoder

CONTEXT = 6


class StandIn(nn.Module):
    """What open_clip's models have in common: two methods and a logit scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual, self.text = nn.Linear(12, 4), nn.Embedding(50, 4)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.visual(pixels.flatten(1))

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        assert ids.shape[1] == CONTEXT
        return self.text(ids).mean(1)


class Words:
    """Token ids by the length of words, 49 at the end, cut and padded with 0, as open_clip's tokenizers do."""

    context_length = CONTEXT

    def __call__(self, texts: list[str], context_length: int = CONTEXT) -> torch.Tensor:
        rows = torch.zeros(len(texts), context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [1, *(2 + len(word) for word in text.split()), 49]
            ids = ids if len(ids) <= context_length else [*ids[: context_length - 1], 49]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def preprocess(image: Image.Image) -> torch.Tensor:
    return torch.tensor(list(image.resize((2, 2)).tobytes())).float().view(3, 2, 2) / 255


@pytest.fixture
def open_clip(monkeypatch) -> OpenClip:
    def create(name: str, pretrained: str | None) -> tuple[nn.Module, object]:
        if (name, pretrained) != ("ViT-tiny", "here"):
            raise RuntimeError(f"no {name}")
        return StandIn(), preprocess

    stand_in = SimpleNamespace(create_model_from_pretrained=create, get_tokenizer=lambda name: Words())
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    return load_image_encoder("open_clip:ViT-tiny@here")


def images(n: int) -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), (40 * i, 255 - 40 * i, 7 * i)) for i in range(n)]


def test_open_clip_is_read_by_the_same_two_calls_and_scored(open_clip):
    captions = ["a", "a bb", "ccc a", "dd dd dd"]
    pixels = open_clip.pixels(images(4))
    assert torch.equal(
        open_clip.encode_a(pixels), open_clip.model.encode_image(torch.stack([*map(preprocess, images(4))]))
    )
    assert open_clip.count_longer([*captions, "a b c d", "a b c d e"]) == 1  # with both ends: six tokens, and seven
    influence = Influence(
        open_clip, ["model.visual.*", "model.logit_scale"], pixels, captions, [torch.arange(4)],
        temperature="model.logit_scale", delta=1.0,
    )  # fmt: skip
    q = influence.theta + 1
    loop = torch.stack([influence.removal_gradient(torch.arange(4) == n) @ q for n in range(4)])
    assert torch.allclose(influence.score_all(q).float(), loop, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_loaded_is_told(monkeypatch, open_clip):
    with pytest.raises(UserError, match="no other"):
        load_image_encoder("open_clip:other@here")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="pip install open_clip_torch"):
        load_image_encoder("open_clip:ViT-tiny@here")
    for load in (load_image_encoder, load_text_encoder):
        with pytest.raises(UserError, match="no folder /nowhere"):
            load("/nowhere")


def test_a_folder_that_is_no_clip_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(UserError, match="could not be loaded"):
        load_image_encoder(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n and no more", b"GIF89a"])
def test_files_that_do_not_decode_are_told(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.png does not decode"):
        open_image(tmp_path / "x.png")


def test_images_of_every_mode_are_read_as_rgb_and_missing_ones_are_told(tmp_path):
    for mode in ("L", "RGBA", "P", "1", "I;16", "CMYK"):
        file = tmp_path / f"{mode.replace(';', '')}.{'tiff' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (3, 2)).save(file)
        assert (open_image(file).mode, open_image(file).size) == ("RGB", (3, 2))
    with pytest.raises(UserError, match="no file"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(UserError, match="does not decode"):
        open_image(tmp_path)  # a folder
