"""``isodistill audit`` of images and captions with a tiny CLIP: swaps found, what cannot be read listed, thumbnails."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from isodistill.cli import app
from isodistill.errors import UserError
from isodistill.influence import Fit, Influence
from isodistill.models.image_encoder import load_image_encoder
from isodistill.models.text_encoder import load_text_encoder
from isodistill.pipeline import audit_pairs

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
PAIRS = list(product(COLOURS, COLOURS))
SMALL = Fit(epochs=15, batch_size=21, lr=3e-2, temperature=0.3, delta=1.0, recorded=1, probes=8)
N, N_SWAPPED = 63, 7


def image_of(top: str, bottom: str, shade: int) -> Image.Image:
    """The upper half in one colour, the lower in another, each a little darker with every shade."""
    image = Image.new("RGB", (16, 16))
    for y, name in enumerate((top, bottom)):
        image.paste(tuple(max(0, channel - 4 * shade) for channel in COLOURS[name]), (0, 8 * y, 16, 8 * y + 8))
    return image


def rows_of(folder: Path, n: int, first_shade: int) -> list[dict]:
    """The nine pairs of colours in turn, as files and rows with paths relative to the folder."""
    (folder / "images").mkdir(exist_ok=True)
    rows = []
    for i in range(n):
        top, bottom = PAIRS[i % 9]
        name = f"images/{first_shade}-{i}.png"
        image_of(top, bottom, first_shade + i // 9).save(folder / name)
        rows.append({"id": f"{first_shade}-{i}", "image": name, "caption": f"{top} top and {bottom} bottom"})
    return rows


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def done(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rows = rows_of(folder, N, 0)
    captions = [row["caption"] for row in rows[:N_SWAPPED]]
    for n, row in enumerate(rows):
        row["planted"] = n < N_SWAPPED
        if n < N_SWAPPED:
            row["caption"] = captions[(n + 1) % N_SWAPPED]
    rows[20]["caption"] += " and" * 9
    (folder / "images" / "note.png").write_text("no image", encoding="utf-8")
    cut = (folder / rows[30]["image"]).read_bytes()[:50]
    (folder / "images" / "cut.png").write_bytes(cut)
    for name in ("note", "cut", "gone"):
        rows.append({"id": name, "image": f"images/{name}.png", "caption": "red top and blue bottom"})
    pairs, queries = written(folder / "pairs.jsonl", rows), written(folder / "clean.jsonl", rows_of(folder, 18, 20))
    audit_pairs(pairs, queries, str(tiny_clip), folder / "out", "isodistill audit", how=SMALL)
    return folder / "out", rows, json.loads((folder / "out" / "audit.json").read_text(encoding="utf-8"))


def test_swapped_captions_are_found_better_than_chance(done):
    found = done[2]["planted"]
    print(found)
    assert found["n_planted"] == N_SWAPPED
    assert found["score"]["auroc"] > 0.65
    assert found["similarity"]["auroc"] > 0.7


def test_what_cannot_be_read_is_counted_listed_and_not_kept(done):
    folder, rows, summary = done
    assert (summary["n_pairs"], summary["n_unread"], summary["n_longer"]) == (N, 3, 1)
    unread = lines(folder / "audit-unread.jsonl")
    assert [row["line"] for row in unread] == [N + 1, N + 2, N + 3]
    assert [row["column"] for row in unread] == ["image"] * 3
    assert "does not decode" in unread[0]["reason"]
    assert "does not decode" in unread[1]["reason"]
    assert "no file" in unread[2]["reason"]
    cleaned = lines(folder / "audit-cleaned.jsonl")
    assert [{key: row[key] for key in row if key != "keep"} for row in cleaned] == rows
    assert [row["keep"] for row in cleaned[-3:]] == [False] * 3


def test_the_page_shows_thumbnails_and_the_rows_that_were_not_read(done):
    page = (done[0] / "audit.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') >= 30
    assert "gone.png" in page
    assert 'src="http' not in page


def test_equal_captions_are_right_answers(done):
    summary = done[2]
    n_captions = len({row["caption"] for row in rows_of(done[0], 18, 40)})
    assert n_captions == 9  # each stands twice among the queries
    assert len(summary["explained"]["mistakes"]) < 9


def test_nothing_that_decodes_is_an_error_that_names_the_first(tiny_clip, tmp_path):
    rows = [{"image": f"{n}.png", "caption": "red"} for n in range(3)]
    clean = rows_of(tmp_path, 4, 0)
    result = CliRunner().invoke(
        app,
        ["audit", str(written(tmp_path / "pairs.jsonl", rows)), "--queries", str(written(tmp_path / "c.jsonl", clean)),
         "--model", str(tiny_clip), "--out", str(tmp_path / "out")],
    )  # fmt: skip
    assert result.exit_code == 2
    assert "None of the 3 pairs could be read" in result.output
    assert "line 1, column image" in result.output
    with pytest.raises(UserError, match="is a CLIP"):
        load_text_encoder(str(tiny_clip))


def test_loaded_encoders_are_scored_in_parameters_of_their_own(tiny_clip, tiny_text_encoder):
    clip, bert = load_image_encoder(str(tiny_clip)), load_text_encoder(str(tiny_text_encoder))
    captions = [f"{top} top and {bottom} bottom" for top, bottom in PAIRS[:4]]
    pixels = clip.pixels([image_of(*colours, 0) for colours in PAIRS[:4]])
    texts = ["left1 left2", "left3", "left4 left5", "left6"], ["right1", "right3 right4", "right5", "right6"]
    how = {"delta": 1.0, "segments": [torch.arange(4)]}
    for influence in (
        Influence(clip, ["*v_proj*", "model.logit_scale"], pixels, captions, temperature="model.logit_scale", **how),
        Influence(bert, ["*attention.self.query*"], *texts, temperature=0.3, **how),
    ):
        q = influence.theta / influence.theta.norm()
        loop = torch.stack([influence.removal_gradient(torch.arange(4) == n) @ q for n in range(4)])
        assert loop.abs().max() > 1e-3
        assert torch.allclose(influence.score_all(q).float(), loop, rtol=1e-3, atol=1e-4)
