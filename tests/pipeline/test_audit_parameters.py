"""``isodistill audit --parameters``: LoRA in the encoder, or a named subset of it, instead of heads over it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from isodistill.cli import app
from isodistill.data.pairs import load_pairs
from isodistill.influence import Fit, divide, leave_out, retrieve
from isodistill.pipeline import audit_pairs
from isodistill.pipeline.audit_model import ENCODER_FIT, audit_model, parameter_patterns
from isodistill.pipeline.pair_features import load_encoder, read_features

N, N_SWAPPED = 48, 6
QUICK = Fit(epochs=10, batch_size=24, lr=2e-2, temperature=0.3, delta=1.0, recorded=1, damping=1.0, probes=2)


def pairs_of(n: int, seed: int) -> list[dict]:
    """Two words to the left, the words of the same numbers to the right."""
    numbers = [(i, j) for i in range(12) for j in range(i)]
    random.Random(0).shuffle(numbers)
    chosen = numbers[:n] if seed == 1 else numbers[-n:]
    return [
        {"id": f"{seed}-{n}", "a": f"left{i} left{j}", "b": f"right{j} right{i}"} for n, (i, j) in enumerate(chosen)
    ]


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def files(folder: Path) -> list[Path]:
    """Pairs of which the first have each other's second text, and clean ones."""
    rows = pairs_of(N, 1)
    texts = [row["b"] for row in rows[:N_SWAPPED]]
    for n in range(N_SWAPPED):
        rows[n]["b"] = texts[(n + 1) % N_SWAPPED]
    rows = [row | {"planted": n < N_SWAPPED} for n, row in enumerate(rows)]
    return [written(folder / "pairs.jsonl", rows), written(folder / "clean.jsonl", pairs_of(12, 2))]


def audit(folder: Path, encoder: Path, *more: str) -> tuple[int, str]:
    pairs, clean = files(folder)
    arguments = ["audit", pairs, "--queries", clean, "--model", encoder, "--out", folder / "out", *more]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_lora_in_the_encoder_is_fitted_and_finds_swapped_pairs(tiny_text_encoder, tmp_path):
    pairs, clean = files(tmp_path)
    audit_pairs(pairs, clean, str(tiny_text_encoder), tmp_path / "out", "audit", parameters="lora", how=QUICK)
    summary = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert summary["parameters"] == "lora"
    assert summary["removal"] is None  # not asked for: each fit of the curve would read all texts
    assert summary["planted"]["score"]["auroc"] > 0.7
    assert summary["planted"]["loss"]["auroc"] > 0.7
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "fitted in lora" in page
    assert "--curve-pairs N" in page
    assert summary["residual"] > 0.1  # EK-FAC takes the layers apart
    assert f"an approximate inverse that leaves a residual of {summary['residual']:.3g}" in page
    assert f"an approximate inverse that leaves a residual of {summary['explained']['residual']:.3g}; what it" in page


@pytest.mark.parametrize(("given", "n_theta"), [("lora", 2 * 2 * 8 * 32), ("*layer.0.output*bias,*pooler*", None)])
def test_theta_is_what_was_asked_for_and_every_fit_starts_where_the_first_did(
    tiny_text_encoder, tmp_path, given, n_theta
):
    encoder = load_encoder(str(tiny_text_encoder), images=False)
    pairs, clean = files(tmp_path)
    read, asked = (read_features(encoder, load_pairs(file), file) for file in (pairs, clean))
    patterns = parameter_patterns(encoder, given)
    names = [name for name, _ in encoder.named_parameters()]
    model = audit_model(encoder, patterns, read, asked, QUICK)
    epochs = divide(torch.arange(N), model.how)
    one = model.fit(epochs)
    model.fit(leave_out(epochs, torch.arange(5)))
    again = model.fit(epochs)
    assert torch.equal(one.theta, again.theta)
    theta = one.named(one.theta)
    if n_theta:
        assert len(one.theta) == n_theta
        assert all("lora_" in name for name in theta)
    else:
        wanted = [name for name in names if "pooler" in name or (".layer.0.output" in name and "bias" in name)]
        assert list(theta) == [f"encoder.{name}" for name in wanted]
    assert retrieve(one, model.query_a, model.query_b).loss.isfinite().all()


def test_images_are_read_from_their_files_and_clip_keeps_its_temperature(tiny_clip, tmp_path):
    for n in range(12):
        Image.new("RGB", (16, 16), (20 * n, 255 - 20 * n, 40)).save(tmp_path / f"{n}.png")
    words = ["red", "green", "blue", "top"]
    rows = [{"image": f"{n}.png", "caption": f"{words[n % 4]} {words[(n // 4) % 4]}"} for n in range(12)]
    pairs, clean = written(tmp_path / "p.jsonl", rows[:8]), written(tmp_path / "c.jsonl", rows[8:])
    for parameters, n in (("lora", 0), ("*visual_projection*", 8)):
        audit_pairs(pairs, clean, str(tiny_clip), tmp_path / "out", "audit", parameters=parameters, curve_pairs=n)
        summary = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
        assert summary["parameters"] == parameters
        assert summary["fit"]["temperature"] == pytest.approx(0.07, rel=1e-2)  # e^-2.6592
        assert summary["fit"]["epochs"] == ENCODER_FIT.epochs
        assert (summary["removal"] or {"n_pairs": 0})["n_pairs"] == n


def test_names_that_do_not_exist_are_told_before_anything_is_read(tiny_text_encoder, tmp_path):
    code, output = audit(tmp_path, tiny_text_encoder, "--parameters", "*lora_*")
    assert code == 2
    assert "names no parameter of the encoder with '*lora_*'" in output
    assert "features" not in output
    code, output = audit(tmp_path, tiny_text_encoder, "--parameters", "*pooler*,head.*")
    assert code == 2
    assert "'head.*'" in output
    code, output = audit(tmp_path, tiny_text_encoder, "--curve-pairs", "1")
    assert code == 2
    assert "--curve-pairs is a number of pairs, two or more" in output
