"""How fast and for how much teachers may be asked: requests a minute, waits that a server asked for, a cost limit."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass

from isodistill.errors import UserError

__all__ = ["Pace", "Prices", "Purse", "backoff"]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_LONGEST_HOLD_S, _TOLD_FROM_S = 300.0, 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prices:
    """Money per million tokens, of the prompt and of the answers."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


def backoff(failures: int, after: float | None, rng: random.Random) -> float:
    """Seconds to wait after the n-th failure of a request: U(0, min(60, 0.5 * 2^(n-1))), exponential with full jitter.

    A wait that the server asked for comes first and the jitter on top of it, so that not all come back at once.
    """
    return (after or 0.0) + rng.uniform(0.0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (failures - 1)))


class Pace:
    """When the next request to one teacher may go out.

    Args:
        per_minute: most requests a minute, evenly spaced; 0 sets no limit.
        stop: ends every wait at once.
    """

    def __init__(self, per_minute: float, stop: threading.Event) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._stop = stop
        self._lock = threading.Lock()
        self._next = 0.0  # when the next request may go
        self._held = 0.0  # until when the server asked to be left alone

    def wait(self) -> None:
        """Return when a request may go out, or when ``stop`` is set."""
        with self._lock:
            slot = max(time.monotonic(), self._next)
            self._next = slot + self._interval
        while (left := max(slot, self._held) - time.monotonic()) > 0:
            if self._stop.wait(left):
                return

    def hold(self, seconds: float, name: str) -> float:
        """Let no request go out for so long: the server said so to one of them. A long wait is told, once.

        Args:
            seconds: as the server said; more than ``_LONGEST_HOLD_S`` is cut to that.
            name: of the teacher, for the message.

        Returns:
            The seconds that are waited.
        """
        waited = min(seconds, _LONGEST_HOLD_S)
        with self._lock:
            until = time.monotonic() + waited
            told = waited >= _TOLD_FROM_S and until > self._held + _TOLD_FROM_S
            self._held = max(self._held, until)
        if told:
            cut = f"; {waited:.0f} s is the longest that is waited" if waited < seconds else ""
            _log.warning("The teacher %s asks to wait %.0f s before the next request%s.", name, seconds, cut)
        return waited


class Purse:
    """Money spent, with a limit that is never passed.

    The most that a request may cost is laid aside before it goes out; where that no longer fits beside what others laid
    aside, it waits for them.

    Args:
        limit: most money; None sets no limit.
        spent: what the answers in the store have cost.
    """

    def __init__(self, limit: float | None, spent: float) -> None:
        self.spent = spent
        self._limit = limit
        self._aside = 0.0
        self._changed = threading.Condition()

    def lay_aside(self, most: float) -> None:
        """Lay money aside for one request.

        Raises:
            UserError: the limit leaves too little.
        """
        with self._changed:
            while self._limit is not None and self.spent + self._aside + most > self._limit:
                if not self._aside:
                    raise UserError(
                        f"The cost limit is reached: {self.spent:.4f} of max_cost {self._limit:g} is spent, and "
                        f"one more request may cost {most:.4f}. Every answer is kept; raise the limit to go on."
                    )
                self._changed.wait()
            self._aside += most

    def settle(self, most: float, cost: float) -> None:
        """Take back what was laid aside for a request and count what it cost."""
        with self._changed:
            self._aside = max(0.0, self._aside - most)
            if self._aside < 1e-9:
                self._aside = 0.0
            self.spent += cost
            self._changed.notify_all()
