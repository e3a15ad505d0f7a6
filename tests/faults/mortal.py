"""A run that dies on purpose: imported by the processes that test_sigkill.py starts."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from isodistill.pipeline import run_recipe
from isodistill.recipe import Recipe

CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def walk(recipe: Recipe, folder: Path, place: str, die_at: int, changes: SimpleQueue[int]) -> None:
    """Walk the recipe; the process is killed just before the ``die_at``-th change of a file (0: never).

    Only files with ``place`` in their path below ``folder`` count; the number of changes of a walk that ends well is
    put into ``changes``.
    """
    done = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal done
        path = _changed(event, args, str(folder)) if event in CHANGES else None
        if path is not None and place in path:
            done += 1
            if done == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run_recipe(recipe, folder, "isodistill run recipe.yaml")
    changes.put(done)


def _changed(event: str, args: tuple[Any, ...], folder: str) -> str | None:
    """The path below ``folder`` that an event changes."""
    path = str(args[0])
    if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
        return None
    if path.startswith(folder):
        return path.removeprefix(folder)
    # shutil.rmtree names what it removes relative to an open folder.
    return path if event in ("os.remove", "os.rmdir") and args[1] != -1 else None
