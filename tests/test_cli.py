"""The verbs: quick help, exit codes, overrides, and what is shown when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isodistill.cli import main

HEAVY = ("torch", "transformers", "datasets", "matplotlib", "scipy", "peft", "numpy")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["isodistill", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "absent.yaml"]])
def test_nothing_heavy_is_imported_before_it_is_needed(arguments: list[str]) -> None:
    script = (
        "import sys; from isodistill.cli import main\n"
        f"sys.argv = ['isodistill', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('imported:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.rstrip().endswith("imported: []")


def test_help_lists_every_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert all(
        verb in text for verb in ("demo", "run", "teach", "train", "evaluate", "report", "env", "isomers", "--debug")
    )


def test_the_process_ends_with_code_2_and_one_paragraph(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "isodistill", "run", "absent.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: There is no recipe absent.yaml")
    assert done.stderr.count("\n") == 1
    debug = subprocess.run([*command, "--debug"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" in debug.stderr
    assert "UserError: There is no recipe absent.yaml" in debug.stderr


@pytest.mark.parametrize("arguments", [["rum", "x.yaml"], ["run"], ["run", "x.yaml", "--sett", "a=1"]])
def test_wrong_usage_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    text = capsys.readouterr().err
    assert "Usage" in text
    assert "Traceback" not in text


def test_isomers_are_made_and_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made, kept = tmp_path / "sets.jsonl", tmp_path / "kept.jsonl"
    options = ["--n-sets", "4", "--families", "rates", "--domains", "law,medicine"]
    assert call(monkeypatch, "isomers", "make", str(made), *options) == 0
    assert "8 rows of 4 sets" in capsys.readouterr().out
    assert call(monkeypatch, "isomers", "check", str(made), "--keep", str(kept)) == 0
    assert kept.read_text() == made.read_text()
    assert call(monkeypatch, "isomers", "make", str(made), "--families", "rate") == 2
    assert "error: families" in capsys.readouterr().err


def test_env_names_versions_and_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "env") == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert {"python", "torch", "transformers", "peft", "compute", "cores"} <= lines.keys()


def test_ctrl_c_outside_training_is_answered_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("isodistill.pipeline.describe_environment", interrupted)
    assert call(monkeypatch, "env") == 130
    assert capsys.readouterr().err.strip() == "Stopped; the same command goes on from here."


def test_a_level_that_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "isomers", "make", str(tmp_path / "rows.jsonl"), "--difficulty", "hard") == 2
    assert "--difficulty takes levels 1 to 3" in capsys.readouterr().err


@pytest.mark.faults
def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(tmp_path: Path) -> None:
    recipe = {
        "student": "tiny", "method": "erm", "baseline": None,
        "isomers": {"n_sets": 12, "families": ["rates"], "domains": ["law", "medicine"]},
        "split": {"valid": 0.0, "test": 0.3},
        "train": {"steps": 3000, "sets_per_batch": 1, "save_steps": 1000, "logging_steps": 1, "use_cpu": True},
        "evaluate": {"max_new_tokens": 2, "before": False},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "isodistill", "run", "recipe.yaml", "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):  # training has begun
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in text
    stopped = text[text.rindex("Stopped after step ") :]
    assert "The same command goes on from there." in stopped
    step = int(stopped.split()[3])
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{step}").is_dir()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, step + 1))
