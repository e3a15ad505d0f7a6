"""The verb teach: problems and a server in, verified rows out that train reads; nothing is asked twice."""

from __future__ import annotations

import fcntl
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import yaml

from isodistill.cli import main
from isodistill.pipeline import Plan, compare_methods
from isodistill.recipe import load_recipe

from .conftest import SETTINGS, sums

KEY = "secret-key-that-appears-nowhere"


class Adder(BaseHTTPRequestHandler):
    """Adds the numbers of a problem; a model called wrong-N is wrong where the first number is N."""

    asked: ClassVar[list[dict[str, Any]]] = []
    aside: ClassVar[dict[int, str]] = {}

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(request)
        a, b = map(int, re.findall(r"\d+", request["messages"][-1]["content"])[:2])
        slip = request["model"] == f"wrong-{a}"
        text = f"{a} + {b} = {a + b}.{self.aside.get(a, '')} The answer is {a + b + slip}."
        choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]
        usage = {"prompt_tokens": 20, "completion_tokens": 10}
        status = {999: 400, 998: 500}.get(a, 200)
        content = json.dumps({"choices": choices, "usage": usage, "error": {"message": "context overflow"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("openai")
    monkeypatch.setattr(Adder, "asked", [])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Adder)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def write(tmp_path: Path, url: str, write_rows: Callable[..., Path]) -> Callable[..., Path]:
    """A recipe whose problems have no traces; keywords go into its group teach."""

    def write(rows: list[dict[str, Any]] | None = None, **teach: Any) -> Path:
        problems = [{k: v for k, v in row.items() if k != "completion"} for row in rows or sums(12)]
        settings = {
            **SETTINGS, "problems": str(write_rows(problems)), "method": "erm", "baseline": None,
            "split": {"valid": 0.2, "test": 0.2}, "max_refused": 0.1,
            "teach": {"teachers": {"a": {"model": "adder", "base_url": url}}, **teach},
        }  # fmt: skip
        settings.pop("isomers")
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


@pytest.fixture
def teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Call a verb on a recipe; exit code, and everything that was printed."""

    def call(recipe: Path, *options: str, verb: str = "teach") -> tuple[int, str]:
        arguments = ["isodistill", verb, str(recipe), "--out", str(tmp_path / "run"), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), "".join(capfd.readouterr())

    return call


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_problems_become_verified_rows_that_a_run_trains_on(
    write: Any, teach: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = write(), tmp_path / "run"
    code, printed = teach(recipe)
    assert code == 0, printed
    problems = {row["id"]: row for split in ("train", "valid") for row in lines(run / f"problems/{split}.jsonl")}
    taught = {row["id"]: row for split in ("train", "valid") for row in lines(run / f"taught/{split}.jsonl")}
    assert taught.keys() == problems.keys()
    for name, row in taught.items():
        assert row["completion"].endswith(f"The answer is {problems[name]['answer']}.")
        assert (row["teacher"], row["valid"]) == ("server:adder", True)
        assert {k: row[k] for k in problems[name]} == problems[name]
    test = {row["prompt"] for row in lines(run / "problems/id.jsonl")}
    assert not any(prompt in json.dumps(asked) for prompt in test for asked in Adder.asked)
    assert "100.0%" in printed
    n_asked = len(Adder.asked)
    assert n_asked == len(problems) == len(lines(run / "traces.jsonl")) - 1
    code, printed = teach(recipe, verb="run")
    assert code == 0, printed
    assert len(Adder.asked) == n_asked
    assert (run / "report.html").exists()
    assert yaml.safe_load((run / "recipe.yaml").read_text())["teach"]["teachers"]["a"]["tries"] == 6
    for path in run.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in printed


def test_wrong_traces_are_marked_and_not_learned_from_unless_asked_for(write: Any, teach: Any, tmp_path: Path) -> None:
    teachers = {"a": {"model": "wrong-4", "base_url": yaml.safe_load(write().read_text())["teach"]["teachers"]["a"][
        "base_url"]}}  # fmt: skip
    recipe, run = write(teachers=teachers), tmp_path / "run"
    options = ["--set", "split.valid=0", "--set", "split.test=0.1", "--set", "split.seed_data=1"]
    assert teach(recipe, *options)[0] == 0
    asked = len(Adder.asked)
    verdicts = lines(run / "taught/verdicts.jsonl")
    wrong = {v["row"] for v in verdicts if v["verdict"] == "wrong"}
    assert len(wrong) == 2  # s2 in two domains
    assert all("answers 10 instead of 9" in v["reason"] for v in verdicts if v["row"] in wrong)
    assert {row["id"] for row in lines(run / "taught/train.jsonl")} == {v["row"] for v in verdicts} - wrong
    assert teach(recipe, *options, "--set", "teach.keep=all")[0] == 0
    kept = {row["id"]: row for row in lines(run / "taught/train.jsonl")}
    assert kept.keys() == {v["row"] for v in verdicts}
    assert all(kept[name].get("valid") is None for name in wrong)
    assert len(Adder.asked) == asked
    assert json.loads((run / "taught/teach.json").read_text())["by_domain"]["law"]["verdicts"]["wrong"] == 1


def test_two_teachers_disagree_and_a_column_chooses_between_them(write: Any, teach: Any, tmp_path: Path) -> None:
    address = yaml.safe_load(write().read_text())["teach"]["teachers"]["a"]["base_url"]
    teachers = {name: {"model": model, "base_url": address} for name, model in (("a", "adder"), ("b", "wrong-5"))}
    options = ["--set", "split.valid=0", "--set", "split.test=0.1", "--set", "split.seed_data=1"]
    code, printed = teach(write(teachers=teachers), *options)
    assert code == 0, printed
    numbers = json.loads((tmp_path / "run/taught/teach.json").read_text())
    assert numbers["disagreement"] == {"server:adder | server:wrong-5": {"problems": 22, "differ": 2}}
    assert "other answers to 2 of 22 problems" in printed
    rows = lines(tmp_path / "run/taught/train.jsonl")
    assert len(rows) == 22  # equal traces of a problem count once
    code, _ = teach(write(teachers=teachers, by="domain", route={"law": "b", "medicine": "a"}), *options)
    assert code == 0
    assert {(r["domain"], r["teacher"]) for r in lines(tmp_path / "run/taught/train.jsonl")} == {
        ("law", "server:wrong-5"), ("medicine", "server:adder")
    }  # fmt: skip
    code, printed = teach(write(teachers=teachers, by="domain", route={"law": "b"}), *options)
    assert (code, "domain 'medicine', which teach.route gives to no teacher" in printed) == (2, True)


def test_a_dry_run_asks_nothing_and_tells_requests_tokens_and_money(write: Any, teach: Any, tmp_path: Path) -> None:
    prices = ["--set", "teach.teachers.a.price_prompt=2", "--set", "teach.teachers.a.price_completion=10"]
    recipe = write()
    code, printed = teach(recipe, "--dry-run")
    assert code == 0
    assert "0 answered already" in printed
    assert "no prices given" in printed
    assert Adder.asked == []
    assert not (tmp_path / "run/traces.jsonl").exists()
    n = int(printed.split(" requests")[0].split("\n")[-1])
    money = float(re.search(r"at most (\d+\.\d+) in money", teach(recipe, "--dry-run", *prices)[1])[1])  # type: ignore[index]
    assert n * 512 * 10e-6 < money < n * (512 * 10e-6 + 1e-3)
    assert teach(recipe)[0] == 0
    assert f"{n} requests, {n} answered already, 0 to ask" in teach(recipe, "--dry-run")[1]


def test_another_recipe_is_refused_and_the_answers_stay(write: Any, teach: Any, tmp_path: Path) -> None:
    assert teach(write())[0] == 0
    before = (tmp_path / "run/traces.jsonl").read_bytes()
    code, printed = teach(write(temperature=0.5))
    assert code == 2
    assert "holds answers of another recipe: sampling was" in printed
    assert (tmp_path / "run/traces.jsonl").read_bytes() == before
    asked = len(Adder.asked)
    assert teach(write())[0] == 0
    assert len(Adder.asked) == asked


def test_refusals_are_counted_and_listed(write: Any, teach: Any, tmp_path: Path) -> None:
    rows = sums(12)
    rows[4]["prompt"] = "In law, add 999 and 7."
    recipe = write(rows)
    options = ["--set", "split.valid=0", "--set", "split.test=0.1", "--set", "split.seed_data=1"]
    code, printed = teach(recipe, *options, "--set", "max_refused=0")
    assert code == 2
    assert "status 400: context overflow" in printed
    asked = len(Adder.asked)
    code, printed = teach(recipe, *options)
    assert (code, "1 refused" in printed) == (0, True)
    assert len(Adder.asked) == asked + 1
    (refused,) = lines(tmp_path / "run/refused/teach.jsonl")
    assert "context overflow" in refused["reason"]


def test_a_finished_teaching_can_be_redone_with_other_settings(write: Any, teach: Any, tmp_path: Path) -> None:
    rows = sums(40)
    for row in rows[:46:2]:
        row["prompt"] = f"In law, add 999 and {row['answer']}."
    for row in rows[1:80:20]:
        row["prompt"] = f"In medicine, add 998 and {row['answer']}."
    options = ["--set", "split.valid=0", "--set", "split.test=0.1", "--set", "max_refused=0.5"]
    options += ["--set", "teach.teachers.a.tries=1"]
    assert teach(write(rows), *options)[0] == 0
    first = (tmp_path / "run/taught/train.jsonl").read_bytes()
    for keep in ("all", "correct"):
        code, printed = teach(write(rows), *options, "--set", f"teach.keep={keep}")
        assert code == 0, printed
    assert (tmp_path / "run/taught/train.jsonl").read_bytes() == first


def test_what_was_taught_stays_until_the_new_rows_are_there(write: Any, teach: Any, tmp_path: Path) -> None:
    run, options = tmp_path / "run", ["--set", "split.valid=0", "--set", "split.test=0.1"]
    assert teach(write(), *options)[0] == 0
    first = {path.name: path.read_bytes() for path in (run / "taught").iterdir()}
    assert teach(write(max_tokens=7), *options)[0] == 2  # the store of another recipe
    address = yaml.safe_load(write().read_text())["teach"]["teachers"]["a"]["base_url"]
    rows = [row | {"answer": "1"} for row in sums(12)]
    code, printed = teach(write(rows), *options)
    assert (code, "See refused/taught/verdicts.jsonl" in printed, "0 of 22 traces correct" in printed) == (
        2,
        True,
        True,
    )
    assert {path.name: path.read_bytes() for path in (run / "taught").iterdir()} == first
    assert json.loads((run / "refused/taught/teach.json").read_text())["all"]["verdicts"] == {"wrong": 22}
    asked = len(Adder.asked)
    teachers = {"a": {"model": "adder", "base_url": address}, "b": {"model": "wrong-4", "base_url": address}}
    code, printed = teach(write(teachers=teachers), *options)  # one more teacher: the first is not asked again
    assert code == 0, printed
    assert {request["model"] for request in Adder.asked[asked:]} == {"wrong-4"}
    assert not (run / "refused/taught").exists()


def test_other_traces_on_disk_are_other_answers(write: Any, teach: Any, tmp_path: Path) -> None:
    options = ["--set", "split.valid=0", "--set", "split.test=0.1"]

    def taught(folder: str, said: str, **settings: Any) -> set[str]:
        path = tmp_path / folder / "all.jsonl"
        path.parent.mkdir(exist_ok=True)
        rows = [row | {"completion": f"{said} {row['completion']}", "other": row["completion"]} for row in sums(12)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, printed = teach(write(teachers={"a": {"kind": "replay", "files": str(path), **settings}}), *options)
        assert code == 0, printed
        return {row["completion"].split()[0] for row in lines(tmp_path / "run/taught/train.jsonl")}

    assert taught("one", "First.") == {"First."}
    assert taught("two", "Second.") == {"Second."}  # another folder, the same name
    assert taught("two", "Third.") == {"Third."}  # the same file, edited
    assert "Third." not in taught("two", "Third.", columns={"completion": "other"})
    assert taught("one", "First.") == {"First."}


def test_a_dry_run_reads_a_store_that_another_process_is_writing(write: Any, teach: Any, tmp_path: Path) -> None:
    recipe = write(n=3, temperature=1.0)
    assert teach(recipe)[0] == 0
    with (tmp_path / "run/traces.jsonl").open("r+b") as store:
        fcntl.flock(store, fcntl.LOCK_EX)
        store.seek(0, 2)
        store.write(b'{"key": "half')
        store.flush()
        code, printed = teach(recipe, "--dry-run")
        assert (code, " 0 to ask" in printed) == (0, True)
        assert teach(recipe, "--set", "teach.keep=all")[0] == 2  # but two cannot write


def test_a_dry_run_counts_the_prompt_for_every_text_of_a_server(write: Any, teach: Any) -> None:
    def read(**settings: Any) -> int:
        printed = teach(write(temperature=1.0, **settings), "--dry-run")[1]
        return int(re.search(r"about (\d+) tokens of prompts", printed)[1])  # type: ignore[index]

    assert read(n=3) == 3 * read(n=1)


def test_two_servers_with_one_model_have_names(write: Any, teach: Any, tmp_path: Path) -> None:
    address = yaml.safe_load(write().read_text())["teach"]["teachers"]["a"]["base_url"]
    teachers = {name: {"model": "adder", "base_url": address} for name in "ab"}
    code, printed = teach(write(teachers=teachers))
    assert (code, "Give one of them a name" in printed) == (2, True)
    teachers["b"]["name"] = "other"
    assert teach(write(teachers=teachers))[0] == 0
    numbers = json.loads((tmp_path / "run/taught/teach.json").read_text())
    assert set(numbers["by_teacher"]) == {"server:adder", "server:other"}


def test_a_route_that_nothing_takes_is_refused(write: Any, teach: Any) -> None:
    code, printed = teach(write(by="domain", route={"law": "a", "medicine": "a", "lore": "a"}))
    assert (code, "teach.route names 'lore', but no row has this domain" in printed) == (2, True)
    code, printed = teach(write(route={"law": "a"}))
    assert (code, "name the column in teach.by" in printed) == (2, True)


def test_log_probs_are_asked_for_where_the_recipe_says_so(write: Any, teach: Any) -> None:
    code, printed = teach(write(logprobs=2))
    assert (code, "log-probs were asked for, and the server gave none" in printed) == (2, True)
    assert {request["top_logprobs"] for request in Adder.asked} == {2}


def test_characters_that_are_no_unicode_are_counted(
    write: Any, teach: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adder, "aside", {4: " \ud800"})
    code, printed = teach(write(), "--set", "split.valid=0", "--set", "split.test=0.1", "--set", "split.seed_data=1")
    assert (code, "2 traces have characters that are no Unicode" in printed) == (0, True)
    assert any("\ufffd" in row["completion"] for row in lines(tmp_path / "run/taught/train.jsonl"))


def test_an_example_without_a_solution_is_refused(write: Any, teach: Any, tmp_path: Path) -> None:
    shown = tmp_path / "shown.jsonl"
    shown.write_text(
        json.dumps({"id": "bare", "prompt": "Add 1 and 1.", "answer": "2", "answer_type": "number"}) + "\n"
    )
    code, printed = teach(write(prompt="few_shot", examples=str(shown)))
    assert (code, "row bare of" in printed, "has no completion" in printed) == (2, True, True)
    assert Adder.asked == []


def test_no_trace_to_learn_from_is_an_error_that_says_why(write: Any, teach: Any) -> None:
    rows = [row | {"answer": "no", "answer_type": "yesno"} for row in sums(12)]
    code, printed = teach(write(rows))
    assert code == 2
    assert "traces can be learned from. The first one gives no final answer" in printed


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({}, "names no teacher"),
        ({"teachers": {"a": {"model": "m"}}}, "of kind server needs base_url"),
        ({"teachers": {"a": {"kind": "oracle"}}}, "kind is 'oracle'"),
        ({"teachers": {"a": {"model": "m", "base_url": "http://u:p@h/v1"}}}, "without user, password"),
        *(
            ({"teachers": {"a": {"model": "m", "base_url": "http://h/v1", "key_from": key}}}, "never the key itself")
            for key in ("sk-12345", "hf_12345", "gsk_12345", "sk_live_12345")
        ),
        ({"teachers": {"a": {"kind": "local", "model": "m"}}, "n": 4}, "greedy traces are all the same"),
        ({"teachers": {"a": {"kind": "local", "model": "m"}}, "max_cost": 1.0}, "max_cost needs price_prompt"),
        ({"teachers": {"a": {"kind": "local", "model": "m"}}, "promt": "x"}, "Did you mean prompt"),
        ({"teachers": {"a": {"kind": "local", "model": "m", "price_prompt": 1}}}, "one price of two"),
        ({"teachers": {"a": {"kind": "local", "model": "m"}}, "temperature": math.nan}, "temperature is nan"),
        ({"teachers": {"a": {"kind": "local", "model": "m", "timeout": math.inf}}}, "timeout is inf"),
        (
            {"teachers": {"a": {"kind": "local", "model": "m", "price_prompt": -1.0, "price_completion": 1.0}}},
            "price_prompt is -1.0",
        ),
    ],
)
def test_settings_that_do_not_go_together(teach: Any, tmp_path: Path, group: dict[str, Any], words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "teach": group}))
    code, printed = teach(path)
    assert code == 2
    assert words in printed
    assert "12345" not in printed


@pytest.mark.parametrize(
    "keys",
    [
        {"rewrite": {"writer": {"kind": "local", "model": "m", "api_key": "sk-12345"}}},
        {"rewrite": {"writer": {"kind": "local", "model": "m"}, "max_tokens": 0}},
        {"method": "vcrd", "objective": {"steps": {"scorer": {"name": "judge", "teacher": {"api_key": "sk-12345"}}}}},
        {"stages": [{"name": "one", "teach": {"teachers": {"a": {"api_key": "sk-12345"}}}}]},
    ],
)
def test_a_secret_under_an_unknown_key_is_never_written_down(teach: Any, tmp_path: Path, keys: dict[str, Any]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, **keys}))
    code, printed = teach(path, verb="train")
    assert (code, "12345" in printed) == (2, False)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_problems_without_a_test_split_can_be_taught(write: Any, teach: Any, tmp_path: Path) -> None:
    recipe = write([row | {"split": "train"} for row in sums(3)])
    assert teach(recipe)[0] == 0
    assert len(lines(tmp_path / "run/taught/train.jsonl")) == 6


def test_a_trace_that_repeats_an_evaluation_row_is_told_and_can_be_dropped(
    write: Any, teach: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The problems share nothing with the benchmark; what the teacher says about one of them does."""
    learned = "Anna buys seven apples, gives two of them to Ben, and asks how many apples are left over."
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(json.dumps({"id": "b", "prompt": learned, "answer": "5", "answer_type": "number"}) + "\n")
    monkeypatch.setattr(Adder, "aside", {4: f" This reminds me: {learned}"})
    options = ["--set", "split.valid=0", "--set", "split.test=0.1", "--set", "split.seed_data=1"]
    options += ["--set", f"overlap.against=[{benchmark}]"]
    code, printed = teach(write(), *options)
    assert code == 0, printed
    assert "0 of 22 training rows share text with an evaluation set, 13 words in a row" in printed
    assert "2 of 22 rows with their traces share text with an evaluation set, 13 words in a row" in printed
    found = json.loads((tmp_path / "run/taught/overlap.json").read_text())
    assert found["sets"][str(benchmark)] == {"n_rows": 1, "exact": 0, "ngram": 2}
    assert len(lines(tmp_path / "run/taught/train.jsonl")) == 22
    asked = len(Adder.asked)
    assert teach(write(), *options, "--set", "overlap.drop=true")[0] == 0
    kept = lines(tmp_path / "run/taught/train.jsonl")
    assert len(kept) == 20
    assert not any(learned in row["completion"] for row in kept)
    assert len(Adder.asked) == asked


def test_a_model_in_this_process_teaches(write: Any, teach: Any, tmp_path: Path, student_folder: Path) -> None:
    teachers = {"a": {"kind": "local", "model": str(student_folder), "workers": 4}}
    code, printed = teach(write(teachers=teachers, keep="all", prompt="plain", max_tokens=6))
    splits = [lines(tmp_path / f"run/problems/{split}.jsonl") for split in ("train", "valid")]
    assert len(lines(tmp_path / "run/traces.jsonl")) - 1 == sum(map(len, splits))
    assert (code, f"None of {len(splits[0])} traces can be learned from. The first one was cut off" in printed) == (
        2,
        True,
    )
    assert Adder.asked == []


def test_a_comparison_asks_once_for_all_its_runs(write: Any, tmp_path: Path) -> None:
    recipe = load_recipe(write())
    compare_methods(recipe, Plan(["erm", "erm_pooled"], [0]), tmp_path / "compare", "isodistill compare", jobs=1)
    n = len(lines(tmp_path / "compare/taught/train.jsonl")) + len(lines(tmp_path / "compare/taught/valid.jsonl"))
    assert len(Adder.asked) == n
