"""The study of VCRD: what is planted, who judges it how, and the chance that a scorer ranks it."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from isodistill.data.rows import Row
from isodistill.teachers.base import Sampling
from isodistill.validity import Action, JudgeScorer

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture
def vcrd(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("vcrd")


def test_a_flawed_trace_is_wrong_at_the_planted_sums_alone(vcrd: ModuleType) -> None:
    rows = vcrd.problems(200, 0, flawed=True, prefix="t")
    seen = set()
    for row in rows:
        for a, sign, b, c in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", row.completion):
            off = int(c) - (int(a) + int(b) if sign == "+" else int(a) - int(b))
            seen.add((sign == "-" and int(b) in (7, 8, 9), off))
    assert seen == {(True, 1), (False, 0)}
    assert any(f"answer is {row.answer}." not in row.completion for row in rows)


def test_judges_are_as_good_as_they_are_said_to_be(vcrd: ModuleType) -> None:
    row = Row(id="a", prompt="30 - 8 + 2")
    steps = ["30 - 8 = 22.", "30 - 8 = 23.", "22 + 2 = 24.", "22 + 2 = 25.", "The answer is 24."]
    actions = [Action(row, "", step, "", ends=False) for step in steps]
    assert JudgeScorer(vcrd.Judge("right"), workers=1).score(actions) == [1.0, 0.0, 1.0, 0.0, 0.5]
    fooled = vcrd.Judge("fooled", bias=1, biased=vcrd.PLANTED)
    assert JudgeScorer(fooled, workers=1).score(actions) == [0.0, 1.0, 1.0, 0.0, 0.5]
    many = [Action(row, str(n), "30 - 8 = 22.", "", ends=False) for n in range(400)]
    careless = JudgeScorer(vcrd.Judge("careless", careless=0.25), workers=1)
    marks = careless.score(many)
    assert 0.7 < sum(marks) / 400 < 0.8
    assert marks == careless.score(many)
    assert vcrd.Judge("right").answer([{"content": "hm"}], Sampling()).texts == ("5",)


def test_auroc_is_the_chance_that_a_planted_step_is_ranked_below(vcrd: ModuleType, tmp_path: Path) -> None:
    rows = [Row(id="a", prompt="?", completion="30 - 8 = 23. 23 + 2 = 25. 25 - 3 = 22. The answer is 22.")]
    file = tmp_path / "steps.jsonl"
    for deltas, expected in (
        ([-1.0, 0.5, 1.0, -1.0], 1.0), ([1.0, 0.5, 0.0, -1.0], 0.0), ([0.5, 0.5, 0.0, 0.0], 0.25),
    ):  # fmt: skip
        file.write_text(json.dumps({"row": "a", "drawn": [0, 1, 2, 3], "deltas": deltas}) + "\n")
        assert vcrd.auroc_of(file, rows) == expected
    assert vcrd.auroc_of(tmp_path / "none.jsonl", rows) is None


def test_one_token_of_a_program_is_planted_and_none_of_its_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDIES))
    code = importlib.import_module("vcrd_code")
    text = "```python\ndef f(x):\n    if x < 10 and True:\n        return 'a < b + 1'\n    return -x\n```"
    found = list(code.changes(text))
    assert [(old, new) for _, old, new in found] == [
        ("<", "<="), ("10", "11"), ("and", "or"), ("True", "False"), ("-", "+"),
    ]  # fmt: skip
    assert all(text[at:].startswith(old) for at, old, _ in found)
    run = {"planted": [["r", "p"]] * 4, "proposed": ["r", "p", "", "s"], "validities": {"n": [[1, 0, 0.5, 0.25]] * 4}}
    assert code.deltas(run, "n") == ([0, 0.5, 0, 0.5], [-0.25, 0, 0, -0.25])
