"""The demo with the real student, cut to a few steps and problems."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isodistill.models.load import load_student

pytestmark = pytest.mark.e2e

FEW = ["train.steps=2", "train.save_steps=1", "isomers.n_sets=40", "evaluate.max_sets=1", "evaluate.max_new_tokens=24"]


def demo(folder: Path) -> subprocess.CompletedProcess[str]:
    overrides = [word for setting in FEW for word in ("--set", setting)]
    return subprocess.run(
        [sys.executable, "-m", "isodistill", "demo", "--out", str(folder), *overrides],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def test_the_demo_walks_the_whole_way_and_then_skips_it(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    first = demo(folder)
    assert first.returncode == 0, first.stderr[-3000:]
    assert first.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}"

    results = json.loads((folder / "results.json").read_text())
    assert results["student"] == "SmolLM2-135M-Instruct, dequantised from Q4_1"
    assert (results["method"], results["tier"], results["train"]["steps"]) == ("iga", "F", 2)
    assert set(results["splits"]["ood"]["acc_by_domain"]) == {"cooking", "sports", "finance"}
    assert results["splits"]["ood"]["n_items"] == 3
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison["baseline"] == "erm"
    assert len(comparison["differences"]["iga"]["ood"]["acc_macro"]) == 3

    page = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']https?:|<script""", page), "the report needs the network"
    adapter = folder / "student" / "adapter_model.safetensors"
    trained = adapter.stat().st_mtime_ns

    again = demo(folder)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Training" not in again.stdout
    assert adapter.stat().st_mtime_ns == trained


def test_the_packaged_gguf_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISODISTILL_CACHE", str(tmp_path))
    first = load_student("smollm2-135m")
    assert first.tokenizer.chat_template is not None

    def converted(*args: object, **kwargs: object) -> None:
        raise AssertionError("the GGUF file was converted again")

    # Only the conversion builds a model from its config.
    monkeypatch.setattr("isodistill.models.load.AutoModelForCausalLM.from_config", converted)
    second = load_student("smollm2-135m")
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])
