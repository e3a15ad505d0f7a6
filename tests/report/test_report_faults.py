"""Folders that are no runs, missing files, damaged lines: each error says where and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isodistill.errors import UserError
from isodistill.report import write_report

MakeRun = Callable[..., Path]


def edit(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def report(run: Path, baseline: Path | None = None) -> None:
    """A report that goes beside the run folder."""
    write_report(run, baseline=baseline, command="isodistill report", out=run.parent / "report.html")


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("recipe.yaml", "isodistill train"),
        ("results.json", "isodistill evaluate"),
        ("predictions.jsonl", "isodistill evaluate"),
        ("problems", "isodistill isomers"),
    ],
)
def test_a_missing_file_names_the_verb_that_makes_it(make_run: MakeRun, name: str, verb: str) -> None:
    run = make_run("iga", n_sets=2)
    (run / name).rename(run / "elsewhere")
    with pytest.raises(UserError, match=re.escape(name)) as error:
        report(run)
    assert verb in str(error.value)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"isodistill run recipe\.yaml"):
        report(tmp_path / "nowhere")


def test_missing_or_foreign_comparison(make_run: MakeRun, make_comparison: MakeRun) -> None:
    run, baseline = make_run("iga", n_sets=2), make_run("erm", n_sets=2)
    file = make_comparison(run.parent, baseline, run)
    edit(file, lambda comparison: comparison["runs"][1].update(recipe_hash="changed since"))
    with pytest.raises(UserError, match="compares other runs"):
        report(run, baseline)
    file.unlink()
    with pytest.raises(UserError, match="isodistill report"):
        report(run, baseline)


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("predictions.jsonl", '{"stage": "after"}', "no split"),
        ("predictions.jsonl", "{", "not a JSON object"),
        ("metrics.jsonl", "{", "not a JSON object"),
        ("problems/id.jsonl", "{", "not a JSON object"),
    ],
)
def test_a_damaged_line_is_named(make_run: MakeRun, file: str, line: str, complaint: str) -> None:
    run = make_run("iga", n_sets=2)
    lines = (run / file).read_text().splitlines()
    (run / file).write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(UserError, match=rf"{Path(file).name}, line 2: .*{complaint}"):
        report(run)


def test_an_unknown_outcome_is_refused(make_run: MakeRun) -> None:
    run = make_run("iga", n_sets=2)
    file = run / "predictions.jsonl"
    file.write_text(re.sub(r'"outcome": "\w+"', '"outcome": "maybe"', file.read_text()))
    with pytest.raises(UserError, match="'maybe' is none of correct"):
        report(run)


def test_damaged_or_empty_results(make_run: MakeRun) -> None:
    run = make_run("iga", n_sets=2)
    edit(run / "results.json", lambda results: results.update(splits={"id": {}, "ood": {}}))
    with pytest.raises(UserError, match="no evaluated test split"):
        report(run)
    edit(run / "results.json", lambda results: results.update(schema=2))
    with pytest.raises(UserError, match="schema 2"):
        report(run)
    (run / "results.json").write_text('{"schema": 1,\n oops')
    with pytest.raises(UserError, match="line 2: not JSON"):
        report(run)
