"""Terms on the whole way: recipe, training, a student with a soft prompt that answers, and what is done again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from isodistill.data.encode import encode_prompt
from isodistill.data.load import write_rows
from isodistill.errors import UserError
from isodistill.isomers import generate_sets
from isodistill.pipeline import evaluate_run, run_recipe
from isodistill.recipe import load_recipe

from .conftest import COMMAND, recipe_of


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Questions of a domain that the small recipe does not have."""
    path = tmp_path / "target.jsonl"
    write_rows(path, generate_sets(n_sets=6, seed=500, families=["rates"], domains=["cooking"], difficulty=[1]))
    return path


def prada(target: Path | None, **options: Any) -> Any:
    term = {"name": "prada", "n_virt": 3, "prompt_learning_rate": 0.05} | options
    return recipe_of(method="prada", baseline="erm_pooled", target=None if target is None else str(target), term=term)


def test_prada_walks_the_whole_way(target: Path, tmp_path: Path, steps_done: list[str]) -> None:
    folder = tmp_path / "run"
    run_recipe(prada(target), folder, COMMAND)
    assert {p.name for p in (folder / "student").iterdir()} >= {"prompt", "adapter_model.safetensors"}
    assert not (folder / "baseline" / "student" / "prompt").exists()
    assert (folder / "prada" / "classifier.safetensors").is_file()
    assert json.loads((folder / "results.json").read_text())["method"] == "prada"
    written = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert written["term"]["lam"] == 1.0
    assert load_recipe(folder / "recipe.yaml").term == written["term"]
    steps_done.clear()
    run_recipe(prada(target), folder, COMMAND)
    assert steps_done == []
    write_rows(target, generate_sets(n_sets=5, seed=501, families=["rates"], domains=["cooking"], difficulty=[1]))
    run_recipe(prada(target), folder, COMMAND)
    assert {"train", "evaluate-after"} <= set(steps_done)


def test_the_prompt_is_part_of_the_student_that_answers(tmp_path: Path) -> None:
    """The adapter is the identity; answers differ from those before training by the prompt alone."""
    folder = tmp_path / "run"
    run_recipe(prada(None, lam=0.0, adapt="prompt"), folder, COMMAND)
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    texts: dict[str, list[str]] = {"before": [], "after": []}
    for line in lines:
        texts[line["stage"]].append(line["output"])
    assert texts["before"] != texts["after"]
    server = recipe_of(
        method="prada", baseline=None, term={"name": "prada", "lam": 0.0, "n_virt": 3},
        evaluate={"backend": "openai", "base_url": "http://localhost:1/v1", "model": "m", "before": False},
    )  # fmt: skip
    with pytest.raises(UserError, match="soft prompt, which no server"):
        run_recipe(server, folder, COMMAND)


@pytest.mark.parametrize(("adapt", "rate"), [("prompt+lora", 0.003), ("full", 0.05)])  # at which answers differ
def test_the_code_on_the_card_answers_as_the_evaluation_did(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapt: str, rate: float
) -> None:
    """Transformers' own generate behind the saved prompt, against the fast generator behind virtual ids."""
    folder = tmp_path / "run"
    recipe = recipe_of([f"train.learning_rate={rate}"], student=str(student_folder), method="prada", baseline=None,
                       term={"name": "prada", "lam": 0.0, "n_virt": 3, "adapt": adapt, "prompt_learning_rate": 0.5},
                       evaluate={"max_new_tokens": 6, "max_sets": 4, "before": False})  # fmt: skip
    run_recipe(recipe, folder, COMMAND)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "student" / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(folder / "student")
    names: dict[str, Any] = {}
    exec(code, names)
    asked = {row.id: row for row in load_all(folder / "problems" / "ood.jsonl")}
    found, bare, expected = [], [], []
    for line in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines()):
        if line["split"] == "ood":
            ids = encode_prompt(asked[line["item_id"]], names["tokenizer"], 512)
            settings = {"max_new_tokens": 6, "do_sample": False}
            alone = names["model"].generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist()
            for answers, tokens in ((found, names["answer"](ids, **settings)), (bare, alone)):
                answers.append(names["tokenizer"].decode(tokens, skip_special_tokens=True))
            expected.append(line["output"])
    assert len(expected) >= 2
    assert found == expected != bare


def test_full_training_is_what_answers(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_recipe(prada(target, adapt="full", n_virt=2), folder, COMMAND)
    assert (folder / "student" / "model" / "model.safetensors").is_file()


def test_questions_that_are_tested_are_told_and_a_target_without_rows_is_refused(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run_recipe(prada(target), folder, COMMAND)
    assert "are test problems, too" not in capsys.readouterr().out
    write_rows(target, load_all(folder / "problems" / "ood.jsonl"))
    run_recipe(prada(target), folder, COMMAND)
    assert "questions of the target are test problems, too" in capsys.readouterr().out
    with pytest.raises(UserError, match="needs questions of a target"):
        run_recipe(prada(None), folder, COMMAND)
    target.write_text("")
    with pytest.raises(UserError, match="no rows"):
        run_recipe(prada(target), folder, COMMAND)


def test_a_target_that_is_the_source_is_refused_before_training(
    target: Path, tmp_path: Path, steps_done: list[str]
) -> None:
    """The file of the problems itself; problems of the source, tested ones among them."""
    source = tmp_path / "problems.jsonl"
    rows = generate_sets(n_sets=12, seed=3, families=["rates"], domains=["law", "medicine"], difficulty=[1])
    write_rows(source, rows)
    split = {"held_out_domains": ["medicine"], "test": 0.25}

    def run(of: Path, name: str) -> None:
        recipe = recipe_of(problems=str(source), split=split, method="prada", target=str(of),
                           baseline=None, term={"name": "prada", "n_virt": 3})  # fmt: skip
        run_recipe(recipe, tmp_path / name, COMMAND)

    with pytest.raises(UserError, match=r"holds all \d+ questions that are learned from"):
        run(source, "same")
    law = [row for row in rows if row.domain == "law"]
    write_rows(target, law)
    with pytest.raises(UserError, match="is a problem of the source"):
        run(target, "all")
    write_rows(target, load_all(tmp_path / "all" / "problems" / "id.jsonl"))
    with pytest.raises(UserError, match="is a problem of the source"):
        run(target, "tested")
    assert "train" not in steps_done
    write_rows(target, [row for row in rows if row.domain == "medicine"])
    run(target, "other")


def load_all(path: Path) -> list[Any]:
    from isodistill.data.load import load_rows

    return load_rows(path).rows


def test_flexkd_walks_with_a_wider_teacher_from_a_folder(
    student_folder: Path, tmp_path: Path, tiny_model: LlamaForCausalLM, tokenizer: Any
) -> None:
    teacher = tmp_path / "teacher"
    torch.manual_seed(3)
    config = tiny_model.config.to_dict() | {"hidden_size": 48, "head_dim": 12}
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    folder = tmp_path / "run"
    recipe = recipe_of(
        student=str(student_folder), teacher=str(teacher), method="flexkd", baseline="erm_pooled",
        term={"name": "flexkd", "b": 2.0, "examples": 8},
    )  # fmt: skip
    run_recipe(recipe, folder, COMMAND)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "flexkd/r_0" in lines[0]
    assert len(list((folder / "flexkd").glob("scores-*.safetensors"))) == 1
    with pytest.raises(UserError, match="set teacher"):
        run_recipe(recipe_of(student=str(student_folder), method="flexkd"), tmp_path / "other", COMMAND)


def test_a_run_with_a_target_says_how_far_the_domains_lie_apart(target: Path, tmp_path: Path) -> None:
    """Before and after, for the method and its baseline, from unseen domains and from the target."""
    folder = tmp_path / "run"
    write_rows(target, generate_sets(n_sets=10, seed=500, families=["rates"], domains=["cooking"], difficulty=[1]))
    recipe = recipe_of(
        method="prada", baseline="erm_pooled", target=str(target), term={"name": "prada", "n_virt": 3},
        evaluate={"max_new_tokens": 2}, isomers={"n_sets": 36, "families": ["rates"], "domains": ["law", "medicine"]},
    )  # fmt: skip
    run_recipe(recipe, folder, COMMAND)
    for path in (folder, folder / "baseline"):
        before, after = (json.loads((path / "domains" / f"{name}.json").read_text()) for name in ("before", "after"))
        assert before["n"] == after["n"] >= 10
        assert all(0 <= after["probes"][side] <= 1 for side in ("ood", "target"))
        assert {side: len(points) for side, points in after["points"].items()} == dict.fromkeys(
            ("id", "ood", "target"), after["n"]
        )
    assert json.loads((folder / "domains" / "before.json").read_text()) == before
    page = (folder / "report.html").read_text()
    assert "Training domains and unseen ones" in page
    assert "fresh probe" in page.casefold()
    assert "target questions, % right" in page
    write_rows(target, generate_sets(n_sets=4, seed=500, families=["rates"], domains=["cooking"], difficulty=[1]))
    evaluate_run(recipe, folder)
    assert list(json.loads((folder / "domains" / "after.json").read_text())["points"]) == ["id", "ood"]
