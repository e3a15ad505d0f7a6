"""What studies write: a log whose lines are on disk, and tables between the marks of a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from isodistill.data.files import append_log, between_marks, read_log, write_between_marks


def test_a_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    log = tmp_path / "results" / "runs.jsonl"
    assert read_log(log) == []
    append_log(log, {"seed": 0})
    append_log(log, {"seed": 1})
    log.write_text(log.read_text(encoding="utf-8")[:-4], encoding="utf-8")
    assert read_log(log) == [{"seed": 0}]
    append_log(log, {"seed": 1})
    assert read_log(log) == [{"seed": 0}, {"seed": 1}]


def test_text_between_marks_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- a -->\nold\n<!-- b -->\nbelow\n", encoding="utf-8")
    for _ in range(2):
        write_between_marks(page, "<!-- a -->", "<!-- b -->", "new")
        assert page.read_text(encoding="utf-8") == "above\n<!-- a -->\n\nnew\n\n<!-- b -->\nbelow\n"


@pytest.mark.parametrize("page", ["no marks", "<!-- a --> only", "<!-- b --> before <!-- a -->"])
def test_a_page_without_its_marks_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="lacks the mark <!-- "):
        between_marks(page, "<!-- a -->", "<!-- b -->", "new")
