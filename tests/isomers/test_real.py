from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.isomers.real import import_groups

ITEM = {
    "id": "x-0",
    "question": "Is Wren wooden?",
    "choices": ["True", "False"],
    "answer": "B",
    "answer_type": "choice",
    "rationale": "Wren is not wooden",
    "rationale_source": "template",
    "domain": "logic",
    "group": "g-1",
    "meta": {"surface": "animals"},
}


def write(path: Path, *items: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)


def groups_of(rows: list[Row], column: str) -> dict[str, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[getattr(row, column)].append(row)
    return groups


def test_an_item_becomes_a_row(tmp_path: Path) -> None:
    write(tmp_path / "prontoqa_isomers" / "dev.jsonl.gz", ITEM)
    assert import_groups("prontoqa_isomers", tmp_path) == [
        Row(
            id="x-0",
            prompt="Is Wren wooden?\nA) True\nB) False",
            completion="Wren is not wooden. The answer is B.",
            answer="B",
            answer_type="choice",
            set_id="g-1",
            domain="animals",
            structure_id="prontoqa_isomers/g-1",
            choices=("True", "False"),
            teacher="template",
            split="valid",
        )
    ]


def test_a_template_group_is_a_structure_and_has_no_domain(tmp_path: Path) -> None:
    item = ITEM | {"choices": None, "answer": "7", "answer_type": "number", "rationale": "3 + 4 = 7.", "group": "t-1"}
    write(tmp_path / "gsm_symbolic" / "train.jsonl.gz", item, item | {"id": "x-1", "rationale": None})
    first, second = import_groups("gsm_symbolic", tmp_path)
    assert (first.set_id, first.domain, first.structure_id, first.split) == (None, None, "gsm_symbolic/t-1", "train")
    assert first.completion == "3 + 4 = 7. The answer is 7."
    assert second.completion is None


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'gsm'.*gsm_symbolic"):
        import_groups("gsm", tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "coin_flip" / "train.jsonl.gz"))):
        import_groups("coin_flip", tmp_path)
    write(tmp_path / "prontoqa_isomers" / "test.jsonl.gz", ITEM, ITEM | {"id": "x-1", "answer": "C"})
    with pytest.raises(UserError, match=r"test\.jsonl\.gz, line 2, column answer"):
        import_groups("prontoqa_isomers", tmp_path)


def check_rows(rows: list[Row]) -> None:
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert row.completion.endswith(f". The answer is {row.answer}.")
        assert row.completion.count("The answer is") == 1
        assert row.completion == row.completion.strip()


@pytest.mark.real_data
def test_prontoqa(real_data: Path) -> None:
    rows = import_groups("prontoqa_isomers", real_data)
    check_rows(rows)
    assert len(rows) == 1200
    for members in groups_of(rows, "set_id").values():
        assert len({row.domain for row in members}) == 3
        assert len({(row.answer, row.choices, row.split, row.structure_id) for row in members}) == 1
        assert all(row.prompt.endswith("\nA) True\nB) False") for row in members)
        assert len({re.sub(r"\w+", "w", row.prompt) for row in members}) == 1


@pytest.mark.real_data
def test_gsm_symbolic(real_data: Path) -> None:
    rows = import_groups("gsm_symbolic", real_data)
    check_rows(rows)
    assert len(rows) == 1400
    groups = groups_of(rows, "structure_id")
    assert len(groups) == 75
    for members in groups.values():
        assert len({row.prompt for row in members}) == len(members) > 1
        assert len({row.split for row in members}) == 1
        assert {(row.set_id, row.domain) for row in members} == {(None, None)}


@pytest.mark.real_data
def test_coin_flip(real_data: Path) -> None:
    rows = import_groups("coin_flip", real_data)
    check_rows(rows)
    assert len(rows) == 906
    assert {row.split for row in rows} == {"train", "valid", "test"}
    for members in groups_of(rows, "structure_id").values():
        flips = {tuple(re.findall(r"(flips|does not flip) the coin", row.prompt)) for row in members}
        assert len(flips) == 1
        n_flips = next(iter(flips)).count("flips")
        assert {row.answer for row in members} == {"no" if n_flips % 2 else "yes"}
