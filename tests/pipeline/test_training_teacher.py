"""Who stands beside the student in training: a teacher asked once and kept on disk, and a judge of steps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.models.tiny import make_tiny_student
from isodistill.pipeline.teachers import training_scorer, training_teacher
from isodistill.recipe import Recipe, parse_recipe
from isodistill.teachers.logits import LogitCache
from isodistill.training import DistillConfig
from isodistill.validity import JudgeScorer

ROWS = [Row(id=str(n), prompt=f"{n} + 1?", completion=f"{n} + 1 = {n + 1}.") for n in range(3)]


def test_a_teacher_is_asked_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = make_tiny_student([f"{row.prompt} {row.completion}" for row in ROWS], 0)
    config = DistillConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    recipe = Recipe(student="tiny", teacher="self", method="fkl", teacher_top_k=4)
    for asked in (3, 0):
        cache, tokenizer = training_teacher(recipe, tmp_path, student, ROWS, config)
        assert isinstance(cache, LogitCache)
        assert (len(cache), cache.k, tokenizer) == (3, 4, None)
        assert f"asked for {asked} of 3 rows" in capsys.readouterr().out
    live = training_teacher(Recipe(teacher="self", method="fkl"), tmp_path, student, ROWS, config)
    assert live == ("self", None)
    assert training_teacher(Recipe(teacher="self", method="erm"), tmp_path, student, ROWS, config) == (None, None)
    wider = Recipe(student="tiny", teacher="self", method="fkl", teacher_top_k=5)
    with pytest.raises(UserError, match="were made otherwise: k was 4 and is 5"):
        training_teacher(wider, tmp_path, student, ROWS, config)
    with pytest.raises(UserError, match="at least 0"):
        Recipe(teacher_top_k=-1)


def recipe_of(scorer: dict[str, Any]) -> Recipe:
    return parse_recipe({"method": "vcrd", "objective": {"steps": {"scorer": scorer}}})


def test_a_judge_is_a_teacher_of_any_kind(tmp_path: Path) -> None:
    file = tmp_path / "marks.jsonl"
    file.write_text(json.dumps({"prompt": "?", "completion": "10"}) + "\n")
    judge = training_scorer(recipe_of({"name": "judge", "teacher": {"kind": "replay", "files": str(file)}}))
    assert isinstance(judge, JudgeScorer)
    assert re.fullmatch(r"judge/replay:marks\.jsonl@[0-9a-f]{8}/8", judge.name)
    assert training_scorer(recipe_of({"name": "rule"})) is None
    assert training_scorer(Recipe(method="erm")) is None
    for scorer, said in (
        ({"name": "judge"}, "A judge is given as"),
        ({"name": "judge", "teacher": {"kind": "local"}}, "needs model"),
        ({"name": "judge", "teacher": {"kind": "replay", "files": str(file)}, "n": 3}, "A judge is given as"),
    ):
        with pytest.raises(UserError, match=said):
            training_scorer(recipe_of(scorer))
