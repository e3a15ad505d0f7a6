"""The data section: counts, balance, lengths, licences, overlap and examples, from the files of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isodistill.errors import UserError
from isodistill.report.data import data_section
from isodistill.report.tables import DASH


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    (folder / "problems").mkdir(exist_ok=True)
    for name, rows in splits.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "problems" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def row(name: str, domain: str | None = "law", **more: Any) -> dict[str, Any]:
    return {"id": name, "prompt": "three words here", "completion": "two words", "domain": domain, **more}


def cells(table: Any) -> dict[str, list[str]]:
    return {row.label: [cell.text for cell in row.cells] for row in table.rows}


def test_counts_lengths_and_balance(tmp_path: Path) -> None:
    train = [row("a", set_id="s"), row("b", "tax", set_id="s"), row("c", set_id="t", prompt="one " * 9)]
    chat = [{"role": "user", "content": "four words are here"}]
    found = data_section(write(tmp_path, id=[row("d", prompt=chat, completion=None)], train=train, refused=[{"x": 1}]))
    assert found["splits"].columns == ["train", "id"]
    assert cells(found["splits"]) == {
        "Rows": ["3", "1"],
        "Isomer sets": ["2", "–"],
        "Structures": ["–", "–"],
        "Words in a prompt": ["3, 3, 9", "4, 4, 4"],
        "Words in a completion": ["2, 2, 2", "–"],
    }
    assert cells(found["balance"]) == {"law": ["2", "1"], "tax": ["1", "–"]}
    assert found["balance"].rows[0].cells[0].interval == "66.7 %"
    assert [example["domain"] for example in found["examples"]] == ["law", "tax"]
    assert found["overlap"] is None


def test_licences_are_those_that_were_given(tmp_path: Path) -> None:
    assert "Nobody said" in data_section(write(tmp_path, train=[row("a")]))["licences"]
    some = write(tmp_path, train=[row("a", licence="MIT"), row("b", licence="MIT"), row("c")])
    assert data_section(some)["licences"] == "Licence, as given with the data: MIT (2 rows), none named (1 rows)."


def test_overlap_is_shown_with_examples(tmp_path: Path) -> None:
    match = {"train_id": "a", "split": "id", "eval_id": "e", "shared": "the shared words"}
    overlap = {"n": 13, "n_train": 9, "n_dropped": 0, "sets": {"id": {"n_rows": 4, "exact": 1, "ngram": 2}}}
    write(tmp_path, train=[row("a")])
    (tmp_path / "problems" / "overlap.json").write_text(json.dumps(overlap | {"matches": [match] * 9}))
    found = data_section(tmp_path)["overlap"]
    assert cells(found["table"]) == {"Evaluation rows": ["4"], "The same prompt": ["1"], "13 words in a row": ["2"]}
    assert found["sentence"] == "9 training rows were compared before training. None was left out."
    assert found["examples"] == [match] * 5


def test_where_teachers_wrote_the_traces_they_are_what_is_shown(tmp_path: Path) -> None:
    write(tmp_path, train=[row("a", completion=None), row("b", completion=None)])
    (tmp_path / "taught").mkdir()
    (tmp_path / "taught" / "train.jsonl").write_text(json.dumps(row("a", completion="said by a teacher")) + "\n")
    overlap = {"n": 13, "n_train": 1, "n_dropped": 0, "sets": {"id": {"n_rows": 4, "exact": 0, "ngram": 1}}}
    for part, n_train in (("problems", 7), ("taught", 1)):
        text = json.dumps(overlap | {"matches": [], "n_train": n_train})
        (tmp_path / part / "overlap.json").write_text(text)
    found = data_section(tmp_path)
    assert [example["completion"] for example in found["examples"]] == ["said by a teacher"]
    assert found["overlap"]["sentence"].startswith("1 training rows were compared")
    assert found["splits"].columns == found["balance"].columns == ["train", "train, taught"]
    words = {each.label: [cell.text for cell in each.cells] for each in found["splits"].rows}
    assert (words["Rows"], words["Words in a completion"]) == (["2", "1"], [DASH, "4, 4, 4"])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, train=[row("a")])
    (tmp_path / "problems" / "train.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.jsonl, line 1"):
        data_section(tmp_path)
