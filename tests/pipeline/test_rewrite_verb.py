"""The verbs `isomers rewrite` and `isomers perturb` on files, with a teacher that knows the answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from isodistill.cli import main
from isodistill.data.load import load_rows
from isodistill.errors import TeacherError
from isodistill.pipeline import rewrite as rewrite_module
from isodistill.teachers.base import Answer, Messages, Sampling

ROW = {
    "prompt": "A baker fills 6 trays with 4 rolls each. Then 5 rolls are sold. How many rolls are left?",
    "completion": "6 x 4 = 24. 24 - 5 = 19. The answer is 19.",
    "answer": "19",
    "answer_type": "number",
    "domain": "cooking",
}
LAW = "A clerk binds 6 folders holding 4 briefs apiece. Later, a judge withdraws 5 briefs. How many briefs remain?"
READING = {
    "quantities": [{"name": n, "value": v, "unit": u} for n, v, u in (("a", 6, "p"), ("b", 4, "q"), ("c", 5, "q"))],
    "relations": [{"name": "x", "is": "a * b - c"}],
    "question": "x",
}
RECIPE = """
problems: mine.jsonl
rewrite: {domains: [law], writer: {kind: server, model: some, base_url: "http://localhost:1/v1"}}
"""


class Knowing:
    """Writes the one text that it knows and reads every problem alike; "no" as id gets a copy."""

    name = "knowing"
    asked = 0

    def answer(self, messages: Messages, sampling: Sampling) -> Answer:
        Knowing.asked += 1
        question = messages[0]["content"]
        if "JSON" in question:
            return Answer((json.dumps(READING),), ("stop",))
        return Answer((question.rpartition("\n\n")[2] if "second baker" in question else LAW,), ("stop",))


def call(*arguments: str) -> int:
    sys.argv = ["isodistill", *arguments]
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(rewrite_module, "make_teacher", lambda settings, recipe: Knowing())
    rows = [ROW | {"id": "yes"}, ROW | {"id": "no", "prompt": ROW["prompt"].replace("A baker", "A second baker")}]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def test_rewriting_writes_sets_refusals_and_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("isomers", "rewrite", "r.yaml", "--out", "out") == 0
    printed = capsys.readouterr().out
    assert "2 problems, 1 sets accepted, rejection rate 50.0%" in printed
    assert "near-copy: 1 sets, such as set no, law" in printed
    rows = load_rows(folder / "out" / "rows.jsonl").rows
    assert [(row.id, row.set_id, row.domain) for row in rows] == [("yes", "yes", "cooking"), ("yes/law", "yes", "law")]
    rejected = [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(each["set_id"], each["reason"], each["round"]) for each in rejected] == [("no", "near-copy", 1)]
    assert len((folder / "out" / "attempts.jsonl").read_text().splitlines()) == 2
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "1 of 2 problems became isomer sets; 50.0 % were rejected." in page
    assert "near-copy" in page
    assert LAW in page
    asked = Knowing.asked
    assert call("isomers", "rewrite", "r.yaml", "--out", "out") == 0
    assert Knowing.asked == asked
    assert (folder / "out" / "report.html").read_text(encoding="utf-8") == page


def test_a_teacher_that_gives_no_answer_stops_the_run_and_leaves_the_files(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("isomers", "rewrite", "r.yaml", "--out", "out") == 0
    before = {name: (folder / "out" / name).read_bytes() for name in ("rows.jsonl", "report.html")}

    class Overflowing(Knowing):
        def answer(self, messages: Messages, sampling: Sampling) -> Answer:
            raise TeacherError("status 400: context overflow", retry=False)

    monkeypatch.setattr(rewrite_module, "make_teacher", lambda settings, recipe: Overflowing())
    assert call("isomers", "rewrite", "r.yaml", "--out", "out", "--set", "rewrite.seed=1") == 2
    assert "no answer from the teacher: status 400: context overflow" in capsys.readouterr().err
    assert len((folder / "out" / "refused.jsonl").read_text().splitlines()) == 2
    assert {name: (folder / "out" / name).read_bytes() for name in before} == before


PRICED = (
    "--set", "rewrite.writer={kind: server, model: some, base_url: 'http://localhost:1/v1', price_prompt: 0, "
    "price_completion: 1000}", "--set", "rewrite.max_tokens=10",
)  # fmt: skip
"""A reply costs at most 0.01."""


def test_a_dry_run_asks_nothing_and_counts_what_is_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = Knowing.asked
    with Path("mine.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(ROW | {"id": "word", "answer_type": "string"}) + "\n")
    assert call("isomers", "rewrite", "r.yaml", "--out", "out", "--dry-run", *PRICED) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert Knowing.asked == asked
    assert "2 problems of 3 can be rewritten, into 2 texts; of the questions that are known already 0 are" in printed
    assert "writer, server:some: 2 requests, at most 4 if all is asked again" in printed
    assert "at most 20 tokens of answers, at most 0.0200 in money, 0.0400 if all is asked again" in printed
    assert "reader of rewritings, server:some: 2 requests, at most 8 if all is asked again" in printed
    assert not (folder / "out").exists()


def test_what_is_answered_is_not_counted_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Knowing, "name", "server:some")
    assert call("isomers", "rewrite", "r.yaml", "--out", "out") == 0
    capsys.readouterr()
    assert call("isomers", "rewrite", "r.yaml", "--out", "out", "--dry-run") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "of the questions that are known already 4 are answered" in printed
    assert "writer, server:some: 0 requests" in printed
    assert "no prices given" in printed


def test_the_limit_of_cost_is_of_writer_and_reader_together(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Paid(Knowing):
        name = "server:some"

        def answer(self, messages: Messages, sampling: Sampling) -> Answer:
            answer = super().answer(messages, sampling)
            return Answer(answer.texts, answer.finish_reasons, 0, 10)

    monkeypatch.setattr(rewrite_module, "make_teacher", lambda settings, recipe: Paid())
    asked = Knowing.asked
    assert call("isomers", "rewrite", "r.yaml", "--out", "out", *PRICED, "--set", "rewrite.max_cost=0.035") == 2
    assert "The cost limit is reached: 0.0300 of max_cost 0.035" in " ".join(capsys.readouterr().err.split())
    assert Knowing.asked == asked + 3  # two readings, one rewriting
    assert call("isomers", "rewrite", "r.yaml", "--out", "out", *PRICED, "--set", "rewrite.max_cost=1") == 0
    assert call("isomers", "rewrite", "r.yaml", "--out", "more", "--set", "rewrite.max_cost=1") == 2
    assert "needs price_prompt and price_completion" in capsys.readouterr().err


def test_prompts_of_your_own_are_asked_and_faults_in_them_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Listening(Knowing):
        def answer(self, messages: Messages, sampling: Sampling) -> Answer:
            seen.append(messages[0]["content"])
            return super().answer(messages, sampling)

    monkeypatch.setattr(rewrite_module, "make_teacher", lambda settings, recipe: Listening())
    mine = ("--set", "rewrite.prompts=mine")
    assert call("isomers", "rewrite", "r.yaml", "--out", "out", *mine) == 2
    assert "mine is no folder with any of rewrite.txt" in " ".join(capsys.readouterr().err.split())
    (folder / "mine").mkdir()
    for text, said in (
        ("Tell {{ problem }} anew.", "leaves out {{ domain }}"),
        ("Tell {{ problem }} in {{ world }}.", "names {{ world }}; it may name domain, problem"),
        ("Tell {{ problem", "cannot be read"),
    ):
        (folder / "mine" / "rewrite.txt").write_text(text, encoding="utf-8")
        assert call("isomers", "rewrite", "r.yaml", "--out", "out", *mine) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not seen
    (folder / "mine" / "rewrite.txt").write_text("Put this into {{ domain }}:\n\n{{ problem }}\n", encoding="utf-8")
    assert call("isomers", "rewrite", "r.yaml", "--out", "out", *mine) == 0
    assert f"Put this into law:\n\n{ROW['prompt']}" in seen
    (folder / "mine" / "reed.txt").write_text("x", encoding="utf-8")
    assert call("isomers", "rewrite", "r.yaml", "--out", "out", *mine) == 2
    assert "reed.txt is none of" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("setting", ["max_tokens=0", "temperature=-1", "near_copy=7", "temperature=.nan"])
def test_settings_out_of_range_are_told(folder: Path, setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("isomers", "rewrite", "r.yaml", "--out", "out", "--set", f"rewrite.{setting}") == 2
    assert f"rewrite.{setting.partition('=')[0]} is" in capsys.readouterr().err


def test_a_recipe_without_the_group_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bare.yaml").write_text("problems: mine.jsonl\n", encoding="utf-8")
    assert call("isomers", "rewrite", "bare.yaml", "--out", "out") == 2
    assert "The recipe has no group rewrite" in capsys.readouterr().err
    assert call("isomers", "rewrite", "r.yaml", "--out", "out", "--set", "rewrite.domain=[law]") == 2
    assert "Did you mean domains?" in capsys.readouterr().err


def test_perturbing_writes_rows_and_names_what_gives_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("mine.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(ROW | {"id": "bare", "completion": "It is 19."}) + "\n")
    assert call("isomers", "perturb", "mine.jsonl", "more.jsonl", "--n", "3") == 0
    printed = capsys.readouterr().out
    assert "6 rows from 2 templates" in printed
    assert "1 rows gave none, or too few" in printed
    assert len(load_rows(folder / "more.jsonl").rows) == 6
    refused = json.loads((folder / "more.refused.jsonl").read_text())
    assert refused["source"] == "bare"
    Path("mine.jsonl").write_text(json.dumps(ROW | {"id": "bare", "completion": "It is 19."}) + "\n", encoding="utf-8")
    assert call("isomers", "perturb", "mine.jsonl", "more.jsonl") == 2
    assert "No row of mine.jsonl gives a template" in capsys.readouterr().err
