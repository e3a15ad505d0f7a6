"""The section on the teacher's pull: numbers from the log, a table from the steps, colours from the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isodistill.errors import UserError
from isodistill.report import write_report
from isodistill.report.validity import read_validity


def logged(weight: float, beats: float, **more: float) -> dict[str, Any]:
    line: dict[str, Any] = {"step": 5, "loss": 1.0, "objective/weight": weight, "objective/delta": 0.1}
    line |= {"objective/student_beats_teacher": beats, "objective/weight_0_1": 0.25, "objective/weight_1_2": 0.75}
    line |= {"objective/delta_-1_0": 0.5, "objective/delta_0_1": 0.5}
    line |= {f"objective/{kind}_at_{i}": float(i) for kind in ("delta", "weight", "signal") for i in range(10)}
    return line | more


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    (folder / "validity").mkdir(exist_ok=True)
    (folder / "validity" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


TRACE = {
    "row": "rates-1/law", "pieces": ["6 x 4", " = 25.", " <b>"],
    "delta": [-1.0, -1.0, 0.5], "weight": [0.24, 0.24, 1.9],
    "signal": [0.01, 0.02, 0.5], "firsts": [0, 2], "proposals": {"0": "6 x 4 = 24."},
}  # fmt: skip


def test_a_run_that_weighs_nothing_has_no_section(tmp_path: Path) -> None:
    assert read_validity(tmp_path, [{"step": 5, "loss": 1.0}]) is None


def test_numbers_and_table_and_shades(tmp_path: Path) -> None:
    steps = [
        {"drawn": [0, 2], "deltas": [-1.0, 0.0, 1.0], "weights": [0.2, 1.0, 1.8]},
        {"drawn": [0, 12], "deltas": [0.0] * 12 + [-0.5], "weights": [1.0] * 12 + [0.5]},
    ]
    write(tmp_path, "steps", steps)
    write(tmp_path, "traces", [TRACE])
    more = {"validity/compared": 10.0, "validity/failed": 1.0}
    found = read_validity(tmp_path, [logged(1.0, 0.1, **more), logged(2.0, 0.3, **more)])
    assert found is not None
    assert "1.50 on average; at 20.0 %" in found.summary
    assert "failed at 10.0 %" in found.summary
    assert len(found.figures) == 5
    tables = {what: {row.label: [cell.text for cell in row.cells] for row in table.rows} for what, table in found.steps}
    place = "Steps compared, by their place in the trace: "
    assert tables == {
        f"{place}relative validity delta": {
            "Step 1": ["2", "-0.50", "50", "0", "50", "0", "0"],
            "Step 3": ["1", "1.00", "0", "0", "0", "0", "100"],
            "Later steps": ["1", "-0.50", "0", "100", "0", "0", "0"],
        },
        f"{place}weight w": {
            "Step 1": ["2", "0.60", "50", "0", "50", "0"],
            "Step 3": ["1", "1.80", "0", "0", "0", "100"],
            "Later steps": ["1", "0.50", "0", "100", "0", "0"],
        },
    }
    assert found.steps[0][1].columns[2] == "\N{MINUS SIGN}1 to \N{MINUS SIGN}0.5, %"
    ((name, pieces),) = found.traces
    assert name == "rates-1/law"
    assert [(piece.text, piece.shade, piece.proposal) for piece in pieces] == [
        ("6 x 4", 1, "6 x 4 = 24."), (" = 25.", 1, ""), (" <b>", 8, ""),
    ]  # fmt: skip


def test_token_mode_has_a_histogram_by_step_and_a_control_is_named(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    trace = TRACE | {"proposals": {}, "control": "permuted"}
    write(tmp_path, "traces", [trace] * 9)
    found = read_validity(tmp_path, [logged(1.0, 0.1)])
    assert found is not None
    (what, table), (_, weights) = found.steps
    assert what == "Tokens of 9 traces at the end of training, by their step: relative validity delta"
    cells = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    assert cells == {
        "Step 1": ["18", "-1.00", "100", "0", "0", "0", "0"],
        "Step 2": ["9", "0.50", "0", "0", "0", "0", "100"],
    }
    assert [cell.text for cell in weights.rows[0].cells] == ["18", "0.24", "100", "0", "0", "0"]
    assert (len(found.traces), found.control, found.proposed) == (8, "permuted", False)
    run = make_run("iga")
    lines = [json.loads(line) | logged(1.2, 0.1) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(run, "traces", [trace])
    write_report(run, baseline=None, command="x", out=run / "report.html")
    page = (run / "report.html").read_text()
    assert "the weights of the control <b>permuted</b>" in page
    assert "In brackets" not in page


def test_the_page_shows_it_escaped(make_run: Callable[..., Path]) -> None:
    run = make_run("iga")
    lines = [json.loads(line) | logged(1.2, 0.1) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(run, "traces", [TRACE])
    write_report(run, baseline=None, command="x", out=run / "report.html")
    page = (run / "report.html").read_text()
    assert "Where the teacher's pull goes" in page
    assert '<span class="w8" title="w 1.90, delta +0.50, w D 0.500"> &lt;b&gt;</span>' in page
    assert "[6 x 4 = 24.]" in page


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "validity").mkdir()
    (tmp_path / "validity" / "traces.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"traces\.jsonl, line 1"):
        read_validity(tmp_path, [logged(1.0, 0.1)])
