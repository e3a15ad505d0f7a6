"""Teach against ``transformers serve`` with SmolLM2-135M on the loopback, with faults between the two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from ..teachers.loopback import Faulty, serving

pytestmark = pytest.mark.e2e
FAULTS = ["too_many", "error", "drop", "malformed", "no_choices", "encoding"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Address of the server and the name of its model."""
    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    from isodistill.models.load import load_student

    student = load_student("smollm2-135m")
    folder = tmp_path / "model"
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                with urlopen(f"http://127.0.0.1:{port}/health"):
                    break
            except (URLError, OSError):
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.kill()
        process.wait()


def test_real_answers_come_through_faults_exactly_once(server: tuple[str, str], tmp_path: Path) -> None:
    upstream, model = server
    plan = iter([*FAULTS, *[None] * 1000])
    recipe = {
        "problems": "builtin:isomers",
        "isomers": {"n_sets": 8, "families": ["rates"], "domains": ["law", "medicine"], "difficulty": [1]},
        "split": {"valid": 0.0, "test": 0.25},
        "max_refused": 0.0,
        "teach": {
            "prompt": "few_shot", "keep": "all", "max_tokens": 60, "n": 2, "temperature": 0.7,
            "teachers": {"smollm": {"model": model, "workers": 4, "timeout": 300.0}},
        },
    }  # fmt: skip
    command = [sys.executable, "-m", "isodistill", "teach", "recipe.yaml", "--out", "run"]
    with serving(Faulty, upstream=upstream, plan=lambda: next(plan)) as (proxy, url):
        recipe["teach"]["teachers"]["smollm"]["base_url"] = url  # type: ignore[index]
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    problems = (tmp_path / "run/problems/train.jsonl").read_text().splitlines()
    answers: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "run/traces.jsonl").read_text().splitlines()[1:]
    ]
    # This server knows no n, so every problem takes two requests, each kept as it comes: what was paid for is not lost.
    texts = Counter(answer["key"] for answer in answers for _ in answer["texts"])
    assert texts == dict.fromkeys(texts, 2)
    assert len(texts) == len(problems)
    assert Counter(answer["key"] for answer in answers if not answer.get("more")) == dict.fromkeys(texts, 1)
    assert all(answer["completion_tokens"] > 2 for answer in answers)
    assert proxy.seen[: len(FAULTS)] == FAULTS
    assert proxy.seen.count(None) == 2 * len(problems)
    assert os.environ.get("OPENAI_API_KEY", "no key") not in done.stdout
