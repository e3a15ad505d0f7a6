"""Teach against ``transformers serve`` on the loopback, with faults between the two.

The client is killed with a tiny model behind the server, so that a minute is enough. The whole of it, with SmolLM2::

    ISODISTILL_SERVED=smollm2-135m ISODISTILL_REQUESTS=2000 pytest -s tests/e2e/test_teach_server.py -k killed
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from ..faults.killing import KEY, stored_texts, teach_killed
from ..teachers.loopback import FAULTS, Faulty, serving

pytestmark = pytest.mark.e2e
QUICK = ["too_many", "error", "drop", "malformed", "no_choices", "encoding"]
SERVED, N = os.environ.get("ISODISTILL_SERVED", "tiny"), int(os.environ.get("ISODISTILL_REQUESTS", "240"))
WORKERS, KILLS, EVERY = 16, 5, 16
TIMEOUT_S = 10.0 if SERVED == "tiny" else 100.0
PROMPTS = [f"Add {i} and 3." for i in range(N)]


def saved(folder: Path, name: str) -> Path:
    """A student in a folder; the tiny one ends its answers, for every seventh token is an end to it."""
    from isodistill.models.load import load_student
    from isodistill.models.tiny import make_tiny_student

    student = make_tiny_student(PROMPTS, seed=0) if name == "tiny" else load_student(name)
    if name == "tiny":
        student.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
        student.model.generation_config.eos_token_id = list(range(0, len(student.tokenizer), 7))
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of ``transformers serve`` with the model in ``folder``."""
    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package)
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
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def test_a_killed_client_has_every_real_answer_exactly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = saved(tmp_path / "model", SERVED)
    rows = [{"id": f"p{i}", "prompt": prompt, "answer_type": "number", "split": "train", "answer": str(i + 3)}
            for i, prompt in enumerate(PROMPTS)]  # fmt: skip
    kinds = [*reversed(FAULTS), "truncated"]  # the slow ones first
    plan = cycle(kind if place == EVERY - 1 else None for kind in kinds for place in range(EVERY))
    slow = {"hang_s": TIMEOUT_S + 1, "drip_s": TIMEOUT_S / 100}
    start = time.monotonic()
    with served(model) as upstream, serving(Faulty, upstream=upstream, plan=lambda: next(plan), **slow) as (proxy, url):
        teachers = {"real": {"model": str(model), "base_url": url, "workers": WORKERS, "timeout": TIMEOUT_S}}
        teach = {"teachers": teachers, "prompt": "plain", "keep": "all", "max_tokens": 24}
        teach_killed(tmp_path, rows, teach, KILLS)
    print(
        f"{N} requests to {SERVED} in {time.monotonic() - start:.0f} s; {len(proxy.told)} answers by the server;",
        end=" ",
    )
    print(f"faults: {dict(Counter(filter(None, proxy.seen)))}")

    told = defaultdict(set)
    for prompt, texts in proxy.told:
        told[prompt] |= {*texts, *(text[: len(text) // 2] for text in texts)}  # what is truncated is half of it
    stored = stored_texts(tmp_path)
    assert stored.keys() == set(PROMPTS)
    assert all(set(texts) <= told[prompt] for prompt, texts in stored.items())
    assert set(kinds) <= set(proxy.seen)
    # Answers that the proxy spoiled were asked for again, as were those in flight at a kill.
    assert len(proxy.told) - N <= sum(fault is not None for fault in proxy.seen) + KILLS * WORKERS


def test_real_answers_come_through_faults_exactly_once(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "smollm2-135m")
    plan = iter([*QUICK, *[None] * 1000])
    recipe = {
        "problems": "builtin:isomers",
        "isomers": {"n_sets": 8, "families": ["rates"], "domains": ["law", "medicine"], "difficulty": [1]},
        "split": {"valid": 0.0, "test": 0.25},
        "max_refused": 0.0,
        "teach": {
            "prompt": "few_shot", "keep": "all", "max_tokens": 60, "n": 2, "temperature": 0.7,
            "teachers": {"smollm": {"model": str(model), "workers": 4, "timeout": 300.0}},
        },
    }  # fmt: skip
    command = [sys.executable, "-m", "isodistill", "teach", "recipe.yaml", "--out", "run"]
    with served(model) as upstream, serving(Faulty, upstream=upstream, plan=lambda: next(plan)) as (proxy, url):
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
    assert proxy.seen[: len(QUICK)] == QUICK
    assert proxy.seen.count(None) == 2 * len(problems)
    assert os.environ.get("OPENAI_API_KEY", "no key") not in done.stdout
