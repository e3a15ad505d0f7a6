"""Ask teachers many requests at once, with retries, and put every answer into the store as soon as it comes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from isodistill.errors import TeacherError, UserError
from isodistill.teachers.base import Answer, Teacher
from isodistill.teachers.pace import Pace, Prices, Purse, backoff
from isodistill.teachers.store import AnswerStore, Request

__all__ = ["Limits", "Refused", "ask_all", "cost_of", "most_cost", "prompt_tokens"]

_DOWN_AFTER = 3
"""Requests in a row without an answer after all their tries: the server is down, not the request at fault."""
_REFUSED_FIRST = 20
"""Refusals before any answer: the settings are at fault, not the problems."""
_CHARACTERS_PER_TOKEN = 3
"""Fewer than the usual four, so that an estimate is rather too high."""


@dataclass(frozen=True)
class Limits:
    """How one teacher may be asked.

    Attributes:
        workers: requests in flight at once.
        tries: how often one request is sent before it is given up.
        per_minute: most requests a minute; 0 sets no limit.
        prices: money per million tokens, or None.
    """

    workers: int = 8
    tries: int = 6
    per_minute: float = 0.0
    prices: Prices | None = None


@dataclass(frozen=True)
class Refused:
    """A request without an answer, and why."""

    request: Request
    reason: str


def ask_all(
    teachers: Mapping[str, Teacher],
    requests: Sequence[Request],
    store: AnswerStore,
    limits: Mapping[str, Limits],
    *,
    max_cost: float | None = None,
    on_done: Callable[[Request], None] | None = None,
) -> list[Refused]:
    """Put the answer to every request into the store; those that are there already are not asked.

    An answer that comes in parts is asked for until it is whole, and each part is stored, paced and paid for by itself.
    Requests that an earlier sitting got no answer to are asked last, and do not count as signs of a teacher at fault.

    Each teacher has ``workers`` threads of its own. Ctrl-C, or an error that stops the run, lets the requests in flight
    come back first, for they are paid for.

    Args:
        teachers: ``Teacher.name`` -> teacher, for every teacher that a request names.
        requests: what to ask; equal ones are asked once.
        store: where the answers go.
        limits: ``Teacher.name`` -> how it may be asked.
        max_cost: most money for all answers of the store together; needs prices.
        on_done: called, from any thread, after each request that was answered or refused.

    Returns:
        The requests that got no answer, after all their tries or because the teacher refused them for good.

    Raises:
        UserError: a teacher is down, or refuses whatever it is asked; the limit of cost is reached; the store cannot be
            written. The answers so far are kept.
        KeyboardInterrupt: Ctrl-C; likewise.
    """
    todo: dict[str, dict[str, Request]] = {name: {} for name in teachers}
    missing = [request for request in requests if request.key not in store]
    for request in sorted(missing, key=lambda request: store.was_refused(request.key)):
        todo[request.teacher][request.key] = request
    answered = {request.teacher for request in requests if store.n_texts(request.key)}
    stop = threading.Event()
    purse = Purse(max_cost, 0.0 if max_cost is None else _spent(store, requests, limits))
    done = on_done or (lambda request: None)
    lines = [
        _Line(teacher, limits[name], list(todo[name].values()), store, purse, stop, done, name in answered)
        for name, teacher in teachers.items()
    ]
    workers = [line for line in lines for _ in range(min(line.limits.workers, len(todo[line.teacher.name])))]
    with ThreadPoolExecutor(max(1, len(workers))) as pool:
        running = [pool.submit(line.work) for line in workers]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            print("\nCtrl-C: waiting for the requests in flight; press again to stop at once.", flush=True)
            raise KeyboardInterrupt("Stopped; every answer is kept, and the same command goes on from here.") from None
        finally:
            stop.set()
    _raise_first(running)
    return [refused for line in lines for refused in line.refused]


def prompt_tokens(request: Request) -> int:
    """About how many tokens a request has, from its characters: rather too many."""
    return sum(len(message["content"]) for message in request.messages) // _CHARACTERS_PER_TOKEN + 1


def most_cost(request: Request, prices: Prices | None) -> float:
    """The most that a request may cost; 0 without prices."""
    most = request.sampling.n * request.sampling.max_tokens
    return 0.0 if prices is None else prices.of(prompt_tokens(request), most)


def cost_of(request: Request, answer: Answer, prices: Prices | None) -> float:
    """What an answer cost; where the teacher told no token counts, the most that it may have cost."""
    if prices is None:
        return 0.0
    if answer.prompt_tokens is None or answer.completion_tokens is None:
        return most_cost(request, prices)
    return prices.of(answer.prompt_tokens, answer.completion_tokens)


def _spent(store: AnswerStore, requests: Sequence[Request], limits: Mapping[str, Limits]) -> float:
    known = {request.key: request for request in requests if store.n_texts(request.key)}
    return sum(cost_of(r, store.get(key), limits[r.teacher].prices) for key, r in known.items())


def _raise_first(running: Sequence[Future[None]]) -> None:
    for future in running:
        future.result()


class _Line:
    """The requests to one teacher, taken one after the other by its workers."""

    def __init__(
        self,
        teacher: Teacher,
        limits: Limits,
        requests: Sequence[Request],
        store: AnswerStore,
        purse: Purse,
        stop: threading.Event,
        on_done: Callable[[Request], None],
        ever_answered: bool,
    ) -> None:
        self.teacher, self.limits = teacher, limits
        self.refused: list[Refused] = []
        self._requests, self._store, self._purse, self._stop, self._on_done = (
            iter(requests),
            store,
            purse,
            stop,
            on_done,
        )
        self._ever_answered = ever_answered
        self._n_answered = 0
        self._pace = Pace(limits.per_minute, stop)
        self._lock = threading.Lock()
        self._given_up = self._turned_down = 0
        self._rng = random.Random()

    def work(self) -> None:
        """Ask until nothing is left or the run stops."""
        try:
            while not self._stop.is_set():
                with self._lock:
                    request = next(self._requests, None)
                if request is None:
                    return
                self._ask(request)
        except BaseException:
            self._stop.set()
            raise

    def _ask(self, request: Request) -> None:
        """Send a request until its answer is whole, it is given up, or the run stops."""
        failures, n_before = 0, self._n_answered
        while request.key not in self._store:
            after = None
            try:
                self._send(request)
            except TeacherError as error:
                failures += 1
                if not error.retry or failures == self.limits.tries:
                    self._give_up(request, error, alone=self._n_answered > n_before)
                    return
                after = self._pace.hold(error.after, self.teacher.name) if error.after else None
            else:
                failures = 0
            if self._stop.is_set() or (failures and self._stop.wait(backoff(failures, after, self._rng))):
                return
        self._on_done(request)

    def _send(self, request: Request) -> None:
        """Ask once for the texts that are still missing, and store what comes."""
        n_texts, sampling = self._store.n_texts(request.key), request.sampling
        part = replace(sampling, n=sampling.n - n_texts, seed=sampling.seed + n_texts)
        sent = replace(request, sampling=part)
        most = most_cost(sent, self.limits.prices)
        self._purse.lay_aside(most)
        cost = 0.0
        try:
            self._pace.wait()
            if self._stop.is_set():
                return
            start = time.monotonic()
            answer = self.teacher.answer(request.messages, part)
            cost = cost_of(sent, answer, self.limits.prices)
            self._store.add(request, answer, time.monotonic() - start)
        finally:
            self._purse.settle(most, cost)
        with self._lock:
            self._given_up, self._ever_answered = 0, True
            self._n_answered += 1

    def _give_up(self, request: Request, error: TeacherError, *, alone: bool) -> None:
        """Count a request as refused, unless the teacher as a whole seems to be at fault.

        Args:
            request: that got no answer.
            error: of its last try.
            alone: whether other requests were answered since its first try, so that the fault is its own.
        """
        known_bad = alone or self._store.was_refused(request.key)
        self._store.refuse(request, str(error))
        with self._lock:
            if not known_bad:
                self._given_up += error.retry
                self._turned_down += not error.retry
            self.refused.append(Refused(request, str(error)))
            down = self._given_up >= _DOWN_AFTER
            unwilling = self._turned_down >= _REFUSED_FIRST and not self._ever_answered
        if down or unwilling:
            what = f"gave no answer to {_DOWN_AFTER} requests in a row, {self.limits.tries} tries each"
            what = f"refused {_REFUSED_FIRST} requests and answered none" if unwilling else what
            raise UserError(
                f"The teacher {self.teacher.name} {what}; the last time: {error} Mend that; the answers so far are "
                "kept, and the same command goes on from there."
            )
        self._on_done(request)
