"""Distillations in sequence: what lies in the folder, where a stopped run goes on, and stages that cannot be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from isodistill.errors import UserError
from isodistill.models.stacked import stack_adapters
from isodistill.pipeline import Plan, compare_methods, evaluate_run, report_runs, run_recipe, train_run
from isodistill.pipeline import stages as stages_module
from isodistill.pipeline.stages import stage_recipes
from isodistill.recipe import Recipe, load_recipe

from .conftest import COMMAND, recipe_of

STAGES: list[dict[str, Any]] = [
    {"name": "rates"},
    {"name": "inclusion", "isomers": {"families": ["inclusion"]}},
    {"name": "sharing", "isomers": {"families": ["sharing"]}, "method": "iga"},
]
OPEN = {"held_out_domains": []}
NAMES = ["1-rates", "2-inclusion", "3-sharing"]


def staged(stages: list[dict[str, Any]] | None = None, **keys: Any) -> Recipe:
    recipe: dict[str, Any] = {"method": "erm", "stages": STAGES if stages is None else stages, "guard": {"name": "l2"}}
    return recipe_of(["train.steps=2", "evaluate.max_sets=2"], **recipe | keys)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def finished_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged run; read only."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    run_recipe(staged(), folder, COMMAND)
    return folder


def test_every_earlier_stage_is_asked_after_each_stage(finished_stages: Path) -> None:
    told = json.loads((finished_stages / "stages.json").read_text())
    assert told["stages"] == NAMES
    assert told["student"] == "tiny, made on the spot"
    assert told["method"] == {"1-rates": "erm", "2-inclusion": "erm", "3-sharing": "iga"}
    assert told["growth"] == [1.0, 1.0, 1.0]
    for split in ("id", "ood"):
        numbers = told["splits"][split]
        assert [len(row) for row in numbers["R"]] == [2, 3, 3]
        for i, after in enumerate(NAMES):
            for j, task in enumerate(NAMES[: i + 2]):
                lines = (finished_stages / "answers" / after / task / "predictions.jsonl").read_text().splitlines()
                records = [r for r in map(json.loads, lines) if r["split"] == split]
                domains = {r["domain"] for r in records}
                shares = [
                    sum(r["outcome"] == "correct" for r in records if r["domain"] == d)
                    / sum(r["domain"] == d for r in records)
                    for d in domains
                ]
                assert numbers["R"][i][j] == pytest.approx(sum(shares) / len(shares))
                assert numbers["lcs_ratio"][i][j] is None or numbers["lcs_ratio"][i][j] >= 0
        assert len(numbers["b"]) == 3
        assert numbers["change"].keys() == set(NAMES[:2])
    for name in NAMES:
        assert told["drift"][name]["shares"] == {"frozen": 0, "restored": 0, "updated": 1, "duplicated": 0}
        assert all(0 < layer["max"] < 1 for layer in told["drift"][name]["layers"].values())


def test_a_stage_goes_on_from_the_student_before_it(finished_stages: Path) -> None:
    """The l2 penalty of step 1 is 0 exactly when the stage starts where the last one ended."""
    for name, first in zip(NAMES, (None, 0.0, 0.0), strict=True):
        lines = (finished_stages / "stages" / name / "metrics.jsonl").read_text().splitlines()
        penalties = [line["guard/penalty"] for line in map(json.loads, lines) if "guard/penalty" in line]
        assert (penalties[0] if penalties else None) == first


def test_nothing_is_done_twice(finished_stages: Path, steps_done: list[str]) -> None:
    before = contents(finished_stages)
    recipe = load_recipe(finished_stages / "recipe.yaml")  # with every default written out
    for name in ("stages.json", "report.html"):
        (finished_stages / name).unlink()
    run_recipe(recipe, finished_stages, COMMAND)
    assert steps_done == []
    assert contents(finished_stages) == before


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_stopped_between_stages_goes_on_with_the_right_one(
    finished_stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    train, trained = stages_module.train_student, list[str]()

    def stopping(recipe: Recipe, folder: Path, *args: Any) -> None:
        if len(trained) == stop:
            raise KeyboardInterrupt
        trained.append(folder.name)
        train(recipe, folder, *args)

    monkeypatch.setattr(stages_module, "train_student", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_run(staged(), tmp_path / "run")
    monkeypatch.undo()
    done = spy_on_training(monkeypatch)
    train_run(staged(), tmp_path / "run")
    assert done == NAMES[stop:]
    for name in NAMES:
        student = Path("stages") / name / "student" / "adapter_model.safetensors"
        assert (tmp_path / "run" / student).read_bytes() == (finished_stages / student).read_bytes()
    done.clear()
    other = [STAGES[0], STAGES[1] | {"train": {"learning_rate": 0.03}}, STAGES[2]]
    train_run(staged(other), tmp_path / "run")
    assert done == NAMES[1:], "a change of stage 2 trains it and what comes after it anew"


def spy_on_training(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are really trained from here on."""
    done: list[str] = []
    step = stages_module.Stamps.step

    def spied(self: Any, name: str, inputs: str, **actions: Any) -> bool:
        was_done = step(self, name, inputs, **actions)
        if was_done and name == "train":
            done.append(self.path.parent.name)
        return was_done

    monkeypatch.setattr(stages_module.Stamps, "step", spied)
    return done


def test_o_lora_grows_the_adapter_and_keeps_the_earlier_ones(tmp_path: Path) -> None:
    run_recipe(staged(guard={"name": "o_lora"}, evaluate={"before": False, "max_new_tokens": 2}), tmp_path, COMMAND)
    told = json.loads((tmp_path / "stages.json").read_text())
    assert told["growth"] == [1.0, 2.0, 3.0]
    assert told["splits"]["id"]["fwt"] is None

    def effective(name: str) -> dict[str, torch.Tensor]:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        merged = PeftModel.from_pretrained(base, tmp_path / "stages" / name / "student").merge_and_unload()
        return {n: p.detach().double() for n, p in merged.named_parameters() if "proj" in n}

    second, third = effective(NAMES[1]), effective(NAMES[2])
    assert all(not torch.equal(second[name], third[name]) for name in second)
    from safetensors.torch import load_file

    whole, before = (load_file(tmp_path / "stages" / n / "student" / "adapter_model.safetensors") for n in NAMES[:0:-1])
    for name, old in before.items():
        assert torch.equal(whole[name][:, :4] if "lora_B" in name else whole[name][:4], old)


def test_adapters_of_other_scales_are_not_stacked(finished_stages: Path, tmp_path: Path) -> None:
    for name in ("below", "above"):
        shutil.copytree(finished_stages / "stages" / NAMES[0] / "student", tmp_path / name)
    config = tmp_path / "below" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 64}))
    with pytest.raises(UserError, match=r"64 / 2 and 4 / 2"):
        stack_adapters(tmp_path / "below", tmp_path / "above")


def test_the_page_shows_the_matrix_and_the_drift(finished_stages: Path, tmp_path: Path) -> None:
    page = (finished_stages / "report.html").read_text()
    for words in ("3 stages under the guard l2", "Who knows what, when", "What drifted", "ACC", "BWT", "2-inclusion"):
        assert words in page
    for name in NAMES:
        assert f"<title>Drift in stage {name}</title>" in page
    (heat,) = re.findall(r"<svg[^>]*><title>Accuracy in %: [^<]*\(ID\).*?</svg>", page, re.DOTALL)[:1]
    told = json.loads((finished_stages / "stages.json").read_text())["splits"]["id"]
    expected = [f"{100 * value:.0f}" for row in [told["b"], *told["R"]] for value in row]
    shown = [text for text in re.findall(r">([^<>]+)</text>", heat) if re.fullmatch(r"[0-9]+", text.strip())]
    assert sorted(shown[: len(expected)]) == sorted(expected)
    diagonal = sum(told["R"][j][j] for j in range(3)) / 3
    assert f'<b>{100 * diagonal:.1f}</b><br> <span class="muted">Copies' in page
    assert len(re.findall(r"a copy per task .*? parameters in all", page)) == 1
    assert "http://" not in page.replace("http://www.w3.org", "")
    again = report_runs(finished_stages, None, tmp_path / "again.html", COMMAND)
    assert again.read_bytes() == (finished_stages / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "empty list of stages"),
        ([{"isomers": {"families": ["rates"]}}], "Stage 1 needs a name"),
        ([{"name": "a"}, {"name": "a", "isomers": {"families": ["sharing"]}}], "stage a is there twice"),
        ([{"name": "a"}, {"name": "b"}], "a and b learn from the same problems"),
        ([{"name": "a", "seed": 3}], "sets seed, which all stages share"),
        ([{"name": "a", "isomer": {}}], r"Unknown key isomer in stage a\. Did you mean isomers"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        stage_recipes(staged(stages))


def test_a_guard_without_stages_and_stages_without_their_verb_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The guard ewc protects what earlier stages taught, and the recipe has no"):
        run_recipe(recipe_of(guard={"name": "ewc"}), tmp_path / "one", COMMAND)
    with pytest.raises(UserError, match="compare trains single distillations"):
        compare_methods(staged(), Plan(["iga"], [0]), tmp_path / "two", COMMAND)
    with pytest.raises(UserError, match="works on one distillation"):
        evaluate_run(staged(), tmp_path / "three")


def test_a_stage_without_rows_is_named_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    stages = [STAGES[0], {"name": "empty", "problems": str(tmp_path / "empty.jsonl")}]
    with pytest.raises(UserError, match="Stage 2-empty: "):
        run_recipe(staged(stages), tmp_path / "run", COMMAND)
    assert not list((tmp_path / "run").glob("stages/*/student"))


@pytest.mark.parametrize(
    ("text", "own", "message"),
    [
        ({"completion": None}, {}, "column completion: is missing"),
        ({}, {"train": {"max_length": 8}}, "No row is left to train on|1 of 1 rows"),
    ],
)
def test_a_stage_that_nothing_can_be_learned_from_is_named_before_any_training(
    tmp_path: Path, text: dict[str, Any], own: dict[str, Any], message: str
) -> None:
    row = {"id": "a", "prompt": "Add 2 and 3 and 4, please.", "answer": "9", "answer_type": "number", "split": "train"}
    rows = [row | {"completion": "The answer is 9."} | text, row | {"id": "b", "split": "id", "prompt": "Add 1 and 8."}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    stages = [
        STAGES[0],
        {"name": "poor", "problems": str(tmp_path / "rows.jsonl"), "max_refused": 0.9, "split": OPEN} | own,
    ]
    with pytest.raises(UserError, match=f"Stage 2-poor: .*({message})"):
        run_recipe(staged(stages), tmp_path / "run", COMMAND)
    assert not list((tmp_path / "run").glob("stages/*/student"))


def test_a_copy_of_a_stages_rows_is_no_other_stage(tmp_path: Path) -> None:
    row = {"prompt": "Add 2 and 3.", "completion": "5", "answer": "5", "answer_type": "number", "split": "train"}
    for name in ("one", "two"):
        lines = [row | {"id": f"{name}-a"}, row | {"id": f"{name}-b", "prompt": "Add 2 and 4.", "split": "id"}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stages = [{"name": name, "problems": str(tmp_path / f"{name}.jsonl"), "split": OPEN} for name in ("one", "two")]
    with pytest.raises(UserError, match="The stages 1-one and 2-two learn the same rows"):
        run_recipe(staged(stages), tmp_path / "run", COMMAND)


def test_steps_after_the_last_log_are_paid_for_too(tmp_path: Path) -> None:
    run_recipe(staged([STAGES[0]], guard=None, baseline=None), tmp_path / "run", COMMAND)
    every_step = json.loads((tmp_path / "run" / "stages.json").read_text())["train"][0]
    given = staged([STAGES[0] | {"train": {"logging_steps": 100}}], guard=None, baseline=None)
    run_recipe(given, tmp_path / "rare", COMMAND)
    rarely = json.loads((tmp_path / "rare" / "stages.json").read_text())["train"][0]
    assert (rarely["steps"], rarely["tokens"]) == (every_step["steps"], every_step["tokens"])
    assert rarely["seconds"] > 0


@pytest.mark.parametrize(
    ("guard", "own", "message"),
    [
        ({"name": "l2"}, {"method": "fish"}, "Stage 2-inclusion cannot be trained: l2 adds to the direction"),
        (
            {"name": "angular", "mode": "freeze"},
            {"method": "iga", "alignment": {"name": "iga", "space": "tangent"}},
            "Stage 2-inclusion cannot be trained: angular freeze holds one factor",
        ),
        ({"name": "none"}, {"train": {"shard_base": True}}, "Stage 2-inclusion: drift is measured against whole"),
        ({"name": "angular", "mode": "freeze"}, {}, "Stage 2-inclusion cannot be trained: angular would never measure"),
    ],
)
def test_a_guard_that_a_later_stage_cannot_have_is_refused_before_any_training(
    tmp_path: Path, guard: dict[str, Any], own: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_recipe(staged([STAGES[0], STAGES[1] | own], guard=guard), tmp_path / "run", COMMAND)
    assert not (tmp_path / "run" / "stages").exists()


def test_a_stage_that_names_a_method_takes_its_slots(tmp_path: Path) -> None:
    given = staged(alignment={"name": "erm"})
    methods = {name: (r.method, r.alignment) for name, r in stage_recipes(given).items()}
    assert methods["2-inclusion"] == ("erm", {"name": "erm"})
    assert methods["3-sharing"] == ("iga", None)


def test_a_stage_has_its_own_term_or_that_of_its_method() -> None:
    stages = [STAGES[0], {**STAGES[1], "method": "erm"}, {**STAGES[2], "method": "erm", "term": {"name": "cka"}}]
    given = staged(stages, method="isomer_consistency", term={"name": "isomer_consistency", "states": 2.0})
    terms = [stage.term for stage in stage_recipes(given).values()]
    assert terms == [given.term, None, {"name": "cka"}]
