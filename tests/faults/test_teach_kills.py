"""2,000 requests, 16 at once, through a proxy that spoils some answers; the client is killed five times.

Every request ends with exactly one answer in the store, and only those in flight at a kill were asked a second time.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

N, WORKERS, KILLS = 2000, 16, 5
LOOPBACK = Path(__file__).parents[1] / "teachers" / "loopback.py"
KEY = "secret-key-that-appears-nowhere"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Address of the proxy before the server, both in a process of their own."""
    pytest.importorskip("openai")
    command = [sys.executable, str(LOOPBACK), str(tmp_path / "port"), str(tmp_path / "asked.log"), "0.002"]
    server = subprocess.Popen(command)
    try:
        while not (tmp_path / "port").exists():
            assert server.poll() is None
            time.sleep(0.02)
        yield (tmp_path / "port").read_text()
    finally:
        server.kill()
        server.wait()


def answered(store: Path) -> int:
    return max(0, store.read_bytes().count(b"\n") - 1) if store.exists() else 0


def test_every_request_is_answered_exactly_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rows = [
        {"id": f"p{i}", "prompt": f"Add {i} and 3.", "answer": str(i + 3), "answer_type": "number", "split": "train"}
        for i in range(N)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teachers = {"adder": {"model": "adder", "base_url": url, "workers": WORKERS, "timeout": 5.0}}
    recipe = {"problems": "rows.jsonl", "max_refused": 0.0, "teach": {"teachers": teachers, "prompt": "plain"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from mortal import teach

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isodistill.pipeline"])
    store, rng = tmp_path / "run" / "traces.jsonl", random.Random(0)
    for kill in range(KILLS):
        goal = N * (kill + 1) // (KILLS + 1) + rng.randrange(100)
        client = context.Process(target=teach, args=(tmp_path,))
        client.start()
        while answered(store) < goal:
            assert client.is_alive(), (tmp_path / "output.txt").read_text()
            time.sleep(0.002)
        client.kill()
        client.join()
    assert answered(store) < N
    client = context.Process(target=teach, args=(tmp_path,))
    client.start()
    client.join(120)
    printed = (tmp_path / "output.txt").read_text()
    assert client.exitcode == 0, printed

    lines = [json.loads(line) for line in store.read_text().splitlines()]
    texts = {line["messages"][0]["content"]: line["texts"] for line in lines[1:]}
    assert len(lines) == N + 1
    assert texts == {f"Add {i} and 3.": [f"{i} + 3 = {i + 3}. The answer is {i + 3}."] for i in range(N)}
    asked = Counter((tmp_path / "asked.log").read_text().split())
    assert len(asked) == N
    # Answers that the proxy spoiled were asked for again, as were those in flight at a kill.
    assert sum(asked.values()) - N < 0.04 * N + KILLS * WORKERS
    taught = (tmp_path / "run/taught/train.jsonl").read_text()
    assert len(taught.splitlines()) == N
    assert KEY not in store.read_text() + taught + printed
