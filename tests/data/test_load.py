from __future__ import annotations

import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.data.load import QUESTION_COLUMNS, TEMPLATE_COLUMNS, load_rows, write_refusals, write_rows
from isodistill.data.rows import Row, RowError, row_from_dict, row_to_dict
from isodistill.errors import UserError

RECORD = {"id": "a", "prompt": "2 + 2?", "completion": "The answer is 4.", "answer": "4", "answer_type": "number"}
QUESTION = {
    "id": "q",
    "question": "Which is red?",
    "choices": ["sky", "blood"],
    "answer": "B",
    "answer_type": "choice",
    "rationale": "Blood is red",
    "rationale_source": "human",
    "domain": "science",
    "group": "g1",
    "meta": {"template": "t1", "correct": True},
}


def jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# ---- formats ----


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.parquet", "rows.csv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    records = [{**RECORD, "id": f"r{i}", "answer": f"{i}.5", "domain": "N/A"} for i in range(3)]
    path = tmp_path / name
    table = datasets.Dataset.from_list(records)
    if name.endswith(".jsonl"):
        jsonl(path, records)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(jsonl(tmp_path / "plain", records).read_bytes()))
    elif name.endswith(".json"):
        path.write_text(json.dumps(records))
    else:
        (table.to_parquet if name.endswith("parquet") else table.to_csv)(str(path))
    expected = [Row(**record) for record in records]  # type: ignore[arg-type]
    assert load_rows(path).rows == expected
    assert load_rows(str(path)).rows == expected
    assert load_rows(table).rows == expected
    assert load_rows(records).rows == expected


def test_parquet_keeps_messages_and_choices(tmp_path: Path) -> None:
    record = {**RECORD, "prompt": [{"role": "user", "content": "2 + 2?"}], "choices": ["3", "4"]}
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([record]).to_parquet(str(path))
    (row,) = load_rows(path).rows
    assert row.prompt == ({"role": "user", "content": "2 + 2?"},)
    assert row.choices == ("3", "4")


def test_a_folder_is_the_union_of_its_files_and_a_split_picks_some(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [{**RECORD, "id": "1"}])
    jsonl(tmp_path / "test.jsonl", [{**RECORD, "id": "2"}])
    (tmp_path / "README.md").write_text("words")
    assert {row.id for row in load_rows(tmp_path).rows} == {"1", "2"}
    assert [row.id for row in load_rows(f"{tmp_path}:test").rows] == ["2"]
    with pytest.raises(UserError, match=r"no file for the split 'dev'.*test\.jsonl, train\.jsonl"):
        load_rows(f"{tmp_path}:dev")


def test_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([RECORD])
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "two"))
    assert [row.id for row in load_rows(tmp_path / "one").rows] == ["a"]
    assert [row.id for row in load_rows(f"{tmp_path / 'two'}:test").rows] == ["a"]
    with pytest.raises(UserError, match="has the splits train, test; name one"):
        load_rows(tmp_path / "two")


def test_a_folder_of_parts_is_left_to_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    part = tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"
    part.parent.mkdir(parents=True)
    datasets.Dataset.from_list([RECORD]).to_parquet(str(part))
    assert [row.id for row in load_rows(tmp_path / "hub").rows] == ["a"]


def test_a_name_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset {name!r} doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(UserError, match=r"'someone/none' is neither a file, nor a folder.*doesn't exist"):
        load_rows("someone/none:train")


def test_a_dict_of_splits_is_refused() -> None:
    with pytest.raises(UserError, match="'train', 'test'; pass one"):
        load_rows({"train": [RECORD], "test": [RECORD]})


# ---- damaged files ----


def test_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    jsonl(tmp_path / "traces.jsonl", [RECORD])
    with pytest.raises(UserError, match=r"trace\.jsonl does not exist.*'traces\.jsonl'"):
        load_rows(tmp_path / "trace.jsonl")


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv", "e.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="holds no rows"):
        load_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_table_of_its_head_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".csv"):
        path.write_text("prompt,completion\n", encoding="utf-8")
    else:
        datasets.Dataset.from_dict({"prompt": [], "completion": []}).to_parquet(path)
    with pytest.raises(UserError, match=f"{name} holds no rows"):
        load_rows(path)


def test_empty_file_in_a_folder(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [RECORD])
    (tmp_path / "test.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"test\.jsonl holds no rows"):
        load_rows(tmp_path)


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [RECORD])
    with pytest.raises(UserError, match="is a file and has no split 'train'"):
        load_rows(f"{path}:train")


def test_empty_sequence() -> None:
    with pytest.raises(UserError, match="holds no rows"):
        load_rows([])


@pytest.mark.parametrize("damage", ["cut", "no gzip", "flipped"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress("".join(json.dumps({**RECORD, "id": str(i)}) + "\n" for i in range(2000)).encode())
    flipped = whole[:200] + b"\xff" + whole[201:]
    broken = {"cut": whole[: len(whole) // 2], "no gzip": b"plain text\n", "flipped": flipped}
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(broken[damage])
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz is damaged after line \d+"):
        load_rows(path, max_refused=1.0)


@pytest.mark.parametrize("name", ["bad.parquet", "bad.json", "bad.csv"])
def test_damaged_tables(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"a" "\x81\x8d\n1,2,3\n1,2,3,4,5,6')
    with pytest.raises(UserError, match=name):
        load_rows(tmp_path / name)


def test_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(RECORD).encode()
    path.write_bytes(good + b'\n{"prompt": "caf\xe9"}\n')
    loaded = load_rows(path, max_refused=0.5)
    assert [(r.line, r.column) for r in loaded.refused] == [(2, None)]
    assert "not UTF-8 at byte 16" in loaded.refused[0].reason
    path.write_text(json.dumps(RECORD), encoding="utf-16")
    with pytest.raises(UserError, match="is UTF-16; save it as UTF-8"):
        load_rows(path)


def test_byte_order_mark_and_blank_lines_are_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(RECORD).encode() + b"\r\n\r\n")
    loaded = load_rows(path)
    assert [row.id for row in loaded.rows] == ["a"]
    assert loaded.refused == []


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "rows.xml").write_text("<a/>")
    with pytest.raises(UserError, match=r"unknown kind of file.*\.jsonl"):
        load_rows(tmp_path / "rows.xml")


# ---- bad rows ----


@pytest.mark.parametrize(
    ("change", "column", "reason"),
    [
        ({"prompt": None}, "prompt", "is missing"),
        ({"prompt": "  "}, "prompt", "is blank"),
        ({"prompt": 3}, "prompt", "expected text or a list of messages"),
        ({"prompt": []}, "prompt", "expected text or a list of messages"),
        ({"prompt": [{"role": "user"}]}, "prompt", "expected the keys role"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "prompt", "system, user or assistant"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "prompt", "expected a turn of the user"),
        ({"completion": ""}, "completion", "is blank"),
        ({"completion": 4}, "completion", "expected text"),
        ({"answer": "1,000"}, "answer", "expected a plain decimal"),
        ({"answer": "four"}, "answer", "expected a plain decimal"),
        ({"answer": True}, "answer", "expected a plain decimal"),
        ({"answer": "nan"}, "answer", "expected a plain decimal"),
        ({"answer": None}, "answer", "is missing beside the answer_type"),
        ({"answer_type": None}, "answer_type", "is missing beside an answer"),
        ({"answer_type": "numeric"}, "answer_type", "expected one of number"),
        ({"answer_type": "choice", "answer": "b"}, "answer", "expected the letter"),
        ({"answer_type": "choice", "answer": "C", "choices": ["x", "y"]}, "answer", "only 2 choices"),
        ({"answer_type": "yesno", "answer": "maybe"}, "answer", "expected yes or no"),
        ({"choices": "A or B"}, "choices", "expected a list"),
        ({"choices": ["x"]}, "choices", "at least two"),
        ({"valid": "yes"}, "valid", "expected true or false"),
        ({"weight": -1}, "weight", "zero or more"),
        ({"weight": float("nan")}, "weight", "finite"),
        ({"weight": 10**400}, "weight", "finite"),
        ({"set_id": ["s"]}, "set_id", "expected text"),
        ({"id": "good"}, "id", "repeats 'good'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], column: str, reason: str) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{**RECORD, "id": "good"}, {**RECORD, **change}])
    loaded = load_rows(path, max_refused=0.5)
    assert [row.id for row in loaded.rows] == ["good"]
    (refusal,) = loaded.refused
    assert (refusal.source, refusal.line, refusal.column) == (str(path), 2, column)
    assert reason in refusal.reason


@pytest.mark.parametrize("line", ["{", "[1]", "null", '{"a": ' + "9" * 5000 + "}", "[" * 200_000])
def test_a_line_that_is_no_object(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + line + "\n")
    (refusal,) = load_rows(path, max_refused=0.5).refused
    assert (refusal.line, refusal.column) == (2, None)


def test_the_limit_decides_and_the_list_is_written(tmp_path: Path) -> None:
    records = [{**RECORD, "id": str(i), "prompt": "" if i < 7 else "x"} for i in range(100)]
    path, listed = jsonl(tmp_path / "rows.jsonl", records), tmp_path / "run" / "refused.jsonl"
    loaded = load_rows(path, max_refused=0.07, refused_to=listed)
    assert (len(loaded.rows), len(loaded.refused)) == (93, 7)
    listed.unlink()
    with pytest.raises(UserError) as caught:
        load_rows(path, max_refused=0.0699, refused_to=listed)
    message = str(caught.value)
    assert "7 of 100 rows" in message
    assert str(listed) in message
    assert [f"line {n}," in message for n in range(1, 8)] == [True] * 5 + [False] * 2
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert lines[0] == {"source": str(path), "line": 1, "column": "prompt", "reason": "is blank"}
    assert len(lines) == 7


def test_no_row_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all 2 rows are refused.*column prompt: is blank"):
        load_rows([{"prompt": ""}, {"prompt": ""}], max_refused=1.0)
    with pytest.raises(UserError, match="expected a dict"):
        load_rows([3, 4], max_refused=1.0)  # type: ignore[list-item]


def test_rows_without_id_are_named_by_folder_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "law").mkdir()
    path = jsonl(tmp_path / "law" / "rows.jsonl", [{"prompt": "x"}, {"prompt": "y"}])
    assert [row.id for row in load_rows(path).rows] == ["law/rows.jsonl:1", "law/rows.jsonl:2"]
    monkeypatch.chdir(path.parent)
    assert [row.id for row in load_rows("rows.jsonl").rows] == ["law/rows.jsonl:1", "law/rows.jsonl:2"]
    assert [row.id for row in load_rows([{"prompt": "x"}, {"prompt": "y"}]).rows] == ["rows:1", "rows:2"]


# ---- columns ----


def test_missing_column_and_the_mapping_that_mends_it() -> None:
    data = [{"text": "2 + 2?", "gold": 4, "answer_type": "number", "extra": 1}]
    with pytest.raises(UserError, match=r"no column 'prompt'; it has answer_type, extra, gold, text"):
        load_rows(data)
    loaded = load_rows(data, {"prompt": "text", "answer": "gold"})
    assert (loaded.rows[0].prompt, loaded.rows[0].answer) == ("2 + 2?", "4")
    assert loaded.notes == ("Columns of the given rows that are not used: extra.",)


def test_a_mapping_with_wrong_names() -> None:
    with pytest.raises(UserError, match=r"maps 'promt'.*'prompt'"):
        load_rows([RECORD], {"promt": "prompt"})
    with pytest.raises(UserError, match=r"no column 'promt' for prompt.*'prompt'"):
        load_rows([RECORD], {"prompt": "promt"})


def test_a_dot_looks_inside_a_dict() -> None:
    data = [{"info": {"text": "x", "deep": {"gold": "yes"}}, "answer_type": "yesno"}]
    (row,) = load_rows(data, {"prompt": "info.text", "answer": "info.deep.gold"}).rows
    assert (row.prompt, row.answer) == ("x", "yes")
    assert load_rows([{"a.b": "x"}], {"prompt": "a.b"}).rows[0].prompt == "x"


def test_refusals_name_the_column_of_the_file() -> None:
    data = [{"text": "x", "score": 1}, {"text": "x", "score": "high"}]
    loaded = load_rows(data, {"prompt": "text", "weight": "score"}, max_refused=0.5)
    assert loaded.refused[0].column == "score"


def test_question_data_are_recognised_and_said() -> None:
    loaded = load_rows([QUESTION])
    assert loaded.rows == [
        Row(
            id="q",
            prompt="Which is red?\nA) sky\nB) blood",
            completion="Blood is red. The answer is B.",
            answer="B",
            answer_type="choice",
            choices=("sky", "blood"),
            set_id="g1",
            structure_id="t1",
            domain="science",
            teacher="human",
            valid=True,
        )
    ]
    assert "question as prompt" in loaded.notes[0]


def test_group_is_set_or_structure_by_the_mapping() -> None:
    by_set, by_template = load_rows([QUESTION], QUESTION_COLUMNS), load_rows([QUESTION], TEMPLATE_COLUMNS)
    assert (by_set.rows[0].set_id, by_set.rows[0].structure_id) == ("g1", "t1")
    assert (by_template.rows[0].set_id, by_template.rows[0].structure_id) == (None, "g1")


@pytest.mark.parametrize(
    ("change", "completion"),
    [
        ({"rationale": "So the answer is B. The answer is B. "}, "So the answer is B. The answer is B."),
        ({"rationale": "Is it blood?"}, "Is it blood? The answer is B."),
        ({"rationale": None}, None),
        ({"meta": {"correct": False}}, "Blood is red"),
        ({"answer_type": "code"}, "Blood is red"),
    ],
)
def test_when_the_answer_sentence_is_added(change: dict[str, Any], completion: str | None) -> None:
    assert load_rows([{**QUESTION, **change}]).rows[0].completion == completion


def test_plain_rows_are_taken_as_written() -> None:
    row = load_rows([{**RECORD, "completion": "four", "choices": ["x", "y"]}]).rows[0]
    assert (row.prompt, row.completion) == ("2 + 2?", "four")


def test_conversations() -> None:
    user, reply = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}
    data = [{"messages": [user, reply]}, {"prompt": [user], "completion": [reply]}, {"messages": [user]}]
    rows = load_rows(data).rows
    assert [(row.prompt, row.completion) for row in rows] == [((user,), "4."), ((user,), "4."), ((user,), None)]


@pytest.mark.parametrize(
    ("given", "read"),
    [(18, "18"), (18.0, "18"), (0.25, "0.25"), ("1.5e-05", "0.000015"), ("-3", "-3"), ("1E3", "1000")],
)
def test_numbers_are_plain_decimals(given: Any, read: str) -> None:
    assert load_rows([{**RECORD, "answer": given}]).rows[0].answer == read


# ---- writing ----

TEXT = st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip()))


@given(
    row=st.builds(
        Row,
        id=TEXT,
        prompt=TEXT | TEXT.map(lambda text: ({"role": "user", "content": text},)),
        completion=st.none() | TEXT,
        set_id=st.none() | TEXT,
        domain=st.none() | TEXT,
        choices=st.none() | st.tuples(TEXT, TEXT),
        valid=st.none() | st.booleans(),
        weight=st.floats(0, 1e6),
        split=st.none() | TEXT,
    )
)
def test_rows_come_back_as_they_were(row: Row) -> None:
    assert row_from_dict(json.loads(json.dumps(row_to_dict(row))), "here") == row


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    rows = [Row(id=f"{i}", prompt="é\u2028\n" * 3, completion="x\u0085", weight=0.5) for i in range(3)]
    write_rows(tmp_path / "new" / "rows.jsonl", rows)
    assert load_rows(tmp_path / "new" / "rows.jsonl").rows == rows
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.jsonl"]


def test_a_row_error_says_where() -> None:
    with pytest.raises(RowError, match="train:3: column 'prompt' is missing"):
        row_from_dict({}, "train:3")


def test_a_full_disk_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Row(id="old", prompt="x")])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"rows\.jsonl cannot be written: No space left.*Free some space"):
        write_rows(path, [Row(id="new", prompt="x")])
    assert [row.id for row in load_rows(path).rows] == ["old"]
    assert [found.name for found in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write_refusals(tmp_path / "file" / "refused.jsonl", [])


# ---- the real data ----


@pytest.mark.real_data
def test_every_real_set_of_the_question_schema_is_read_without_a_refusal(real_data: Path) -> None:
    other = {"continual", "instruct", "pairs", "prompts", "ifeval"}
    files = [p for p in sorted(real_data.rglob("*.jsonl.gz")) if p.relative_to(real_data).parts[0] not in other]
    assert len(files) > 50
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            expected = sum(1 for _ in file)
        loaded = load_rows(path)
        assert (len(loaded.rows), loaded.refused) == (expected, [])


@pytest.mark.real_data
def test_contexthub_is_isomer_sets(real_data: Path) -> None:
    rows = load_rows(real_data / "contexthub" / "train.jsonl.gz").rows
    sets: dict[str | None, set[str | None]] = {}
    for row in rows:
        sets.setdefault(row.set_id, set()).add(row.domain)
    assert {len(domains) for domains in sets.values()} == {12}
    assert all(row.structure_id and row.set_id and row.structure_id in row.set_id for row in rows)
