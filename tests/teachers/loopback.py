"""A server on the loopback that speaks the OpenAI API, and a proxy that does to its answers what networks do.

The server answers at once, by a rule instead of a model: the sum of the two numbers in the last message. It also runs
as a program (``python loopback.py PORT_FILE LOG DELAY``), for tests that kill its client.
"""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import Request, urlopen


class Quiet(ThreadingHTTPServer):
    """A server with room for many connections, silent about clients that are killed."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent."""


class Handler(BaseHTTPRequestHandler):
    """What both servers share."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def reply(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def completion(texts: list[str], finish: str = "stop") -> bytes:
    """The body of a chat completion."""
    choices = [
        {"index": i, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 5 * len(texts), "total_tokens": 10 + 5 * len(texts)}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": choices, "usage": usage}).encode()


class Adder(Handler):
    """Adds the two numbers of a problem; ``asked`` has every request."""

    asked: ClassVar[list[dict[str, Any]]] = []
    delay: ClassVar[float] = 0.0
    log: ClassVar[Path | None] = None

    def do_POST(self) -> None:
        request = json.loads(self.body())
        self.asked.append(request | {"key": self.headers["Authorization"]})
        time.sleep(self.delay)
        a, b = re.findall(r"\d+", request["messages"][-1]["content"])[:2]
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{a}\n")
        text = f"{a} + {b} = {int(a) + int(b)}. The answer is {int(a) + int(b)}."
        self.reply(completion([text] * request.get("n", 1)))


SLOW = ("hang", "drip", "drip_head", "drip_error")
FAULTS = ("too_many", "error", "drop", "malformed", "no_choices", "no_message", "encoding", "html", *SLOW)
"""What is tried again; ``truncated``, an answer that its length limit cut off, is an answer."""


class Faulty(Handler):
    """Passes requests on; ``plan`` says for each one which fault to commit, or None.

    ``seen`` has the faults committed, ``told`` the last message and the texts of every answer that the server gave.
    """

    upstream: ClassVar[str] = ""
    plan: ClassVar[Callable[[], str | None]] = lambda: None
    seen: ClassVar[list[str | None]] = []
    told: ClassVar[list[tuple[str, list[str]]]] = []
    hang_s: ClassVar[float] = 1.0
    drip_s: ClassVar[float] = 0.05

    def do_POST(self) -> None:
        body, fault = self.body(), type(self).plan()
        self.seen.append(fault)
        if fault == "too_many":
            self.reply(b'{"error": {"message": "slow down"}}', 429, Retry_After="0.05")
        elif fault == "error":
            self.reply(b'{"error": {"message": "oops"}}', 500)
        elif fault == "hang":
            time.sleep(self.hang_s)
            self.close_connection = True
        elif fault in ("drip_head", "drip_error"):
            head = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 Oops\r\nContent-Length: 999\r\n\r\n"
            self.wfile.write(head[fault == "drip_error"])
            self.drip(b"X-Padding: none\r\n" * 20)
        else:
            self.spoil(self.fetch(body), fault)

    def fetch(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Authorization": self.headers["Authorization"]}
        with urlopen(Request(self.upstream + self.path.removeprefix("/v1"), body, headers)) as answer:
            content: bytes = answer.read()
        texts = [choice["message"]["content"] for choice in json.loads(content)["choices"]]
        self.told.append((json.loads(body)["messages"][-1]["content"], texts))
        return content

    def spoil(self, content: bytes, fault: str | None) -> None:
        spoiled = {
            "malformed": content[: len(content) // 2],
            "no_choices": b'{"id": "x", "choices": []}',
            "no_message": b'{"id": "x", "choices": [{"index": 0}]}',
            "encoding": content.replace(b'"role"', '"r\xf4le"'.encode("latin-1")),
            "html": b"<html>502 Bad Gateway</html>",
            "truncated": truncated(content),
        }.get(fault or "", content)
        if fault not in ("drop", "drip"):
            self.reply(spoiled)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = content[: len(content) // 2]
        if fault == "drip":
            self.drip(half)
        else:
            self.wfile.write(half)
            self.close_connection = True

    def drip(self, content: bytes) -> None:
        """A byte at a time, until nobody listens any more."""
        with suppress(ConnectionError):
            for i in range(len(content)):
                self.wfile.write(content[i : i + 1])
                self.wfile.flush()
                time.sleep(self.drip_s)
        self.close_connection = True


def truncated(content: bytes) -> bytes:
    """An answer whose first half is all that its length limit left."""
    answer = json.loads(content)
    for choice in answer["choices"]:
        text = choice["message"]["content"]
        choice["message"]["content"], choice["finish_reason"] = text[: len(text) // 2], "length"
    return json.dumps(answer).encode()


@contextmanager
def serving(handler: type[Handler], **attributes: Any) -> Iterator[tuple[type[Any], str]]:
    """A running server of a fresh copy of ``handler``, and its address."""
    own: type[Any] = type(handler.__name__, (handler,), {"asked": [], "seen": [], "told": [], **attributes})
    server = Quiet(("127.0.0.1", 0), own)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield own, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def mostly_faulty(share: float, seed: int) -> Callable[[], str | None]:
    """Faults drawn at random: one of every kind, or none."""
    rng, kinds = random.Random(seed), [*FAULTS, "truncated"]
    return staticmethod(lambda: rng.choice(kinds) if rng.random() < share else None)  # type: ignore[return-value]


if __name__ == "__main__":
    port_file, log, delay = sys.argv[1:]
    with (
        serving(Adder, log=Path(log), delay=float(delay)) as (_, url),
        serving(Faulty, upstream=url, plan=mostly_faulty(0.03, 0)) as (_, faulty),
    ):
        Path(port_file + ".part").write_text(faulty)
        Path(port_file + ".part").rename(port_file)
        threading.Event().wait()
