"""What the client of a teacher costs beside the server's own time, and how busy it keeps the server.

``python -m benchmarks.teach [--requests 2000] [--workers 16] [--delay 0.05]``: a server on the loopback, in a process
of its own, answers after a fixed delay and adds up how long it held each request, for a timer of 50 ms rings late; the
client is ``ask_all`` with ``ServerTeacher`` and the store on disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from isodistill.teachers.asking import Limits, ask_all
from isodistill.teachers.base import Sampling
from isodistill.teachers.server import ServerTeacher
from isodistill.teachers.store import AnswerStore, Request

_NAME = "server:stub"
_TEXT = "Some reasoning, one sentence after the other, as long as a short trace is. " * 8 + "The answer is 5."
_SERVER = f"""
import asyncio, json, sys, time
held = 0.0
body = json.dumps({{
    "choices": [{{"index": 0, "finish_reason": "stop", "message": {{"role": "assistant", "content": {_TEXT!r}}}}}],
    "usage": {{"prompt_tokens": 50, "completion_tokens": 120}},
}}).encode()

def reply(body):
    return b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body

async def serve(reader, writer):
    global held
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            if head.startswith(b"GET"):
                writer.write(reply(json.dumps(held).encode()))
                continue
            begin = time.perf_counter()
            length = next(l for l in head.lower().split(b"\\r\\n") if l.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            await asyncio.sleep(float(sys.argv[1]))
            writer.write(reply(body))
            held += time.perf_counter() - begin
    except asyncio.IncompleteReadError:
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def run(n: int, workers: int, delay: float) -> dict[str, float]:
    """Seconds, client CPU and what is beside the server's time, per request; print them."""
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(delay)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        teacher = ServerTeacher(_NAME, "stub", url, "OPENAI_API_KEY", 30.0)
        content = "A problem of some eighty words, as they are. " * 8
        requests = [
            Request(_NAME, "plain", [{"role": "user", "content": f"{content} {i}"}], Sampling()) for i in range(n)
        ]
        with tempfile.TemporaryDirectory() as folder, AnswerStore(Path(folder) / "traces.jsonl", {}) as store:
            ask_all({_NAME: teacher}, requests[:workers], store, {_NAME: Limits(workers=workers)})  # connections
            begin, cpu, before = time.perf_counter(), time.process_time(), _held(url)
            ask_all({_NAME: teacher}, requests, store, {_NAME: Limits(workers=workers)})
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
            held = _held(url) - before
            assert len(store) == n
    finally:
        server.kill()
        server.wait()
    n -= workers
    numbers = {
        "teach_overhead_ms": 1e3 * (seconds - held / workers) / n,
        "teach_cpu_ms": 1e3 * cpu / n,
        "teach_in_flight_share": held / seconds / workers,
        "requests_per_second": n / seconds,
    }
    print(f"{n} requests, {workers} at once, {delay * 1e3:g} ms each: {json.dumps(numbers)}")
    return numbers


def _held(url: str) -> float:
    """Seconds that the server has held requests so far, added up."""
    with urlopen(url) as reply:
        return float(reply.read())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--delay", type=float, default=0.05)
    arguments = parser.parse_args()
    run(arguments.requests, arguments.workers, arguments.delay)
