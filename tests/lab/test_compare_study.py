"""The study of nine methods: seeds outermost, no run twice, and a published table made of the published runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isodistill.data.files import read_log

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_study", ROOT / "studies" / "compare_lab.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(seed: int, value: float) -> dict[str, Any]:
    numbers = dict.fromkeys(("acc_macro", "all_correct", "agreement", "lcs_ratio"), value)
    splits = dict.fromkeys(("id", "cue_random", "ood"), numbers)
    return {"seed": seed, "parameters": 240_000, "seconds": 10.0 * value, "splits": splits}


def test_a_stopped_study_goes_on_seed_by_seed(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = study.lab_study()
    monkeypatch.setattr(study, "lab_study", lambda: lab)
    monkeypatch.setattr(lab, "train_and_test", lambda run: made(run["tree"]["seed"], 0.5))
    (tmp_path / "compare.md").write_text(f"above\n{study.BEGIN}\n{study.END}\nbelow\n", encoding="utf-8")
    for runs in ("4", "9"):
        monkeypatch.setattr(sys, "argv", ["compare_lab.py", "--results", str(tmp_path), "--runs", runs])
        study.main()
    lines = [json.loads(line) for line in (tmp_path / "compare-runs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["command"] for line in lines] == [run["command"] for run in study.planned()][:13]
    assert [line["record"]["seed"] for line in lines] == [0] * 10 + [1] * 3


def test_differences_are_paired_by_seed_and_flipped_where_less_is_better(study: ModuleType) -> None:
    values = {"erm": [0.2, 0.4, 0.6], "iga": [0.5, 0.6, 1.0]}
    runs = [
        {"method": method, "record": made(seed, value)}
        for method, seeds in values.items()
        for seed, value in reversed(list(enumerate(seeds)))
    ]
    found = {(r["method"], r["metric"]): r for r in study.collect(study.lab_study(), runs)}
    # Differences .3, .2, .4: mean .3, sd .1, and t(.975, 2) = 4.3027.
    half = 4.302653 * 0.1 / 3**0.5
    assert found["iga", "acc_ood"]["diff_to"] == {"erm": pytest.approx([0.3, 0.3 - half, 0.3 + half], abs=2e-6)}
    assert found["iga", "lcs_ratio_ood"]["diff_to"]["erm"][0] == pytest.approx(-0.3)
    assert found["iga", "seconds"]["seeds"] == [5.0, 6.0, 10.0]


def test_the_published_tables_are_those_of_the_published_runs(study: ModuleType) -> None:
    results = ROOT / "docs" / "results"
    lab = study.lab_study()
    records = study.collect(lab, read_log(results / "compare-runs.jsonl"))
    published = json.loads((results / "compare.json").read_text(encoding="utf-8"))
    assert [record for record in published if record["setting"] == study.SETTING] == records
    page = (results / "compare.md").read_text(encoding="utf-8")
    assert study.with_tables(page, study.table(records)) == page
