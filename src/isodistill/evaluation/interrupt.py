"""Ctrl-C while answering: finish and log the block of answers in the making, then stop. A second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["StopAfterBlock"]


class StopAfterBlock:
    """A context manager around the blocks; ``between_blocks``, and its end, stop there once Ctrl-C was pressed."""

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> StopAfterBlock:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if kind is None:
            self.between_blocks()

    def between_blocks(self) -> None:
        """Stop here if asked.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed since ``__enter__``.
        """
        if self._asked:
            raise KeyboardInterrupt("Stopped; every answer is kept, and the same command goes on from here.")

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt("Stopped at once; the answers of whole blocks are kept.")
        self._asked = True
        print("\nCtrl-C: finishing this block of answers; press again to stop at once.", flush=True)
