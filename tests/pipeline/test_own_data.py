"""What users bring: their own files, chat messages, data without domains, their own student folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from isodistill.errors import UserError
from isodistill.pipeline import run_recipe

from .conftest import COMMAND, recipe_of, sums

WriteRows = Callable[..., Path]
SPLIT = {"valid": 0.1, "test": 0.2}


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def test_two_hundred_rows_of_ones_own(tmp_path: Path, write_rows: WriteRows) -> None:
    data = write_rows(sums(100))
    recipe = recipe_of(problems=str(data), split=SPLIT | {"held_out_domains": []}, evaluate={"max_new_tokens": 4})
    run_recipe(recipe, tmp_path / "run", COMMAND)
    sizes = {p.stem: len(p.read_text().splitlines()) for p in (tmp_path / "run" / "problems").glob("*.jsonl")}
    assert sizes == {"train": 140, "valid": 20, "id": 40}
    assert results_of(tmp_path / "run")["splits"]["id"]["n_items"] == 40
    assert results_of(tmp_path / "run")["splits"]["id"]["n_sets"] == 20


def test_other_column_names(tmp_path: Path, write_rows: WriteRows) -> None:
    renamed = [{"problem" if k == "prompt" else k: v for k, v in row.items()} for row in sums(20)]
    keys = {"problems": str(write_rows(renamed)), "columns": {"prompt": "problem"}, "split": SPLIT}
    recipe = recipe_of(**keys, method="erm", evaluate={"max_new_tokens": 2})
    run_recipe(recipe, tmp_path / "run", COMMAND)
    assert results_of(tmp_path / "run")["splits"]["id"]["n_items"] == 8


def test_messages_need_a_chat_template_and_use_it(tmp_path: Path, write_rows: WriteRows, student_folder: Path) -> None:
    rows = sums(20)
    for row in rows:
        row["prompt"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["prompt"]}]
    keys = {"problems": str(write_rows(rows)), "split": SPLIT, "evaluate": {"max_new_tokens": 2}}
    with pytest.raises(UserError, match="holds messages, but the tokenizer has no chat template"):
        run_recipe(recipe_of(**keys), tmp_path / "tiny", COMMAND)
    run_recipe(recipe_of(**keys, student=str(student_folder)), tmp_path / "run", COMMAND)
    assert results_of(tmp_path / "run")["splits"]["id"]["n_items"] == 8
    assert "Be brief." in (tmp_path / "run" / "report.html").read_text()


def test_data_without_domains_train_by_erm_and_not_by_iga(tmp_path: Path, write_rows: WriteRows) -> None:
    rows = [{k: v for k, v in row.items() if k not in ("domain", "set_id")} for row in sums(30, ("law",))]
    keys = {"problems": str(write_rows(rows)), "split": SPLIT, "evaluate": {"max_new_tokens": 2}, "baseline": None}
    run_recipe(recipe_of(**keys, method="erm"), tmp_path / "run", COMMAND)
    numbers = results_of(tmp_path / "run")["splits"]["id"]
    assert numbers["n_items"] == 6
    assert numbers["n_sets"] == 0
    with pytest.raises(UserError, match="iga compares domains, but the training rows have 1"):
        run_recipe(recipe_of(**keys, method="iga"), tmp_path / "iga", COMMAND)


@pytest.fixture
def trained(tmp_path: Path, student_folder: Path) -> Path:
    run_recipe(recipe_of(student=str(student_folder), baseline=None), tmp_path / "run", COMMAND)
    return tmp_path / "run" / "student"


def test_the_adapter_loads_in_plain_peft_and_merges_into_plain_transformers(
    tmp_path: Path, trained: Path, student_folder: Path
) -> None:
    ids = AutoTokenizer.from_pretrained(trained)("In law, add 4 and 5.", return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(student_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, trained).eval()
        expected = adapted(ids).logits
        merged = adapted.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
        torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)


def test_the_adapter_folder_is_all_that_is_needed(trained: Path, student_folder: Path) -> None:
    config = json.loads((trained / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(student_folder)
    names = {path.name for path in trained.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
