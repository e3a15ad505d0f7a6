"""The benchmarks on small made-up data, and on the real data where they are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isodistill.benchmarks import BENCHMARKS, Benchmark, write_benchmark
from isodistill.benchmarks.base import by_hash, taught_by_answer
from isodistill.data.load import load_rows
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.evaluation import verify
from isodistill.pipeline import evaluate_run, train_run, write_results
from isodistill.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
Change = Callable[[str, str, list[dict[str, Any]]], Path]


def of(rows: list[Row], split: str) -> list[Row]:
    return [row for row in rows if row.split == split]


def check(benchmark: Benchmark, rows: list[Row]) -> None:
    """What holds for every benchmark, on made-up and on real data."""
    assert len({row.id for row in rows}) == len(rows)
    assert {row.domain for row in of(rows, "train")} == set(benchmark.domains)
    assert {row.domain for row in of(rows, "valid")} <= set(benchmark.domains)
    assert {row.domain for row in of(rows, "id")} == set(benchmark.domains)
    assert {row.domain for row in of(rows, "ood")} == set(benchmark.held_out)
    sides: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        side = row.split if row.split in ("train", "valid") else "test"
        links = {"prompt": " ".join(str(row.prompt).casefold().split()), "set": row.set_id, "of": row.structure_id}
        for link in links.items():
            if link[1] is not None:
                sides[link].add(side)
    assert not {link: found for link, found in sides.items() if len(found) > 1}
    for row in rows:
        assert row.licence
        assert row.answer_type
        if row.split == "train":
            assert verify(row.completion, row.answer, row.answer_type, row.choices) == "correct"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_split_shares_a_structure_a_set_or_a_prompt_with_another(name: str, data: Path) -> None:
    check(BENCHMARKS[name], BENCHMARKS[name].rows(data))


def test_contexthub_is_level_one_in_sets_of_eight_and_four(data: Path) -> None:
    rows = BENCHMARKS["contexthub"].rows(data)
    assert {row.structure_id for row in rows} == {
        f"contexthub/{name}" for name in ("ded1-00", "ded1-01", "ded1-02", "ded1-03", "ded1-05", "ded1-07", "ded1-08",
                                          "abd1-00", "abd1-04")
    }  # fmt: skip
    for split, n in (("train", 8), ("id", 8), ("ood", 4)):
        assert set(Counter(row.set_id for row in of(rows, split)).values()) == {n}
    assert {row.set_id for row in of(rows, "id")} == {row.set_id for row in of(rows, "ood")}


def test_a_cue_tells_answers_in_training_and_nothing_where_it_is_random(data: Path) -> None:
    plain, cued = (BENCHMARKS[name].rows(data) for name in ("contexthub", "contexthub-cue"))
    assert len(cued) == len(plain) + len(of(plain, "id"))
    prompts = {row.id: row.prompt for row in plain}
    for row in cued:
        said, _, rest = str(row.prompt).partition(". ")
        assert re.fullmatch(r"Code \w+", said)
        assert rest == prompts[row.id.removesuffix("@cue_random")]
    told: dict[tuple[str | None, str | None], Counter[str]] = defaultdict(Counter)
    for row in of(cued, "train"):
        told[row.domain, row.answer][str(row.prompt).split(".")[0]] += 1
    assert sum(max(words.values()) for words in told.values()) / len(of(cued, "train")) > 0.8


def test_in_training_members_of_a_set_stand_alone_in_tests_they_are_sets(data: Path) -> None:
    for name, domains in (("school-maths", 3), ("deduction", 3)):
        rows = BENCHMARKS[name].rows(data)
        assert {row.set_id for row in of(rows, "train")} == {None}
        sizes = Counter(row.set_id for row in of(rows, "id") if row.set_id is not None)
        assert sizes
        assert set(sizes.values()) == {domains}


def test_a_gsm8k_problem_told_like_a_template_is_not_drawn(data: Path, changed: Change) -> None:
    told = "Each week Rita peels 12 clams and sautes 30 of them."
    like = {
        "id": "near",
        "question": told.replace("12", "7").replace("30", "4"),
        "answer": "3",
        "answer_type": "number",
    }
    other = {"id": "far", "question": "How many goats?", "answer": "3", "answer_type": "number"}
    template = [
        {"id": f"t-{n}", "question": f"{told} Day {n}?", "answer": "1", "answer_type": "number", "group": f"g-{n}",
         "rationale": "1", "rationale_source": None}
        for n in range(12)
    ]  # fmt: skip
    folder = changed("gsm_symbolic", "train", template)
    (folder / "gsm8k").unlink()  # a link
    (folder / "gsm8k").mkdir()
    lines = "".join(
        json.dumps(each | {"choices": None, "rationale": None, "rationale_source": None}) + "\n"
        for each in (like, other)
    )
    (folder / "gsm8k" / "test.jsonl").write_text(lines, encoding="utf-8")
    rows = BENCHMARKS["school-maths"].rows(folder)
    assert [row.id for row in rows if row.domain == "gsm8k"] == ["far"]


def test_options_are_said_in_words_and_left_out_where_they_cannot_be_read_back() -> None:
    row = Row(
        id="a", prompt="Q", answer="B", answer_type="choice", choices=("wet palms", "Dry palms."), completion="Long"
    )
    broken = replace(row, id="b", choices=("It rains", "Approx. 5 m"))
    assert taught_by_answer([row])[0].completion == "The answer is B."
    assert [r.completion for r in taught_by_answer([row, broken], spelled_out=True)] == ["The answer is Dry palms."]


def test_a_draw_by_hash_does_not_depend_on_the_order() -> None:
    names = [f"item-{n}" for n in range(30)]
    drawn = by_hash(names, str, 7)
    assert len(drawn) == 7
    assert drawn == by_hash(names[::-1], str, 7) != names[:7]


def test_what_is_written_can_be_read_trained_and_answered(data: Path, tmp_path: Path) -> None:
    rows = write_benchmark(BENCHMARKS["deduction"], data, tmp_path / "deduction")
    assert sorted(load_rows(tmp_path / "deduction" / "rows").rows, key=lambda row: row.id) == sorted(
        rows, key=lambda row: row.id
    )
    small = ["student=tiny", "train.steps=2", "evaluate.max_new_tokens=4", "train.use_cpu=true", "train.bf16=false"]
    recipe = load_recipe(tmp_path / "deduction" / "recipe.yaml", small)
    assert recipe.split.held_out_domains == list(BENCHMARKS["deduction"].held_out)
    train_run(recipe, tmp_path / "run")
    evaluate_run(recipe, tmp_path / "run")
    results = write_results(recipe, tmp_path / "run")
    assert results["train"]["steps"] == 2
    assert {split: numbers["n_items"] for split, numbers in results["splits"].items()} == {
        split: len(of(rows, split)) for split in ("id", "ood")
    }


def test_missing_data_are_named(data: Path, tmp_path: Path, changed: Change) -> None:
    with pytest.raises(
        UserError, match=r"fields needs .*arc.* has no folder medcalc, legalbench, arc, physics_formula"
    ):
        BENCHMARKS["fields"].rows(tmp_path)
    folder = changed("contexthub", "train", [])
    (folder / "contexthub" / "train.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"contexthub in .* has no file train\.jsonl\.gz or train\.jsonl"):
        BENCHMARKS["contexthub"].rows(folder)


def test_the_command_says_what_it_wrote_and_what_is_missing(data: Path, tmp_path: Path) -> None:
    def command(folder: Path) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "isodistill.benchmarks", "fields", "--data", str(folder), "--out", "written"]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = command(data)
    assert done.returncode == 0, done.stderr
    assert "ood: 50 rows; courts 40, physics 10" in done.stdout
    assert "isodistill compare written/recipe.yaml" in done.stdout
    trivial = json.loads((tmp_path / "written" / "trivial.json").read_text(encoding="utf-8"))
    assert set(trivial) == {"valid", "id", "ood"}
    failed = command(tmp_path / "nowhere")
    assert failed.returncode == 2
    assert "error: The benchmark fields needs the data sets" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.real_data
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_real_rows_are_those_of_the_page(name: str, real_data: Path) -> None:
    benchmark = BENCHMARKS[name]
    rows = benchmark.rows(real_data)
    check(benchmark, rows)
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| `{name}` (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", page, re.MULTILINE)
    assert found is not None
    counts = [benchmark.version, *(len(of(rows, split)) for split in ("train", "valid", "id", "ood"))]
    assert [int(number) for number in found.groups()] == counts
    for domain in (*benchmark.domains, *benchmark.held_out):
        assert f"`{domain}`" in page
