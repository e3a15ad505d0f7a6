"""2,000 requests, 16 at once, through a proxy that spoils some answers; the client is killed five times.

Every request ends with exactly one answer in the store, and only those in flight at a kill were asked a second time.
"""

from __future__ import annotations

import json
import random
import signal
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
CLIENT = """
import sys
from pathlib import Path
from isodistill.teachers import pace
from isodistill.teachers.asking import Limits, ask_all
from isodistill.teachers.base import Sampling
from isodistill.teachers.server import ServerTeacher
from isodistill.teachers.store import AnswerStore, Request

url, store, n, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
pace._FIRST_WAIT_S = 0.02
name = "server:adder"
requests = [
    Request(name, "plain", [{"role": "user", "content": f"Add {i} and 3."}], Sampling()) for i in range(n)
]
teacher = ServerTeacher(name, "adder", url, "TEACHER_KEY", 5.0)
with AnswerStore(store, {"test": "kills"}) as answers:
    refused = ask_all({name: teacher}, requests, answers, {name: Limits(workers=workers)})
assert not refused, refused[:3]
"""


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
    return store.read_bytes().count(b"\n") - 1 if store.exists() else 0


def test_every_request_is_answered_exactly_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    store, rng = tmp_path / "traces.jsonl", random.Random(0)
    (tmp_path / "client.py").write_text(CLIENT)
    command = [sys.executable, str(tmp_path / "client.py"), url, str(store), str(N), str(WORKERS)]
    for kill in range(KILLS):
        goal = N * (kill + 1) // (KILLS + 1) + rng.randrange(100)
        client = subprocess.Popen(command, stderr=subprocess.PIPE)
        while answered(store) < goal:
            assert client.poll() is None, client.communicate()
            time.sleep(0.002)
        client.send_signal(signal.SIGKILL)
        client.communicate()
    assert answered(store) < N
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

    lines = [json.loads(line) for line in store.read_text().splitlines()]
    texts = {line["messages"][0]["content"]: line["texts"] for line in lines[1:]}
    assert len(lines) == N + 1
    assert texts == {f"Add {i} and 3.": [f"{i} + 3 = {i + 3}. The answer is {i + 3}."] for i in range(N)}
    asked = Counter((tmp_path / "asked.log").read_text().split())
    assert len(asked) == N
    # Answers that the proxy spoiled were asked for again, as were those in flight at a kill.
    assert sum(asked.values()) - N < 0.04 * N + KILLS * WORKERS
    assert KEY not in store.read_text() + done.stderr + done.stdout
