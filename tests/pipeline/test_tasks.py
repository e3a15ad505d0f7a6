"""Three task families by one walk: mathematics, code and instructions, each judged in its own way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.evaluation import programs
from isodistill.evaluation.traces import judge
from isodistill.pipeline import run_recipe, teach_run

from .conftest import COMMAND, recipe_of

WriteRows = Callable[..., Path]
NO_COMMA = json.dumps([{"id": "punctuation:no_comma"}, {"id": "startend:quotation"}])


def rows(n: int = 6) -> list[dict[str, Any]]:
    """One problem of each family per number; the last ones are the test."""
    family = [
        {"domain": "mathematics", "answer_type": "number", "prompt": "What is {n} plus 1?", "answer": "{m}",
         "completion": "{n} + 1 = {m}. The answer is {m}."},
        {"domain": "code", "answer_type": "code", "prompt": "Write a function plus that adds {n}.",
         "answer": "assert plus(1) == {m}", "completion": "```python\ndef plus(x):\n    return x + {n}\n```"},
        {"domain": "instructions", "answer_type": "instructions", "prompt": "Say {n} in words.", "answer": NO_COMMA,
         "completion": '"It is {n}"'},
    ]  # fmt: skip
    return [
        {key: value.replace("{n}", str(i)).replace("{m}", str(i + 1)) for key, value in one.items()}
        | {"split": "train" if i < n - 2 else "id", "id": f"{one['domain']}-{i}"}
        for i in range(n)
        for one in family
    ]


@pytest.mark.usefixtures("sandbox")
def test_one_recipe_trains_and_judges_all_three(tmp_path: Path, write_rows: WriteRows) -> None:
    recipe = recipe_of(
        problems=str(write_rows(rows())), method="erm_pooled", baseline=None,
        split={"valid": 0.0}, evaluate={"max_new_tokens": 12, "temperature": 0.8, "n_samples": 2},
    )  # fmt: skip
    page = run_recipe(recipe, tmp_path / "run", COMMAND).read_text()
    numbers = json.loads((tmp_path / "run" / "results.json").read_text())["splits"]["id"]
    assert set(numbers["acc_by_domain"]) == {"mathematics", "code", "instructions"}
    assert numbers["n_samples"] == 2
    assert set(numbers["pass_at_k"]) == {"1", "2"}
    records = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    for record in records:
        judged = record["answer_type"] in ("code", "instructions")
        assert (record["reason"] is not None) == (judged and record["outcome"] != "correct")
    after = [r for r in records if r["stage"] == "after" and r["reason"]]
    assert sum(numbers["reasons"].values()) >= len(after) > 0
    assert "Why answers were not right" in page
    assert next(iter(numbers["reasons"])) in page


@pytest.mark.usefixtures("sandbox")
def test_vcrd_weighs_statements_of_code_by_the_tests_that_hold(tmp_path: Path, write_rows: WriteRows) -> None:
    """Step mode on programs: cut into statements, the student's proposals completed and tried in the sandbox."""
    program = "```python\ndef plus(x):\n    y = [\n        {n}]\n    return x + y[0]\n```"
    code = [
        {"id": f"c{n}", "domain": "code", "answer_type": "code", "prompt": f"Write a function plus that adds {n}.",
         "answer": f"assert plus(1) == {n + 1}", "completion": program.replace("{n}", str(n)),
         "split": "train" if n < 2 else "id"}
        for n in range(4)
    ]  # fmt: skip
    scorer = {"name": "rollout", "n": 1, "max_tokens": 6}
    recipe = recipe_of(
        problems=str(write_rows(code)), method="vcrd", teacher="self", baseline=None, split={"valid": 0.0},
        objective={"steps": {"segment": "statements", "scorer": scorer, "n_prefix": 99, "max_tokens": 6}},
        evaluate={"max_new_tokens": 6},
    )  # fmt: skip
    page = run_recipe(recipe, tmp_path / "run", COMMAND).read_text()
    measured = [json.loads(line) for line in (tmp_path / "run/validity/steps.jsonl").read_text().splitlines()]
    assert {record["row"] for record in measured} == {"c0", "c1"}
    for record in measured:
        assert len(record["firsts"]) == 5  # fence, head, the list over two lines, return, fence
        # The trace passes its tests where it ends; what a tiny student wrote does not.
        assert record["deltas"][-1] == 1.0
        assert record["weights"][-1] > 1.7
    assert "Where the teacher's pull goes" in page


@pytest.mark.usefixtures("sandbox")
def test_a_trace_of_a_teacher_is_judged_by_its_tests_and_its_instructions() -> None:
    code = Row(id="c", prompt="Add one.", answer="assert plus(1) == 2", answer_type="code")
    assert judge(code, "```python\ndef plus(x): return x + 1\n```", "stop", check_steps=True).verdict == "correct"
    wrong = judge(code, "```python\ndef plus(x): return x\n```", "stop", check_steps=True)
    assert (wrong.verdict, wrong.reason) == ("wrong", "a test does not hold")
    asked = Row(id="i", prompt="Скажи", answer=NO_COMMA, answer_type="instructions")
    assert judge(asked, '"Ja"', "stop", check_steps=True).verdict == "correct"  # the language is no rule of it
    assert judge(asked, "Ja, ja", "stop", check_steps=True).reason == "punctuation:no_comma; startend:quotation"


def test_where_no_sandbox_can_be_made_the_run_stops_before_training(
    tmp_path: Path, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "why_no_sandbox", lambda: "no sandbox can be made: unshare")
    recipe = recipe_of(problems=str(write_rows(rows())), method="erm_pooled", baseline=None, split={"valid": 0.0})
    with pytest.raises(UserError, match="no sandbox can be made: unshare"):
        run_recipe(recipe, tmp_path / "run", COMMAND)
    assert not (tmp_path / "run" / "student").exists()
    teachers = {"a": {"model": "m", "base_url": "http://127.0.0.1:1/v1"}}
    taught = recipe_of(problems=recipe.problems, split={"valid": 0.0}, teach={"teachers": teachers})
    with pytest.raises(UserError, match="no sandbox can be made: unshare"):
        teach_run(taught, tmp_path / "taught", dry=False)


def test_a_row_whose_tests_or_instructions_say_nothing_is_named(tmp_path: Path, write_rows: WriteRows) -> None:
    bad = rows()
    bad[-2] |= {"answer": "print('no test')[", "id": "bad-code"}
    bad[-1] |= {"answer": '[{"id": "punctuation:no_colon"}]', "id": "bad-instruction"}
    recipe = recipe_of(problems=str(write_rows(bad)), method="erm_pooled", baseline=None, split={"valid": 0.0})
    with pytest.raises(UserError, match="2 of 6 rows cannot be used") as error:
        run_recipe(recipe, tmp_path / "run", COMMAND)
    assert "bad-code, column answer: holds tests that are no Python" in str(error.value)
    assert "bad-instruction, column answer: names the instruction 'punctuation:no_colon'" in str(error.value)


def test_an_unknown_data_set_is_named(tmp_path: Path) -> None:
    recipe = recipe_of(problems="real:mbpp+mmlu", real_data=str(tmp_path))
    with pytest.raises(UserError, match="no data set mbpp in"):
        run_recipe(recipe, tmp_path / "run", COMMAND)
    with pytest.raises(UserError, match=r"real:mmlu is no data set that is known: .*humaneval, ifeval, mbpp"):
        run_recipe(recipe_of(problems="real:mmlu", real_data=str(tmp_path)), tmp_path / "run", COMMAND)
