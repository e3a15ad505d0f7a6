"""2,000 requests, 16 at once, through a proxy that spoils some answers; the client is killed five times.

Every request ends with exactly one answer in the store, and only those in flight at a kill were asked a second time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from .killing import KEY, stored_texts, teach_killed

pytestmark = pytest.mark.faults

N, WORKERS, KILLS = 2000, 16, 5
LOOPBACK = Path(__file__).parents[1] / "teachers" / "loopback.py"


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


def test_every_request_is_answered_exactly_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rows = [
        {"id": f"p{i}", "prompt": f"Add {i} and 3.", "answer": str(i + 3), "answer_type": "number", "split": "train"}
        for i in range(N)
    ]
    teachers = {"adder": {"model": "adder", "base_url": url, "workers": WORKERS, "timeout": 1.0}}
    teach_killed(tmp_path, rows, {"teachers": teachers, "prompt": "plain"}, KILLS)

    texts = stored_texts(tmp_path)
    whole = {f"Add {i} and 3.": f"{i} + 3 = {i + 3}. The answer is {i + 3}." for i in range(N)}
    assert texts.keys() == whole.keys()
    cut = {prompt for prompt, (text,) in texts.items() if text != whole[prompt]}
    assert all(texts[prompt][0] == whole[prompt][: len(whole[prompt]) // 2] for prompt in cut)
    verdicts = [json.loads(line) for line in (tmp_path / "run/taught/verdicts.jsonl").read_text().splitlines()]
    assert Counter(verdict["verdict"] for verdict in verdicts) == {"correct": N - len(cut), "truncated": len(cut)}
    assert 0 < len(cut) < 0.01 * N
    asked = Counter((tmp_path / "asked.log").read_text().split())
    assert len(asked) == N
    # Answers that the proxy spoiled were asked for again, as were those in flight at a kill.
    assert sum(asked.values()) - N < 0.04 * N + KILLS * WORKERS
    assert len((tmp_path / "run/taught/train.jsonl").read_text().splitlines()) == N - len(cut)
