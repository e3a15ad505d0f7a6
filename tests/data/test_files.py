"""The log of a study: lines that are on disk, and what a kill leaves of the last."""

from __future__ import annotations

from pathlib import Path

from isodistill.data.files import append_log, read_log


def test_a_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    log = tmp_path / "results" / "runs.jsonl"
    assert read_log(log) == []
    append_log(log, {"seed": 0})
    append_log(log, {"seed": 1})
    log.write_text(log.read_text(encoding="utf-8")[:-4], encoding="utf-8")
    assert read_log(log) == [{"seed": 0}]
    append_log(log, {"seed": 1})
    assert read_log(log) == [{"seed": 0}, {"seed": 1}]
