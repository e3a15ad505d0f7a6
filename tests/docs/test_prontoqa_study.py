"""The study's records and tables, from results that are made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isodistill.data.files import between_marks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(load_study: Callable[[str], ModuleType]) -> ModuleType:
    return load_study("prontoqa")


def made(study: ModuleType) -> list[dict[str, Any]]:
    common = {"setting": "by hand", "student": "lab"}
    return [
        common | study._record(method, metric, seeds, [0.25, -0.05, 0.5] if method == "iga" else None)
        for method, seeds in (("none", [0.5]), ("erm", [0.5, 0.75, 1.0]), ("iga", [0.75, 1.0, 1.0]))
        for metric in study.METRICS
    ]


def test_a_record_has_the_fixed_form(study: ModuleType) -> None:
    record = made(study)[-len(study.METRICS)]
    keys = {"setting", "student", "method", "metric", "mean", "sd", "seeds", "diff_to", "command"}
    assert set(record) == keys
    assert (record["method"], record["metric"], record["mean"]) == ("iga", "acc_ood", 0.916667)
    assert record["sd"] == pytest.approx(0.144338, abs=1e-6)
    assert record["diff_to"] == {"erm": [0.25, -0.05, 0.5]}
    json.dumps(record, allow_nan=False)


def test_a_difference_is_flipped_where_less_is_better(study: ModuleType) -> None:
    record = made(study)[-1]
    assert record["metric"] == "lcs_ratio_id"
    assert record["diff_to"] == {"erm": [-0.25, -0.5, 0.05]}


def test_undefined_numbers_are_null(study: ModuleType) -> None:
    record = study._record("iga", "all_correct_id", [None, None, None], None)
    assert (record["mean"], record["sd"], record["diff_to"]) == (None, None, {})


def test_tables_are_made_from_records(study: ModuleType) -> None:
    text = study.tables(made(study))
    assert "| Accuracy, professions | 0.500 | 0.750 ± 0.250 | 0.917 ± 0.144 | +0.250 (-0.050 to +0.500) |" in text


def test_the_published_page_is_what_the_published_records_give(study: ModuleType) -> None:
    page = (ROOT / "docs" / "results" / "prontoqa.md").read_text(encoding="utf-8")
    assert page.count(study.BEGIN) == page.count(study.END) == 1
    records = ROOT / "docs" / "results" / "prontoqa.json"
    if records.is_file():
        text = study.tables(json.loads(records.read_text(encoding="utf-8")))
        assert between_marks(page, study.BEGIN, study.END, text) == page
