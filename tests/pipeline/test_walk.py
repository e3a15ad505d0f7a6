"""The walk: which steps are done again, what is taken over from the baseline, what lies in the folder at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from isodistill.errors import UserError
from isodistill.evaluation import verify
from isodistill.pipeline import evaluate_run, report_runs, run_recipe, train_run, write_results
from isodistill.pipeline import steps as steps_module
from isodistill.recipe import load_recipe

from .conftest import COMMAND, recipe_of, sums

SPLIT_KEYS = {
    "n_items", "n_sets", "acc_macro", "acc_macro_ci95", "acc_worst", "acc_by_domain", "all_correct", "transfer",
    "truncated", "unparsed", "lcs", "lcs_random", "lcs_ratio", "agreement", "cons_given_correct",
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def both(*steps: str) -> set[str]:
    return {f"{run}{step}" for run in ("", "baseline/") for step in steps}


# ---- skipping ----


def test_nothing_is_done_twice_and_the_report_is_rebuilt_byte_for_byte(run: Path, steps_done: list[str]) -> None:
    before = contents(run)
    (run / "report.html").unlink()
    (run / "comparison.json").unlink()
    run_recipe(recipe_of(), run, COMMAND)
    assert steps_done == []
    assert contents(run) == before


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("train.learning_rate=0.02", both("train", "evaluate-after")),
        ("evaluate.max_new_tokens=5", both("evaluate-before", "evaluate-after")),
        ("alignment={name: iga, tau: 1}", {"train", "evaluate-after"}),
        ("isomers.n_sets=21", both("problems", "train", "evaluate-before", "evaluate-after")),
        ("seed=1", both("train", "evaluate-before", "evaluate-after")),  # the tiny student is drawn from the seed
        ("train.save_steps=3", set()),  # nothing about the student changes
    ],
)
def test_a_change_redoes_what_depends_on_it(run: Path, steps_done: list[str], override: str, redone: set[str]) -> None:
    before = contents(run)
    run_recipe(recipe_of([override]), run, COMMAND)
    assert set(steps_done) == redone
    assert len(steps_done) == len(redone)
    after = contents(run)
    for step, file in (("problems", "problems/train.jsonl"), ("train", "metrics.jsonl")):
        assert (after[file] != before[file]) == (step in redone)
    predictions = {stage: _lines(before, stage) == _lines(after, stage) for stage in ("before", "after")}
    if "evaluate-before" not in redone:
        assert predictions["before"]
    assert after["report.html"] != before["report.html"]


def _lines(files: dict[str, bytes], stage: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in files["predictions.jsonl"].splitlines()]
    return [line for line in lines if line["stage"] == stage]


def test_a_change_taken_back_gives_the_same_run(run: Path, finished: Path) -> None:
    run_recipe(recipe_of(["train.learning_rate=0.02"]), run, COMMAND)
    assert contents(run)["student/adapter_model.safetensors"] != contents(finished)["student/adapter_model.safetensors"]
    run_recipe(recipe_of(), run, COMMAND)
    before, after = contents(finished), contents(run)
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    timed = {"metrics.jsonl", "train.json", "results.json", "comparison.json", "report.html", "trainer_state.json"}
    assert {name.rpartition("/")[2] for name in changed} <= timed


def test_changed_data_are_read_again(tmp_path: Path, steps_done: list[str], write_rows: Any) -> None:
    data = write_rows(sums(10))
    recipe = recipe_of(problems=str(data), method="erm", split={"valid": 0.0, "test": 0.3})
    train_run(recipe, tmp_path / "run")
    train_run(recipe, tmp_path / "run")
    assert steps_done == ["problems", "train"]
    write_rows(sums(11))
    train_run(recipe, tmp_path / "run")
    assert steps_done == ["problems", "train"] * 2


def test_a_changed_student_is_trained_again(
    tmp_path: Path, steps_done: list[str], student_folder: Path, tiny_model: Any
) -> None:
    recipe = recipe_of(student=str(student_folder), baseline=None)
    train_run(recipe, tmp_path / "run")
    tiny_model.lm_head.weight.data.mul_(2)
    tiny_model.save_pretrained(student_folder)
    train_run(recipe, tmp_path / "run")
    assert steps_done == ["problems", "train", "train"]


# ---- the baseline beside the run ----


def test_the_untrained_student_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    answer_rows = steps_module.answer_rows

    def spied(*args: Any, **kwargs: Any) -> Any:
        asked.append((args[4].stage, kwargs["split"]))
        return answer_rows(*args, **kwargs)

    monkeypatch.setattr(steps_module, "answer_rows", spied)
    run_recipe(recipe_of(), tmp_path / "run", COMMAND)
    assert sorted(asked) == sorted([("before", "id"), ("before", "ood")] + 2 * [("after", "id"), ("after", "ood")])
    own, donated = contents(tmp_path / "run"), contents(tmp_path / "run" / "baseline")
    assert _lines(own, "before") == _lines(donated, "before") != []
    assert {name: own[name] for name in own if name.startswith("representations/before")} == {
        name: donated[name] for name in donated if name.startswith("representations/before")
    }


def test_both_runs_see_the_same_problems_and_start(run: Path) -> None:
    for name in ("problems/train.jsonl", "problems/id.jsonl", "problems/ood.jsonl"):
        assert (run / name).read_bytes() == (run / "baseline" / name).read_bytes()
    first = [json.loads((f / "metrics.jsonl").read_text().splitlines()[0]) for f in (run, run / "baseline")]
    assert first[0]["loss"] == first[1]["loss"]


def test_no_baseline_beside_itself(tmp_path: Path) -> None:
    run_recipe(recipe_of(method="erm", baseline="erm"), tmp_path / "run", COMMAND)
    assert not (tmp_path / "run" / "baseline").exists()
    assert (tmp_path / "run" / "report.html").is_file()


# ---- what lies in the folder ----


def test_results_have_the_keys_of_the_design(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    keys = {"schema", "recipe_hash", "method", "student", "seed", "splits", "before", "train", "versions"}
    assert results.keys() == keys | {"tier", "seed_hparam"}
    assert results["splits"].keys() == results["before"].keys() == {"id", "ood"}
    for numbers in (*results["splits"].values(), *results["before"].values()):
        assert numbers.keys() >= SPLIT_KEYS
    assert results["train"].keys() == {"steps", "tokens", "seconds", "tokens_per_second", "peak_memory_bytes"}
    assert results["train"]["steps"] == 3
    assert (results["schema"], results["method"], results["tier"], results["seed"]) == (1, "iga", "F", 0)
    assert {"isodistill", "torch", "transformers", "peft", "python"} <= results["versions"].keys()


def test_results_count_the_records(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    records = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len({(r["stage"], r["split"], r["item_id"]) for r in records}) == len(records)
    for stage, key in (("after", "splits"), ("before", "before")):
        for split, numbers in results[key].items():
            chosen = [r for r in records if (r["stage"], r["split"]) == (stage, split)]
            assert numbers["n_items"] == len(chosen) > 0
            for outcome in ("truncated", "unparsed"):
                share = sum(r["outcome"] == outcome for r in chosen) / len(chosen)
                assert numbers[outcome] == pytest.approx(share)
    for r in records:  # an answer that does not parse is counted, not dropped
        assert r["outcome"] == verify(r["output"], r["gold"], r["answer_type"], finish=r["finish"])


def test_comparison_leads_with_the_baseline(run: Path) -> None:
    comparison = json.loads((run / "comparison.json").read_text())
    assert comparison["baseline"] == "erm"
    assert [numbers["method"] for numbers in comparison["runs"]] == ["erm", "iga"]
    differences = comparison["differences"]
    assert differences.keys() >= {"iga", "before"}
    results = {
        name: json.loads((f / "results.json").read_text()) for name, f in (("iga", run), ("erm", run / "baseline"))
    }
    for split in ("id", "ood"):
        value, low, high = differences["iga"][split]["acc_macro"]
        expected = results["iga"]["splits"][split]["acc_macro"] - results["erm"]["splits"][split]["acc_macro"]
        assert value == pytest.approx(expected)
        assert low <= value <= high


def test_the_written_recipe_makes_the_same_run(run: Path, finished: Path, steps_done: list[str]) -> None:
    recipe = load_recipe(run / "recipe.yaml")
    assert recipe.alignment is not None
    assert recipe.alignment["tau"] == 3.0
    run_recipe(recipe, run, COMMAND)
    assert steps_done == []
    assert contents(run) == contents(finished)


def test_model_cards_say_what_was_trained(run: Path) -> None:
    for folder in (run / "student", run / "baseline" / "student"):
        _, front, body = (folder / "README.md").read_text().split("---\n", 2)
        assert yaml.safe_load(front)["library_name"] == "peft"
        assert "| " in body


def test_the_report_of_two_folders_can_be_made_elsewhere(run: Path, tmp_path: Path) -> None:
    out = report_runs(run, run / "baseline", tmp_path / "other" / "report.html", COMMAND)
    assert out.read_bytes() == (run / "report.html").read_bytes()
    found = report_runs(run, None, tmp_path / "found" / "report.html", COMMAND)
    assert found.read_bytes() == out.read_bytes(), "the baseline beside the run is taken by itself"
    alone = report_runs(run / "baseline", None, tmp_path / "alone" / "report.html", COMMAND)
    assert b"</html>" in alone.read_bytes() != out.read_bytes()


def test_verbs_alone_make_what_the_walk_makes(tmp_path: Path, finished: Path) -> None:
    recipe = recipe_of(baseline=None)
    train_run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "predictions.jsonl").exists()
    evaluate_run(recipe, tmp_path / "run")
    write_results(recipe, tmp_path / "run")
    for name in ("student/adapter_model.safetensors", "representations/after/ood-0000.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    found, expected = (json.loads((f / "results.json").read_text()) for f in (tmp_path / "run", finished))
    assert found["splits"] == expected["splits"]


def test_runs_on_other_problems_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    run_recipe(recipe_of(["split.seed_data=5"], method="erm", baseline=None), tmp_path / "other", COMMAND)
    with pytest.raises(UserError, match="do not answer the same items"):
        report_runs(run, tmp_path / "other", tmp_path / "report.html", COMMAND)
