"""Symbolic comparison of two expressions by math-verify, in a worker process that can be killed.

sympy hangs on some inputs (towers of powers, factorials) in ways that no exception or alarm inside the process stops.
So one long-lived worker does the comparisons; a comparison that takes longer than the limit costs the worker its life
and is counted, and the next comparison starts a fresh one. The worker starts at the first comparison, never on import.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from isodistill.errors import UserError

__all__ = ["SymbolicChecker", "default_checker", "symbolic_equal"]

# -P keeps the script's own folder off the import path: a neighbour is called statistics.py.
_WORKER = (sys.executable, "-P", str(Path(__file__).with_name("symbolic_worker.py")))
_START_LIMIT_S = 120.0  # importing sympy on a busy machine


class SymbolicChecker:
    """Runs comparisons in one worker process; safe to call from several threads.

    Args:
        limit_s: seconds for one comparison.
        command: the worker; it prints "ready", then answers each JSON line ``[answer, gold]`` with true or false.

    Attributes:
        timeouts: comparisons without a verdict, because the worker hung or died.
    """

    def __init__(self, limit_s: float = 5.0, command: Sequence[str] = _WORKER) -> None:
        self.limit_s = limit_s
        self.command = tuple(command)
        self.timeouts = 0
        self._worker: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, answer: str, gold: str) -> bool | None:
        """Are the two LaTeX or plain expressions equal? None when the check hung or its worker died."""
        with self._lock:
            worker = self._worker or self._start()
            reply = ""
            try:
                reply = _reply(worker, json.dumps([answer, gold]) + "\n", self.limit_s)
            finally:  # also on Ctrl-C: a reply that nobody waited for would answer the next comparison
                if not reply:
                    self._stop()
            if reply:
                return bool(json.loads(reply))
            self.timeouts += 1
            return None

    def close(self) -> None:
        """End the worker, if one runs."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[str]:
        worker = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self._worker = worker
        atexit.register(self.close)
        ready = False
        try:
            ready = _reply(worker, "", _START_LIMIT_S) == "ready\n"
        finally:
            if not ready:
                self._stop()
        if not ready:
            raise UserError(
                "The symbolic checker did not start; its own message stands above. "
                "It needs math-verify in this Python environment: pip install math-verify."
            )
        return worker

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        atexit.unregister(self.close)
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # closing flushes what a dead worker never read
                pipe.close()


def _reply(worker: subprocess.Popen[str], request: str, limit_s: float) -> str:
    """The worker's next line; "" when it died, or was killed because the limit passed first."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    hung = threading.Event()

    def kill() -> None:
        hung.set()
        worker.kill()

    timer = threading.Timer(limit_s, kill)
    timer.start()
    try:
        worker.stdin.write(request)
        worker.stdin.flush()
        reply = worker.stdout.readline()
    except BrokenPipeError:
        reply = ""
    finally:
        timer.cancel()
        timer.join()
    return "" if hung.is_set() else reply


default_checker = SymbolicChecker()


def symbolic_equal(answer: str, gold: str) -> bool | None:
    """`SymbolicChecker.equal` of the one worker that `verify` uses."""
    return default_checker.equal(answer, gold)
