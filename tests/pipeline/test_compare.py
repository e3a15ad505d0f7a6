"""A comparison: one budget, shared problems and starts, failures that stop nobody, a kill that leaves no trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from isodistill.errors import UserError
from isodistill.pipeline import Plan, compare_methods

from .conftest import SETTINGS, recipe_of

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("compare")]  # every run is a process

GROUPS: dict[str, Any] = {
    "split": {"held_out_domains": ["sports"], "valid": 0.2, "test": 0.3},
    "evaluate": {"max_new_tokens": 3, "max_sets": 2},
}
METHODS = ("erm", "iga", "random_mask")
TIMINGS = ("seconds", "tokens_per_second", "peak_memory_bytes")
COMMAND = "isodistill compare recipe.yaml --methods erm,iga,random_mask"


def read(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return content


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, two draws, two seeds; read only."""
    out = tmp_path_factory.mktemp("compared") / "out"
    compare_methods(recipe_of(**GROUPS), Plan(["iga", "random_mask"], [0, 1], search=2), out, COMMAND, jobs=2)
    return out


# ---- one budget, one start ----


def test_every_method_has_the_same_budget(compared: Path) -> None:
    content = read(compared)
    assert content["search"]["methods"] == list(METHODS), "the baseline comes by itself, and first"
    runs = {m: [(r["seed_hparam"], r["seed"]) for r in content["runs"] if r["method"] == m] for m in METHODS}
    assert runs == {m: [(0, 0), (0, 1), (1, 0), (1, 1)] for m in METHODS}
    assert {run["train"]["steps"] for run in content["runs"]} == {3}
    folders = [compared / "runs" / m / "draw-01" / "seed-0" for m in METHODS]
    recipes = [yaml.safe_load((folder / "recipe.yaml").read_text()) for folder in folders]
    assert len({recipe["train"]["learning_rate"] for recipe in recipes}) == 1


def test_the_problems_are_made_once_and_shared(compared: Path) -> None:
    for split in ("train", "valid", "id", "ood"):
        inode = (compared / "problems" / f"{split}.jsonl").stat().st_ino
        shared = list(compared.glob(f"runs/*/*/*/problems/{split}.jsonl"))
        assert len(shared) == 12
        assert {path.stat().st_ino for path in shared} == {inode}


def test_all_methods_of_a_seed_start_alike_and_seeds_do_not(compared: Path) -> None:
    first = {
        (method, seed): json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for method in METHODS
        for seed in (0, 1)
        if (folder := compared / "runs" / method / "draw-00" / f"seed-{seed}")
    }
    assert {first[m, 0] for m in METHODS} == {first["erm", 0]} != {first[m, 1] for m in METHODS} == {first["erm", 1]}


def test_the_untrained_student_answers_once_and_never_the_validation_problems(compared: Path) -> None:
    answered = {
        path.parent: {(r["stage"], r["split"]) for r in map(json.loads, path.read_text().splitlines())}
        for path in compared.rglob("predictions.jsonl")
    }
    assert answered.pop(compared / "before") == {("before", "id"), ("before", "ood")}
    assert len(answered) == 12
    assert all(found == {("after", s) for s in ("valid", "id", "ood")} for found in answered.values())


# ---- what is written ----


def test_comparison_json_holds_the_rules_and_the_paired_differences(compared: Path) -> None:
    content = read(compared)
    assert (content["schema"], content["baseline"], content["default_rule"]) == (1, "erm", "train_val")
    assert content["rules"].keys() == {"train_val", "oracle"}
    assert content["differences"] == content["rules"]["train_val"]["differences"]
    for rule in content["rules"].values():
        assert rule["methods"].keys() == set(METHODS)
        assert rule["differences"].keys() == {"iga", "random_mask"}
        assert rule["differences"]["iga"].keys() == {"id", "ood"}, "differences are of test problems"
        assert rule["differences_to_controls"]["iga"].keys() == {"random_mask"}
        assert rule["holm"].keys() == {"id", "ood"}
    assert content["before"].keys() == {"id", "ood"}
    assert content["failed"] == []
    assert "</html>" in (compared / "report.html").read_text()


def test_the_score_is_the_accuracy_on_valid(compared: Path) -> None:
    content = read(compared)
    for method, entry in content["rules"]["train_val"]["methods"].items():
        for number, score in entry["scores"].items():
            found = [r for r in content["runs"] if (r["method"], r["seed_hparam"]) == (method, int(number))]
            values = [run["splits"]["valid"]["acc_macro"] for run in found]
            assert score == pytest.approx(sum(values) / 2)
        assert entry["score"] == max(entry["scores"].values())


def test_without_a_search_nothing_is_selected(tmp_path: Path) -> None:
    keys = GROUPS | {"split": {"held_out_domains": ["sports"], "valid": 0.0, "test": 0.3}}
    compare_methods(recipe_of(**keys), Plan(["erm"], [0]), tmp_path / "out", COMMAND, jobs=1)
    content = read(tmp_path / "out")
    assert content["rules"].keys() == {"defaults"}
    assert content["runs"][0]["splits"].keys() == {"id", "ood"}


def test_leave_one_out_trains_without_each_domain_and_judges_by_it(tmp_path: Path) -> None:
    plan = Plan(["erm"], [0], search=2, leave_one_out=True)
    compare_methods(recipe_of(**GROUPS), plan, tmp_path / "out", COMMAND, jobs=2)
    content = read(tmp_path / "out")
    assert content["rules"].keys() == {"train_val", "leave_one_out", "oracle"}
    assert len(content["runs"]) == 2, "runs without a domain serve the choice only"
    folder = tmp_path / "out" / "runs" / "erm" / "draw-01"
    for left_out, trained in (("law", "medicine"), ("medicine", "law")):
        lines = (folder / f"seed-0-without-{left_out}" / "metrics.jsonl").read_text().splitlines()
        losses = {key for line in lines for key in json.loads(line) if key.startswith("loss/")}
        assert losses == {f"loss/{trained}"}
    assert len(content["rules"]["leave_one_out"]["methods"]["erm"]["scores"]) == 2


# ---- refusals and failures ----


@pytest.mark.parametrize(
    ("plan", "keys", "says"),
    [
        (Plan(["igaa"], [0]), {}, "Did you mean 'iga'"),
        (Plan(["iga"], [0], search=2), {"split": {"valid": 0.0, "test": 0.3}}, "Set split.valid"),
        (Plan(["iga"], [0], search=0), {}, "--search is 0"),
        (Plan(["iga"], [0], leave_one_out=True), {}, "give --search a number above 1"),
        (Plan(["iga"], [0, 0]), {}, "--seeds must name each once"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(
    plan: Plan, keys: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        compare_methods(recipe_of(**(GROUPS | keys)), plan, tmp_path / "out", COMMAND)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_run_that_fails_is_told_with_its_reason_and_stops_nobody(tmp_path: Path) -> None:
    keys = GROUPS | {"isomers": {"n_sets": 20, "families": ["rates"], "domains": ["law"]}}
    out = tmp_path / "out"
    compare_methods(recipe_of(**keys), Plan(["erm", "iga"], [0, 1]), out, COMMAND, jobs=2)
    content = read(out)
    assert [(run["method"], run["seed"]) for run in content["runs"]] == [("erm", 0), ("erm", 1)]
    assert [(f["method"], f["seed"]) for f in content["failed"]] == [("iga", 0), ("iga", 1)]
    assert all("iga compares domains, but the training rows have 1" in f["reason"] for f in content["failed"])
    page = (out / "report.html").read_text()
    assert "iga compares domains, but the training rows have 1" in page
    assert "No run finished for: IGA" in page


def test_when_every_run_fails_the_first_reason_is_told(tmp_path: Path) -> None:
    recipe = recipe_of(["train.no_such_key=1"], **GROUPS)
    with pytest.raises(UserError, match=r"All 1 runs failed, the first because: Unknown key train.no_such_key"):
        compare_methods(recipe, Plan(["erm"], [0]), tmp_path / "out", COMMAND, jobs=1)


# ---- a kill ----


def plain(content: dict[str, Any]) -> dict[str, Any]:
    for run in content["runs"]:
        run["train"] = {key: value for key, value in run["train"].items() if key not in TIMINGS}
    return content


def students(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("adapter_model.safetensors")}


@pytest.mark.faults
def test_killed_and_started_again_equals_not_killed(compared: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(SETTINGS | GROUPS))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "isodistill", "compare", "recipe.yaml", "--methods", "iga,random_mask"]
    command += ["--seeds", "0,1", "--search", "2", "--jobs", "2", "--out", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(out.glob("runs/*/*/*/results.json"))) >= 3 and untrained(out))
    begun = untrained(out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not workers_of(out))
    assert not [run for run in begun if (run / "results.json").exists()], "a run outlived what started it"
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/*/results.json")}
    assert len(finished) < 12
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=600)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished run was done again"
    assert plain(read(out)) == plain(read(compared))
    assert students(out) == students(compared)


def wait_for(happened: Any) -> None:
    limit = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.05)


def untrained(out: Path) -> list[Path]:
    """Runs that have begun and are not trained yet."""
    return [log.parent for log in out.glob("runs/*/*/*/log.txt") if not (log.parent / "train.json").exists()]


def workers_of(out: Path) -> list[str]:
    """Processes that still have a log below the folder open."""
    held = []
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(str(out)):
            held.append(target)
    return held
