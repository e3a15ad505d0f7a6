"""The study of the four benchmarks: its order, its paired differences, and tables made of the published lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isodistill.benchmarks import BENCHMARKS, trivial_scores
from isodistill.data.files import between_marks, read_log

ROOT = Path(__file__).resolve().parents[2]
TITLE = f"{BENCHMARKS['contexthub'].title}, 40 steps"
DOMAINS = ("a", "b")


@pytest.fixture(scope="module")
def study(load_study: Callable[[str], ModuleType]) -> ModuleType:
    return load_study("four_benchmarks")


def items(n: int) -> dict[str, Any]:
    listed = [[split, f"{d}{i}", f"set-{i}", d, "A"] for split in ("id", "ood") for i in range(n) for d in DOMAINS]
    return {"kind": "items", "benchmark": TITLE, "items": listed}


def made(method: str, seed: int, right: int, n: int = 20) -> dict[str, Any]:
    """A run that answers the first ``right`` sets, in both domains."""
    answers = {
        f"{split}/{d}{i}": ["correct", "A"] if i < right else ["wrong", "B"]
        for split in ("id", "ood")
        for i in range(n)
        for d in DOMAINS
    }
    numbers = {"acc_macro": right / n, "acc_worst": right / n, "all_correct": right / n, "agreement": 1.0}
    splits = dict.fromkeys(("id", "ood"), numbers | {"lcs_ratio": 1 - right / n})
    train = {"steps": 40, "tokens": 100, "seconds": 10.0}
    return {"kind": "run", "benchmark": TITLE, "command": "python", "method": method, "seed": seed,
            "student": "s", "settings": {"learning_rate": 1e-3}, "train": train, "splits": splits,
            "answers": answers}  # fmt: skip


def test_seed_0_of_the_four_benchmarks_comes_first(study: ModuleType) -> None:
    runs = list(study.planned())
    assert {run[:2] for run in runs[:12]} == {
        (name, method) for name in BENCHMARKS if name != "contexthub-cue" for method in ("erm", "iga", "random_mask")
    }
    assert [run[0] for run in runs[12:15]] == ["contexthub-cue"] * 3
    assert {run[2] for run in runs[:25]} == {0}
    assert len(runs) == len(set(runs)) == 5 * 5 * 3


def test_differences_are_paired_and_trivial_answers_are_those_of_every_seed(study: ModuleType) -> None:
    runs = [items(20), made("majority", 0, 4), made("naive_bayes", 0, 5)]
    runs += [made("erm", seed, 10 + seed) for seed in range(3)] + [made("iga", seed, 12 + seed) for seed in range(3)]
    found = {(r["method"], r["metric"]): r for r in study.collect(runs)}
    assert found["iga", "acc_ood"]["seeds"] == [0.6, 0.65, 0.7]
    assert found["iga", "acc_ood"]["diff_to"]["erm"][0] == pytest.approx(0.1)
    assert found["iga", "all_correct_ood"]["diff_to"]["erm"][0] == pytest.approx(0.1)
    assert found["iga", "lcs_ratio_ood"]["diff_to"]["erm"] == pytest.approx([0.1, 0.1, 0.1])
    against = found["erm", "acc_ood"]["diff_to"]["naive_bayes"]
    assert against[0] == pytest.approx(0.55 - 0.25)
    assert 0 < against[1] < against[0] < against[2]
    assert found["majority", "acc_ood"]["diff_to"] == {}


@pytest.mark.parametrize(("right", "word"), [(14, "OOD it counts"), (6, "OOD it does not count")])
def test_a_benchmark_counts_where_erm_is_clearly_above_the_better_baseline(
    study: ModuleType, right: int, word: str
) -> None:
    runs = [items(20), made("majority", 0, 3), made("naive_bayes", 0, 5), made("erm", 0, right)]
    assert word in study.tables(study.collect(runs), runs)


def test_a_stopped_study_goes_on_and_keeps_the_records_of_others(
    study: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_run(name: str, recipe: Any, _: Any) -> list[dict[str, Any]]:
        first = [items(20), made("majority", 0, 3), made("naive_bayes", 0, 5)] if recipe.method == "erm" else []
        title = study.title_of(name, recipe)
        return [line | {"benchmark": title} for line in [*first, made(recipe.method, recipe.seed, 10)]]

    monkeypatch.setattr(study, "one_run", one_run)
    (tmp_path / "compare.md").write_text(f"above\n{study.BEGIN}\n{study.END}\nbelow\n", encoding="utf-8")
    other = {"setting": "another study"}
    (tmp_path / "compare.json").write_text(json.dumps([other]), encoding="utf-8")
    folders = ["--data", str(data), "--results", str(tmp_path), "--out", str(tmp_path / "runs")]
    for more in (["--runs", "2"], ["--runs", "3"], ["--runs", "1", "--only", "contexthub", "--set", "train.steps=7"]):
        monkeypatch.setattr(sys, "argv", ["four_benchmarks.py", *folders, *more])
        study.main()
    lines = [line for line in read_log(tmp_path / study.LOG) if line["kind"] == "run"]
    done = [(line["benchmark"], line["method"], line["seed"]) for line in lines if line["method"] in study.CORE]
    first = [(*key[1:], BENCHMARKS[key[0]]) for key in study.planned()][:5]
    assert done == [
        *((f"{one.title}, {one.train['steps']} steps", method, seed) for method, seed, one in first),
        ("contexthub 1, 7 steps", "erm", 0),
    ]
    assert json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))[0] == other
    page = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert page.startswith("above\n")
    assert page.endswith("below\n")
    assert page.count("### ") == 3


def test_a_run_leaves_its_answers_and_those_of_the_baselines(study: ModuleType, data: Path, tmp_path: Path) -> None:
    small = ["student=tiny", "train.steps=2", "evaluate.max_new_tokens=4", "train.use_cpu=true", "train.bf16=false"]
    given = argparse.Namespace(data=data, out=tmp_path, chosen=None, overrides=small)
    recipe = study.recipe_of("contexthub", "erm", 0, given)
    listed, majority, bayes, run = study.one_run("contexthub", recipe, given)
    assert len(listed["items"]) == len(run["answers"]) == len(majority["answers"])
    scores = trivial_scores(BENCHMARKS["contexthub"].rows(data))
    for split in ("id", "ood"):
        for line in (majority, bayes):
            assert line["splits"][split]["acc_macro"] == pytest.approx(scores[split][line["method"]], abs=1e-6)
    records = study.collect([listed, majority, bayes, run])
    found = {(r["method"], r["metric"]): r for r in records}
    erm, always = (found[name, "acc_ood"]["mean"] for name in ("erm", "majority"))
    assert found["erm", "acc_ood"]["diff_to"]["majority"][0] == pytest.approx(erm - always, abs=1e-6)
    assert study.select("contexthub", recipe, given)["valid"]["acc_by_domain"]


def test_the_published_tables_are_those_of_the_published_lines(study: ModuleType) -> None:
    results = ROOT / "docs" / "results"
    runs = read_log(results / study.LOG)
    records = study.collect(runs)
    published = json.loads((results / "compare.json").read_text(encoding="utf-8"))
    assert [record for record in published if record["setting"].startswith(study.SETTING)] == records
    page = (results / "compare.md").read_text(encoding="utf-8")
    assert between_marks(page, study.BEGIN, study.END, study.tables(records, runs)) == page
