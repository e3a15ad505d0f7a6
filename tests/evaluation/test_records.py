from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, replace

import pytest

from isodistill.errors import UserError
from isodistill.evaluation import PredictionLog


def test_records_come_back_as_they_were_written(tmp_path, make_record) -> None:
    log = PredictionLog(tmp_path / "run" / "predictions.jsonl")
    records = [make_record("a", "law"), make_record(None, None, None, output="6 × 4\u2028= 24\nand\u0000“so”")]
    for record in records:
        log.append(record)
    assert log.read() == records
    assert PredictionLog(log.path).read() == records
    assert len(log.path.read_bytes().splitlines()) == 2


def test_an_append_is_on_disk_before_it_returns(tmp_path, make_record, monkeypatch) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    log.append(make_record("a", "law"))
    assert synced == [log.path.stat().st_size]


def test_done_tells_stages_and_splits_apart(tmp_path, make_record) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    log.append(make_record("a", "law", stage="before"))
    log.append(make_record("b", "law", stage="after"))
    log.append(make_record("c", "law", stage="after", split="ood", sample=3))
    assert log.done("before", "id") == {("a/law", 0)}
    assert log.done("after", "id") == {("b/law", 0)}
    assert log.done("after", "ood") == {("c/law", 3)}
    assert log.done("before", "ood") == set()


def test_an_interruption_at_any_byte_loses_only_the_line_being_written(tmp_path, make_record, caplog) -> None:
    whole = PredictionLog(tmp_path / "whole.jsonl")
    records = [make_record("a", "law"), make_record("b", "law")]
    for record in records:
        whole.append(record)
    content = whole.path.read_bytes()
    first = content.index(b"\n") + 1
    for cut in (
        0,
        1,
        first // 2,
        first - 1,
        first,
        first + 1,
        (first + len(content)) // 2,
        len(content) - 1,
        len(content),
    ):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:cut])
        with caplog.at_level(logging.WARNING):
            log = PredictionLog(path)
        kept = 2 if cut == len(content) else 1 if cut >= first else 0
        assert log.read() == records[:kept]
        log.append(records[1])
        assert log.read() == [*records[:kept], records[1]]
    assert "partial line" in caplog.text


@pytest.mark.parametrize("damage", ["{", '{"run_id": "r"}', "[]", "17", "\x00\x00"])
def test_a_damaged_line_is_named(tmp_path, make_record, damage: str) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    log.append(make_record("a", "law"))
    with log.path.open("a") as file:
        file.write(damage + "\n")
    log.append(make_record("b", "law"))
    with pytest.raises(UserError, match=r"predictions\.jsonl, line 2"):
        log.read()


def test_a_line_written_before_samples_and_options_is_read(tmp_path, make_record) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    record = make_record("a", "law")
    line = {name: value for name, value in asdict(record).items() if name not in ("sample", "pi")}
    log.path.write_text(json.dumps(line) + "\n")
    assert log.read() == [record]
    assert (record.sample, record.pi) == (0, None)


def test_an_unknown_outcome_or_field_is_named(tmp_path, make_record) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    log.append(replace(make_record("a", "law"), outcome="perhaps"))
    with pytest.raises(UserError, match="line 1: outcome 'perhaps'"):
        log.read()
    row = json.loads(log.path.read_text()) | {"score": 1}
    del row["gold"]
    log.path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="missing or unknown: gold, score"):
        log.read()


def test_a_full_disk_is_an_error_for_people_and_keeps_what_was_written(tmp_path, make_record, monkeypatch) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    log.append(make_record("a", "law"))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            log.append(make_record("b", "law"))
    assert log.read()[0] == make_record("a", "law")


def test_a_path_that_is_a_folder_is_an_error_for_people(tmp_path) -> None:
    with pytest.raises(UserError, match="Cannot open"):
        PredictionLog(tmp_path)
