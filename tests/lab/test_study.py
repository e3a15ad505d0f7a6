"""The study of the laboratory: it goes on where it was stopped, and its records have the fixed form."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isodistill.data.files import between_marks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(load_study: Callable[[str], ModuleType]) -> ModuleType:
    return load_study("lab")


@pytest.fixture
def trained(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are made by hand, and their commands noted, in a folder with an empty page."""
    commands: list[str] = []

    def record(run: dict[str, Any]) -> dict[str, Any]:
        commands.append(run["command"])
        return made(run["tree"]["seed"], 0.5)

    monkeypatch.setattr(study, "train_and_test", record)
    (tmp_path / "iga.md").write_text(f"above\n{study.BEGIN}\nold\n{study.END}\nbelow\n", encoding="utf-8")
    return commands


def made(seed: int, value: float) -> dict[str, Any]:
    names = ("acc_macro", "all_correct", "acc_first", "agreement", "lcs", "lcs_ratio")
    numbers = dict.fromkeys(names, value)
    return {"seed": seed, "parameters": 240_000, "splits": dict.fromkeys(("id", "cue_random", "ood"), numbers)}


def run_study(study: ModuleType, folder: Path, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lab.py", "--results", str(folder), "--runs", str(runs)])
    study.main()


def test_a_stopped_study_goes_on_and_makes_no_run_twice(
    study: ModuleType, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [run["command"] for run in study.planned([])]
    assert len(set(planned)) == len(planned)
    run_study(study, tmp_path, 2, monkeypatch)
    log = tmp_path / "lab-runs.jsonl"
    whole = log.read_text(encoding="utf-8")
    log.write_text(whole + whole.splitlines()[0][:40], encoding="utf-8")  # killed while it wrote
    run_study(study, tmp_path, 3, monkeypatch)
    assert trained == planned[:5]
    assert [json.loads(line)["command"] for line in log.read_text(encoding="utf-8").splitlines()] == planned[:5]


def test_records_of_other_students_stay(
    study: ModuleType, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"student": "SmolLM2-135M-Instruct", "setting": "another study"}
    (tmp_path / "iga.json").write_text(json.dumps([other]), encoding="utf-8")
    for _ in range(2):
        run_study(study, tmp_path, 1, monkeypatch)
    records = json.loads((tmp_path / "iga.json").read_text(encoding="utf-8"))
    assert records[-1] == other
    assert all(record["student"].startswith("lab") for record in records[:-1])
    assert len({(r["setting"], r.get("method"), r.get("metric")) for r in records}) == len(records)
    page = (tmp_path / "iga.md").read_text(encoding="utf-8")
    assert page.startswith("above\n")
    assert page.endswith("below\n")
    assert "old" not in page


def test_differences_are_paired_by_seed_and_flipped_where_less_is_better(study: ModuleType) -> None:
    values = {"erm": [0.2, 0.4, 0.6, 0.8], "iga": [0.5, 0.6, 1.0]}
    runs = [
        {"setting": "k8", "method": method, "record": made(seed, value)}
        for method, seeds in values.items()
        for seed, value in reversed(list(enumerate(seeds)))
    ]
    found = {(r["method"], r["metric"]): r for r in study.collect(runs)}
    record = found["iga", "acc_ood"]
    assert set(record) == {
        "setting", "student", "method", "metric", "mean", "sd", "seeds", "diff_to", "command",
    }  # fmt: skip
    assert record["seeds"] == values["iga"]
    # Differences .3, .2, .4: mean .3, sd .1, and t(.975, 2) = 4.3027.
    half = 4.302653 * 0.1 / 3**0.5
    assert record["diff_to"] == {"erm": pytest.approx([0.3, 0.3 - half, 0.3 + half], abs=2e-6)}
    assert found["iga", "lcs_ood"]["diff_to"]["erm"] == pytest.approx([-0.3, -0.3 - half, -0.3 + half], abs=2e-6)
    assert found["erm", "acc_ood"]["diff_to"] == {}


def test_a_tier_is_held_against_its_own_random_mask(study: ModuleType) -> None:
    values = {"random_mask": 0.1, "random_mask_t": 0.3, "iga": 0.7, "iga_t": 0.8}
    runs = [
        {"setting": "lora", "method": method, "record": made(seed, value)}
        for method, value in values.items()
        for seed in range(3)
    ]
    found = {(r["method"], r["metric"]): r["diff_to"] for r in study.collect(runs)}
    assert found["iga_t", "acc_ood"]["random_mask"] == pytest.approx([0.5] * 3)
    assert found["iga", "acc_ood"]["random_mask"] == pytest.approx([0.6] * 3)
    assert found["random_mask_t", "acc_ood"]["random_mask"] == pytest.approx([0.2] * 3)


def test_a_student_has_learned_where_its_loss_stays_low(study: ModuleType) -> None:
    assert study.steps_to_learn([1.0, 0.5, 0.05, 0.2, 0.05], 100) == 80
    assert study.steps_to_learn([0.01, 0.01], 10) == 0
    assert study.steps_to_learn([0.01, 0.1], 10) is None
    curves = {"erm": [1.0, 1.0, 0.0, 0.0], "iga": [1.0, 0.0, 0.0, 0.0], "random_mask": [1.0, 1.0, 1.0, 1.0]}
    runs = [
        {"setting": "long", "method": method, "record": made(seed, 0.5) | {"curve": curve, "train": {"steps": 100}}}
        for method, curve in curves.items()
        for seed in range(3)
    ]
    records = study.collect(runs)
    found = {r["method"]: r for r in records if r["metric"] == "steps_to_learn"}
    assert found["iga"]["seeds"] == [25] * 3
    assert found["iga"]["diff_to"] == {"erm": [25.0, 25.0, 25.0]}
    assert found["random_mask"]["seeds"] == [None] * 3
    assert "| - | never / never / never | - | - |" in study.tables(records)


def test_an_undefined_number_is_null_and_makes_no_difference(study: ModuleType) -> None:
    runs = [{"setting": "k8", "method": m, "record": made(s, 0.5)} for m in ("erm", "iga") for s in range(3)]
    for run in runs[3:]:
        run["record"]["splits"]["ood"] = run["record"]["splits"]["ood"] | {"lcs_ratio": None}
    record = {(r["method"], r["metric"]): r for r in study.collect(runs)}["iga", "lcs_ratio_ood"]
    assert (record["mean"], record["sd"], record["seeds"], record["diff_to"]) == (None, None, [None] * 3, {})
    assert "| - |" in study.tables(study.collect(runs))


def test_the_published_tables_are_those_of_the_published_runs(study: ModuleType) -> None:
    results = ROOT / "docs" / "results"
    records = study.collect(study.recorded(results / "lab-runs.jsonl", []))
    published = json.loads((results / "iga.json").read_text(encoding="utf-8"))
    assert [record for record in published if record["student"].startswith("lab")] == records
    page = (results / "iga.md").read_text(encoding="utf-8")
    assert page.count(study.BEGIN) == page.count(study.END) == 1
    assert between_marks(page, study.BEGIN, study.END, study.tables(records)) == page
