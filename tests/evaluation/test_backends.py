"""The OpenAI backend against a small server on the loopback, and the hint where its package is missing."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.evaluation.answer import Provenance, answer_rows, read_representations
from isodistill.evaluation.backends import OpenAIBackend
from isodistill.evaluation.records import PredictionLog
from isodistill.evaluation.results import split_results
from isodistill.recipe import parse_recipe

PROVENANCE = Provenance("run", "iga", "f", 0, 0, 3, "after")
ROWS = [
    Row(id=f"s{s}/{domain}", set_id=f"s{s}", domain=domain, prompt=f"In {domain}, add {s} and 1.", answer=str(s + 1),
        answer_type="number")
    for s in range(4)
    for domain in ("law", "medicine")
]  # fmt: skip


class Fake(BaseHTTPRequestHandler):
    """Answers every prompt of token ids with its length; counts the length limit down from the first request on."""

    asked: ClassVar[list[dict[str, Any]]] = []
    status: ClassVar[int] = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body | {"path": self.path, "key": self.headers["Authorization"]})
        cut = len(self.asked) == 1
        choice = {"index": 0, "text": f"The answer is {len(body['prompt'])}.", "logprobs": None}
        answer: dict[str, Any] = {
            "id": "x", "object": "text_completion", "created": 0, "model": body["model"],
            "choices": [choice | {"finish_reason": "length" if cut else "stop"}],
        }  # fmt: skip
        if self.status != 200:
            answer = {"error": {"message": f"wrong: {self.headers['Authorization']}"}}
        content = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a running fake server."""
    pytest.importorskip("openai")
    monkeypatch.setattr(Fake, "asked", [])
    monkeypatch.setattr(Fake, "status", 200)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def answer(backend: OpenAIBackend, log: PredictionLog, tokenizer: Any) -> None:
    refused = answer_rows(backend, tokenizer, ROWS, log, PROVENANCE, split="id", max_new_tokens=9, batch_size=1)
    assert refused == []


def test_rows_are_answered_by_the_server_and_the_lcs_family_is_null(url: str, tmp_path: Path, tokenizer: Any) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    answer(OpenAIBackend(url, "student", 512), log, tokenizer)
    assert {(a["path"], a["key"], a["model"]) for a in Fake.asked} == {
        ("/v1/completions", "Bearer secret-key", "student")
    }
    assert {(a["max_tokens"], a["temperature"]) for a in Fake.asked} == {(9, 0.0)}
    records = log.read()
    assert sorted(r.item_id for r in records) == sorted(row.id for row in ROWS)
    asked = {f"The answer is {len(a['prompt'])}." for a in Fake.asked}
    assert {r.output for r in records} == asked
    assert sorted(r.finish for r in records) == ["eos"] * 7 + ["length"]
    assert read_representations(tmp_path, "after") == {}
    results = split_results(records, read_representations(tmp_path, "after") or None)
    assert results["lcs"] is results["lcs_centered"] is None
    assert results["acc_macro"] is not None
    assert "secret-key" not in log.path.read_text()


def test_answers_in_the_log_are_not_asked_for_again(url: str, tmp_path: Path, tokenizer: Any) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    for _ in range(2):
        answer(OpenAIBackend(url, "student", 512), log, tokenizer)
    assert len(Fake.asked) == len(ROWS)


@pytest.mark.parametrize(("status", "words"), [(401, "refuses the key"), (404, "gave no answer of model 'student'")])
def test_a_refusal_is_explained(url: str, status: int, words: str, monkeypatch: Any, tokenizer: Any) -> None:
    monkeypatch.setattr(Fake, "status", status)
    with pytest.raises(UserError, match=words) as error:
        OpenAIBackend(url, "student", 512).generate(
            tokenizer, [[1, 2]], max_new_tokens=3, batch_size=1, on_done=lambda *_: None
        )
    assert "secret-key" not in str(error.value)


def test_what_a_server_cannot_give_is_refused(url: str, tokenizer: Any) -> None:
    backend = OpenAIBackend(url, "student", 512)
    with pytest.raises(ValueError, match="2 tokens cannot be watched"):
        backend.generate(tokenizer, [[1, 2]], max_new_tokens=3, batch_size=1, watch=[4, 5])
    (answer,) = backend.generate(tokenizer, [[1, 2]], max_new_tokens=3, batch_size=1)
    assert answer.watched.shape == (len(answer.tokens), 0)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'isodistill\[openai\]'"):
        OpenAIBackend("http://127.0.0.1:1/v1", "student", 512)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "vllm"}, "local or openai"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "belong to evaluate.backend openai"),
        ({"backend": "openai", "before": False}, "needs evaluate.base_url and evaluate.model"),
        ({"backend": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "student"}, "evaluate.before to false"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_recipe({"evaluate": settings}, [])
