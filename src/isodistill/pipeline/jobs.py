"""Runs side by side, each in a process of its own: what kills one leaves the others, and its memory is its own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import torch

from isodistill.errors import UserError
from isodistill.pipeline.grid import Cell, walk_cell

__all__ = ["default_jobs", "walk_all"]

LOG, REASON = "log.txt", "failed.txt"
_BYTES_PER_JOB = 3 * 2**30


def default_jobs() -> int:
    """One run per core on a CPU, as far as 3 GiB of memory are there for each; one at a time on a GPU."""
    if torch.cuda.is_available():
        return 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(_cores(), memory // _BYTES_PER_JOB))


def walk_all(cells: Sequence[Cell], shared: Path, jobs: int) -> dict[Path, str]:
    """Walk every cell, ``jobs`` at a time; finished steps are skipped.

    The cores are divided among the jobs: two runs of two threads each on two cores are slower than one after the other.
    What a run prints goes to ``log.txt`` in its folder.

    Returns:
        Folder of a run -> why it failed, for those that did.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isodistill.pipeline"])  # seconds of imports, once for all runs
    threads = max(1, min(torch.get_num_threads(), _cores() // jobs))
    print(f"{len(cells)} runs, {jobs} at a time with {threads} threads each", flush=True)
    failed: dict[Path, str] = {}
    waiting, begin, done = list(cells), time.monotonic(), 0
    running: dict[int, tuple[Cell, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                process = context.Process(target=_work, args=(cell, shared, threads))
                process.start()
                running[process.sentinel] = (cell, process)
            for sentinel in wait(list(running)):
                cell, ended = running.pop(cast(int, sentinel))
                ended.join()
                done += 1
                if ended.exitcode:
                    failed[cell.folder] = _reason(cell, ended.exitcode)
                _tell(cell, failed.get(cell.folder), done, len(cells), time.monotonic() - begin)
    finally:
        for _, ended in running.values():
            ended.terminate()
            ended.join()
    return failed


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(cell: Cell, shared: Path, threads: int) -> None:
    """The process of one run; it ends with the process that started it, so that no two ever work on one folder."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / REASON).unlink(missing_ok=True)
    log = os.open(cell.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    torch.set_num_threads(threads)
    try:
        walk_cell(cell, shared)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        (cell.folder / REASON).write_text(reason, encoding="utf-8")
        raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _reason(cell: Cell, code: int) -> str:
    told = cell.folder / REASON
    if told.exists():
        return told.read_text(encoding="utf-8")
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"Its process {ended} without a word; perhaps the memory did not suffice. See {cell.folder / LOG}."


def _tell(cell: Cell, reason: str | None, done: int, total: int, seconds: float) -> None:
    left = seconds / done * (total - done)
    how = "done" if reason is None else f"FAILED: {reason.splitlines()[0]}"
    print(f"[{done}/{total}] {cell.name}: {how} (about {left / 60:.0f} min left)", flush=True)
