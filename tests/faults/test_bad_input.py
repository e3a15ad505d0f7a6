"""Every accident with input ends in one clear paragraph and exit code 2, or in a counted refusal."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isodistill.cli import main
from isodistill.errors import UserError

pytestmark = pytest.mark.faults

Call = Callable[..., Any]


def assert_refused(ended: Any, *parts: str) -> None:
    """One paragraph on stderr that holds all parts."""
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err + ended.out
    message = ended.err[ended.err.index("error: ") :]
    assert "\n\n" not in message.strip()
    for part in parts:
        assert part in message


# ---- the file of problems ----


def test_missing_file_names_the_nearest(isodistill: Call, write_recipe: Call, write_data: Call) -> None:
    write_data()
    write_recipe(problems="data.jsnl.jsonl")
    assert_refused(isodistill("run", "recipe.yaml"), "data.jsnl.jsonl does not exist", "Did you mean 'data.jsonl'")


def test_empty_file(isodistill: Call, write_recipe: Call, write_data: Call) -> None:
    write_data([])
    write_recipe()
    assert_refused(isodistill("run", "recipe.yaml"), "data.jsonl holds no rows")


def test_truncated_gzip(isodistill: Call, write_recipe: Call, write_data: Call, folder: Path) -> None:
    whole = gzip.compress(write_data().read_bytes())
    (folder / "data.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    write_recipe(problems="data.jsonl.gz")
    assert_refused(isodistill("run", "recipe.yaml"), "data.jsonl.gz is damaged after line", "fetch it again")


def test_utf16_file(isodistill: Call, write_recipe: Call, write_data: Call) -> None:
    data = write_data()
    data.write_text(data.read_text(), encoding="utf-16")
    write_recipe()
    assert_refused(isodistill("run", "recipe.yaml"), "data.jsonl is UTF-16; save it as UTF-8")


def test_a_line_in_another_encoding_is_named(isodistill: Call, write_recipe: Call, write_data: Call) -> None:
    lines = write_data().read_bytes().splitlines(keepends=True)
    lines[6] = lines[6].replace(b"law", "l\u00e4w".encode("latin-1"))
    write_data().write_bytes(b"".join(lines))
    write_recipe()
    assert_refused(isodistill("run", "recipe.yaml"), "data.jsonl, line 7", "not UTF-8", "refused.jsonl", "max_refused")


def test_missing_column(isodistill: Call, write_recipe: Call, write_data: Call) -> None:
    rows = [json.loads(line) for line in write_data().read_text().splitlines()]
    write_data([{"text" if key == "prompt" else key: value for key, value in row.items()} for row in rows])
    write_recipe()
    assert_refused(isodistill("run", "recipe.yaml"), "data.jsonl has no column 'prompt'", "text", "columns=")


def test_mapped_column_that_is_not_there(isodistill: Call, write_recipe: Call, write_data: Call) -> None:
    write_data()
    write_recipe(columns={"prompt": "promt"})
    assert_refused(isodistill("run", "recipe.yaml"), "no column 'promt'", "Did you mean 'prompt'")


BAD_CELLS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"answer": "twelve"}, ("column answer", "'twelve'", "plain decimal")),
    ({"answer_type": "numbr"}, ("column answer_type", "'numbr'", "number")),
    ({"completion": "  "}, ("column completion", "is blank")),
    ({"prompt": ["add", 3]}, ("column prompt", "message")),
    ({"weight": -1}, ("column weight", "zero or more")),
    ({"id": "0/law"}, ("column id", "repeats '0/law'")),
]


@pytest.mark.parametrize(("cell", "parts"), BAD_CELLS, ids=[next(iter(cell)) for cell, _ in BAD_CELLS])
def test_bad_cell_names_file_line_and_column(
    isodistill: Call, write_recipe: Call, write_data: Call, cell: dict[str, Any], parts: tuple[str, ...]
) -> None:
    rows = [json.loads(line) for line in write_data().read_text().splitlines()]
    rows[4] |= cell
    write_data(rows)
    write_recipe()
    assert_refused(isodistill("run", "recipe.yaml"), "data.jsonl, line 5", *parts)


def test_refusals_within_the_share_are_counted_and_listed(
    isodistill: Call, write_recipe: Call, write_data: Call, folder: Path
) -> None:
    rows = [json.loads(line) for line in write_data().read_text().splitlines()]
    rows[4]["answer"] = "twelve"
    write_data(rows)
    write_recipe(max_refused=0.1)
    ended = isodistill("train", "recipe.yaml", "--out", "run")
    assert ended.code == 0
    assert "1 rows were refused" in ended.out
    listed = [json.loads(line) for line in (folder / "run/problems/refused.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["column"]) for entry in listed] == [(5, "answer")]


# ---- sets and domains ----


def test_sets_with_one_member(isodistill: Call, write_recipe: Call, write_data: Call) -> None:
    rows = [json.loads(line) for line in write_data().read_text().splitlines()]
    write_data([row for row in rows if (int(row["set_id"][1:]) % 2 == 0) == (row["domain"] == "law")])
    write_recipe()
    assert_refused(isodistill("run", "recipe.yaml"), "0 complete sets", "law, medicine", "missing_domain", "subset")


def test_one_set_with_one_member_is_counted(
    isodistill: Call, write_recipe: Call, write_data: Call, folder: Path
) -> None:
    rows = [json.loads(line) | {"split": "train"} for line in write_data().read_text().splitlines()]
    write_data([row for row in rows if row["id"] != "3/law"])
    write_recipe()
    ended = isodistill("train", "recipe.yaml", "--out", "run")
    assert ended.code == 0
    assert "1 rows or sets are not trained on" in ended.out
    listed = json.loads((folder / "run/refused/train.jsonl").read_text())
    assert (listed["source"], listed["reason"]) == ("set s3", "lacks law, so the whole set is left out")


def test_domain_with_no_rows_to_train_on(isodistill: Call, write_recipe: Call, write_data: Call) -> None:
    write_data()
    split = {"valid": 0.0, "test": 0.3, "held_out_domains": ["medicine"]}
    write_recipe(split=split, train={"steps": 1, "domains": ["law", "medicine"]})
    assert_refused(isodistill("run", "recipe.yaml"), "'medicine' has no rows to train on", "held_out_domains")


@pytest.mark.parametrize("where", ["split", "train"])
def test_unknown_domain_names_the_nearest(isodistill: Call, write_recipe: Call, write_data: Call, where: str) -> None:
    write_data()
    if where == "split":
        write_recipe(split={"test": 0.3, "held_out_domains": ["medecine"]})
    else:
        write_recipe(train={"steps": 1, "domains": ["law", "medecine"]})
    assert_refused(isodistill("run", "recipe.yaml"), "medecine", "Did you mean 'medicine'")


def test_training_domains_are_checked_when_the_problems_are_there_already(
    isodistill: Call, write_recipe: Call, write_data: Call
) -> None:
    write_data()
    write_recipe()
    assert isodistill("train", "recipe.yaml", "--out", "run").code == 0
    ended = isodistill("train", "recipe.yaml", "--out", "run", "--set", "train.domains=[law, medecine]")
    assert_refused(ended, "medecine", "Did you mean 'medicine'")


def test_method_of_domains_without_domains(
    isodistill: Call, write_recipe: Call, write_data: Call, folder: Path
) -> None:
    rows = [json.loads(line) for line in write_data().read_text().splitlines()]
    write_data([{k: v for k, v in row.items() if k != "domain"} for row in rows])
    write_recipe(method="iga", baseline="erm")
    assert_refused(isodistill("run", "recipe.yaml", "--out", "run"), "iga compares domains", "`domain` column")
    assert not (folder / "run/baseline/student").exists()  # not after the training of the baseline


def test_leak_between_given_splits(isodistill: Call, write_recipe: Call, write_data: Call) -> None:
    rows = [json.loads(line) for line in write_data().read_text().splitlines()]
    write_data([row | {"split": "train" if row["domain"] == "law" else "id"} for row in rows])
    write_recipe()
    assert_refused(isodistill("run", "recipe.yaml"), "set 's0'", "Clear the column split")


def test_no_test_rows_is_said_before_training(
    isodistill: Call, write_recipe: Call, write_data: Call, folder: Path
) -> None:
    write_data()
    write_recipe(split={"valid": 0.0, "test": 0.0})
    assert_refused(isodistill("run", "recipe.yaml", "--out", "run"), "no test split", "split.test")
    assert not (folder / "run/student").exists()


# ---- lengths ----


def test_long_training_prompt_is_refused_and_counted(
    isodistill: Call, write_recipe: Call, write_data: Call, folder: Path
) -> None:
    rows = [json.loads(line) | {"split": "train"} for line in write_data().read_text().splitlines()]
    rows[2]["prompt"] += " 7" * 600  # beyond the 512 positions of the tiny student, below the default max_length
    write_data(rows)
    write_recipe()
    ended = isodistill("train", "recipe.yaml", "--out", "refusing")
    assert_refused(ended, "1/law, column prompt", "max_length 512", "refusing/refused/train.jsonl")
    assert json.loads((folder / "refusing/refused/train.jsonl").read_text())["source"] == "1/law"
    write_recipe(max_refused=0.1)
    ended = isodistill("train", "recipe.yaml", "--out", "run")
    assert ended.code == 0
    listed = [json.loads(line) for line in (folder / "run/refused/train.jsonl").read_text().splitlines()]
    assert [(entry["source"], entry["column"]) for entry in listed] == [("1/law", "prompt"), ("set s1", "domain")]


def test_long_test_prompt_is_refused_and_counted(
    isodistill: Call, write_recipe: Call, write_data: Call, folder: Path
) -> None:
    rows = [json.loads(line) for line in write_data().read_text().splitlines()]
    rows = [row | {"split": "id" if int(row["set_id"][1:]) < 3 else "train"} for row in rows]
    rows[2]["prompt"] += " 7" * 600
    write_data(rows)
    write_recipe()
    assert_refused(
        isodistill("run", "recipe.yaml", "--out", "run"), "1 of 6 rows", "1/law, column prompt", "before.jsonl"
    )
    write_recipe(max_refused=0.2)
    ended = isodistill("run", "recipe.yaml", "--out", "run")
    assert ended.code == 0, ended.err
    assert "1 test rows could not be asked" in ended.out
    for stage in ("before", "after"):
        listed = json.loads((folder / f"run/refused/{stage}.jsonl").read_text())
        assert (listed["source"], listed["column"]) == ("1/law", "prompt")
    assert json.loads((folder / "run/results.json").read_text())["splits"]["id"]["n_items"] == 5


def test_rows_without_answers_cannot_be_asked(isodistill: Call, write_recipe: Call, write_data: Call) -> None:
    rows = [json.loads(line) for line in write_data().read_text().splitlines()]
    write_data([{k: v for k, v in row.items() if not k.startswith("answer")} for row in rows])
    write_recipe()
    assert_refused(isodistill("run", "recipe.yaml"), "column answer", "max_refused", "refused/test.jsonl")
    write_recipe(max_refused=1.0)
    assert_refused(isodistill("run", "recipe.yaml"), "No test row could be asked", "answer")


def test_code_without_a_test_is_refused_before_training(
    isodistill: Call, write_recipe: Call, write_data: Call, folder: Path
) -> None:
    rows = [json.loads(line) for line in write_data().read_text().splitlines()]
    write_data([row | {"answer": "def f():\n    return 1", "answer_type": "code"} for row in rows])
    write_recipe()
    assert_refused(isodistill("run", "recipe.yaml", "--out", "run"), "column answer", "holds no test", "test.jsonl")
    assert not (folder / "run/student").exists()


def test_rows_without_a_trained_token(isodistill: Call, write_recipe: Call, write_data: Call, folder: Path) -> None:
    rows = [json.loads(line) | {"split": "train"} for line in write_data().read_text().splitlines()]
    del rows[0]["completion"]
    write_data(rows)
    write_recipe()
    ended = isodistill("train", "recipe.yaml", "--out", "run")
    assert ended.code == 0
    assert "nothing to train on" in (folder / "run/refused/train.jsonl").read_text()
    write_data([{k: v for k, v in row.items() if k != "completion"} for row in rows])
    assert_refused(isodistill("train", "recipe.yaml", "--out", "run"), "No row is left to train on", "0/law")


# ---- the recipe ----


RECIPES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"studnet": "tiny"}, ("Unknown key studnet", "Did you mean student")),
    ({"split": {"tst": 0.3}}, ("Unknown key split.tst", "Did you mean split.test")),
    ({"train": {"lerning_rate": 1}}, ("Unknown key train.lerning_rate", "Did you mean train.learning_rate")),
    ({"train": {"learning_rate": "fast"}}, ("train.learning_rate", "must be float", "'fast'")),
    ({"train": {"optim": "adamm"}}, ("group train", "adamm")),
    ({"train": {"sets_per_batch": 0}}, ("sets_per_batch is 0", "at least 1")),
    ({"lora": {"rank": 8}}, ("Unknown key lora.rank",)),
    ({"lora": {"r": 0}}, ("r", "0")),
    ({"lora": {"r": 2, "target_modules": ["nope"]}}, ("nope", "peft.LoraConfig")),
    ({"method": "igaa"}, ("Unknown method 'igaa'", "Did you mean 'iga'")),
    ({"method": "iga", "baseline": "emr"}, ("Unknown method 'emr'", "Did you mean 'erm'")),
    ({"alignment": {"name": "iga", "taw": 1}}, ("'taw'", "Did you mean 'tau'")),
    ({"evaluate": {"batch_size": 0}}, ("evaluate.batch_size is 0", "at least 1")),
    ({"evaluate": "all"}, ("evaluate", "group of keys")),
    ({"seed": "one"}, ("seed", "must be int", "'one'")),
    ({"problems": "builtin:isomers", "isomers": {"families": ["rate"]}}, ("rate", "rates")),
    ({"problems": "builtin:isomers", "isomers": {"difficulty": ["hard"]}}, ("isomers.difficulty[0]", "must be int")),
    ({"problems": "real:gsm_symbolic"}, ("needs real_data",)),
]


@pytest.mark.parametrize(("keys", "parts"), RECIPES, ids=[json.dumps(keys)[1:40] for keys, _ in RECIPES])
def test_recipe_slips(
    isodistill: Call, write_recipe: Call, write_data: Call, keys: dict[str, Any], parts: tuple[str, ...]
) -> None:
    write_data()
    write_recipe(**keys)
    assert_refused(isodistill("run", "recipe.yaml"), *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"student: [tiny", ("recipe.yaml is not YAML", "line")),
        (b"- student", ("must be a mapping",)),
        ("student: t\u00efny".encode("latin-1"), ("recipe.yaml cannot be read", "utf-8")),
        (None, ("There is no recipe recipe.yaml",)),
    ],
)
def test_recipe_files_that_cannot_be_read(
    isodistill: Call, folder: Path, content: bytes | None, parts: tuple[str, ...]
) -> None:
    if content is not None:
        (folder / "recipe.yaml").write_bytes(content)
    assert_refused(isodistill("run", "recipe.yaml"), *parts)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("steps", ("--set takes key=value", "'steps'")),
        ("train.stps=3", ("Unknown key train.stps", "train.max_steps")),
        ("student.name=3", ("student holds a value",)),
        ("train=[", ("not YAML",)),
    ],
)
def test_bad_overrides(
    isodistill: Call, write_recipe: Call, write_data: Call, override: str, parts: tuple[str, ...]
) -> None:
    write_data()
    write_recipe()
    assert_refused(isodistill("run", "recipe.yaml", "--set", override), *parts)


# ---- students and folders ----


def test_student_folder_without_tokenizer(
    isodistill: Call, write_recipe: Call, write_data: Call, folder: Path, tiny_model: Any
) -> None:
    tiny_model.save_pretrained(folder / "student")
    write_data()
    write_recipe(student="./student")
    ended = isodistill("run", "recipe.yaml")
    assert_refused(ended, "has no tokenizer", "tokenizer.save_pretrained")


def test_student_folders_that_are_none(isodistill: Call, write_recipe: Call, write_data: Call, folder: Path) -> None:
    (folder / "empty").mkdir()
    write_data()
    for student, part in (("./empty", "has no config.json"), ("./nowhere", "no model folder"), ("x.gguf", "no GGUF")):
        write_recipe(student=student)
        assert_refused(isodistill("run", "recipe.yaml"), student, part)


def test_run_folder_that_is_a_file(isodistill: Call, write_recipe: Call, write_data: Call, folder: Path) -> None:
    write_data()
    write_recipe()
    (folder / "taken").write_text("mine")
    assert_refused(isodistill("run", "recipe.yaml", "--out", "taken"), "taken cannot be made", "--out")
    assert (folder / "taken").read_text() == "mine"


def test_verbs_on_what_is_no_run(isodistill: Call, folder: Path) -> None:
    (folder / "other").mkdir()
    assert_refused(isodistill("evaluate", "other"), "other is no run folder", "isodistill train")
    assert_refused(isodistill("report", "other"), "other has no results.json", "isodistill evaluate other")
    assert_refused(isodistill("report", "nowhere"), "nowhere")


# ---- damaged files of a run ----


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("steps.json", "steps.json is damaged"),
        ("predictions.jsonl", "predictions.jsonl, line 2"),
        ("results.json", "results.json"),
        ("student/adapter_model.safetensors", "evaluate-after"),
        ("checkpoints/checkpoint-2/state.safetensors", "checkpoint-2 cannot be read"),
        ("metrics.jsonl", "metrics.jsonl, line 1 is damaged. Delete that line"),
    ],
)
def test_damaged_file_of_a_run(
    isodistill: Call, write_recipe: Call, write_data: Call, folder: Path, file: str, part: str
) -> None:
    write_data()
    write_recipe()
    assert isodistill("run", "recipe.yaml", "--out", "run").code == 0
    damaged = folder / "run" / file
    if file == "predictions.jsonl":
        lines = damaged.read_text().splitlines(keepends=True)
        damaged.write_text("".join([lines[0], lines[1][:40] + "\n", *lines[2:]]))
    elif file == "metrics.jsonl":
        damaged.write_text('{"step": 1, "lo\n' + damaged.read_text())
    else:
        damaged.write_bytes(damaged.read_bytes()[:20])
    if file.startswith(("checkpoints", "metrics")):
        stamps = json.loads((folder / "run/steps.json").read_text())
        stamps["train"]["finished"] = False
        (folder / "run/steps.json").write_text(json.dumps(stamps))
    verb = ("report", "run") if file == "results.json" else ("run", "recipe.yaml", "--out", "run")
    assert_refused(isodistill(*verb), part)


def test_debug_shows_the_traceback_before_and_after_the_verb(
    isodistill: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["--debug", "run", "no.yaml"], ["run", "no.yaml", "--debug"], ["run", "--debug", "no.yaml"]):
        monkeypatch.setattr(sys, "argv", ["isodistill", *arguments])
        with pytest.raises(UserError, match=r"no recipe no\.yaml"):
            main()
