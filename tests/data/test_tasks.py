"""Benchmarks as rows: small files in the form of the data sets, and the real ones where they are."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from isodistill.data.tasks import TASKS, load_task
from isodistill.errors import UserError
from isodistill.evaluation.answer import why_unverifiable
from isodistill.evaluation.programs import setup_and_tests

CODE = {"choices": None, "answer_type": "code", "rationale": None, "domain": "code", "group": None}
ITEMS: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "id": "g0", "question": "Six and four?", "answer": "10", "answer_type": "number", "choices": None,
        "group": "17", "rationale": "6 + 4 = 10.", "rationale_source": "human", "meta": {},
    },
    "humaneval": CODE | {
        "id": "h0",
        "question": "import math\n\ndef half(x):\n    return x / 2\n\ndef quarter(x):\n    '''A quarter.'''\n",
        "answer": "    return half(half(x))\n",
        "meta": {"entry_point": "quarter", "test": "def check(candidate):\n    assert half(candidate(8)) == 1\n"},
    },
    "mbpp": CODE | {
        "id": "m0", "question": "Write a function that adds.", "answer": "def add(a, b):\n    return a + b",
        "meta": {"test_setup": "", "tests": ["assert add(1, 2) == 3"], "challenge_tests": ["assert add(0, 0) == 0"]},
    },
    "ifeval": {
        "id": "i0", "prompt": "Say it without commas, twice.", "meta": {"key": 1},
        "instruction_id_list": ["punctuation:no_comma", "combination:two_responses"], "kwargs": [{}, {}],
    },
}  # fmt: skip


def write(folder: Path, name: str, split: str, items: list[dict[str, Any]]) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / name / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)


def test_mathematics_has_its_trace_and_its_number(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k", "train", [ITEMS["gsm8k"]])
    (row,) = load_task("gsm8k", tmp_path)
    assert (row.prompt, row.completion) == ("Six and four?", "6 + 4 = 10. The answer is 10.")
    assert (row.answer, row.answer_type, row.domain) == ("10", "number", "mathematics")
    assert (row.split, row.structure_id, row.set_id) == ("train", "gsm8k/17", None)


def test_a_function_to_complete_is_set_up_and_tests_with_the_helpers_that_they_call(tmp_path: Path) -> None:
    write(tmp_path, "humaneval", "test", [ITEMS["humaneval"]])
    (row,) = load_task("humaneval", tmp_path)
    setup, tests = setup_and_tests(str(row.answer))
    assert setup.strip() == ITEMS["humaneval"]["question"].strip()
    assert tests.splitlines()[:3] == ["import math", "def half(x):", "    return x / 2"]
    assert tests.strip().endswith("check(quarter)")
    assert "def quarter" not in tests
    assert str(row.completion).startswith("```python\nimport math")
    assert str(row.completion).endswith("half(x))\n```")
    assert (row.split, row.answer_type) == ("humaneval", "code")


def test_a_function_from_a_sentence_shows_its_tests_and_keeps_the_hard_ones(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path, "mbpp", split, [ITEMS["mbpp"] | {"id": split}])
    test, train = load_task("mbpp", tmp_path)
    assert (train.split, test.split) == ("train", "mbpp")
    assert "assert add(1, 2) == 3" in str(train.prompt)
    assert "add(0, 0)" not in str(train.prompt)
    assert setup_and_tests(str(train.answer))[1].split("\n")[1:] == ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]
    assert train.completion == "```python\ndef add(a, b):\n    return a + b\n```"


def test_instructions_become_one_list(tmp_path: Path) -> None:
    write(tmp_path, "ifeval", "test", [ITEMS["ifeval"]])
    (row,) = load_task("ifeval", tmp_path)
    assert json.loads(str(row.answer)) == [{"id": "punctuation:no_comma"}, {"id": "combination:two_responses"}]
    assert (row.answer_type, row.completion, row.split) == ("instructions", None, "ifeval")


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set mmlu; known are gsm8k"):
        load_task("mmlu", tmp_path)
    with pytest.raises(UserError, match=r"no data set mbpp in .*: expected files such as .*test\.jsonl\.gz"):
        load_task("mbpp", tmp_path)
    write(tmp_path, "mbpp", "test", [ITEMS["mbpp"], {"id": "m1", "question": "?", "answer": "x", "meta": {}}])
    with pytest.raises(UserError, match=r"test\.jsonl\.gz, line 2|test\.jsonl\.gz:2"):
        load_task("mbpp", tmp_path)


@pytest.mark.real_data
def test_every_item_of_the_real_data_sets_can_be_verified(real_data: Path) -> None:
    rows = [row for name in TASKS for row in load_task(name, real_data)]
    assert Counter(row.split for row in rows) == {
        "train": 7473 + 470, "gsm8k": 1019, "humaneval": 132, "mbpp": 306, "ifeval": 433,
    }  # fmt: skip
    assert [row.id for row in rows if why_unverifiable(row) is not None] == []
    assert len({row.id for row in rows}) == len(rows)
