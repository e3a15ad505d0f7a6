"""The example's teacher: almost the student's answers, and Flex-KD finds the student's own dimensions in it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from isodistill.models.load import load_student
from isodistill.terms.scoring import DimensionScores, hidden_gradient, top_dimensions


def test_the_students_own_dimensions_are_found(
    tiny_model: LlamaForCausalLM, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    path = Path(__file__).resolve().parents[2] / "examples" / "wider_teacher.py"
    spec = importlib.util.spec_from_file_location("wider_teacher", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["wider_teacher.py", str(tmp_path / "wide"), str(tmp_path / "student")])
    module.main()
    teacher = load_student(str(tmp_path / "wide")).model
    ids = torch.randint(5, 390, (4, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, wide = tiny_model(ids).logits.log_softmax(-1), teacher(ids).logits.log_softmax(-1)
    assert float((own - wide).abs().max()) < 0.2
    g, h = hidden_gradient(teacher, {"input_ids": ids, "labels": ids})
    scores = DimensionScores("abs", 36)
    scores.add(g.flatten(0, 1), h.flatten(0, 1), 0)
    assert top_dimensions(scores.scores(), 32).tolist() == list(range(32))
    assert float(scores.variance()[32:].min()) > 0.0  # the others are noise, not constants
