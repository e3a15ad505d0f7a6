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


def walk(recipe: Recipe, folder: Path, die_at: int, changes: SimpleQueue[int]) -> None:
    """Walk the recipe; the process is killed just before it changes a file for the ``die_at``-th time (0: never).

    The number of changes of a walk that ends well is put into ``changes``.
    """
    done = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal done
        if event in CHANGES and _is_change(event, args, str(folder)):
            done += 1
            if done == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run_recipe(recipe, folder, "isodistill run recipe.yaml")
    changes.put(done)


def _is_change(event: str, args: tuple[Any, ...], folder: str) -> bool:
    if event == "open":
        path, _, flags = args
        return bool(flags & (os.O_WRONLY | os.O_RDWR)) and str(path).startswith(folder)
    # shutil.rmtree names what it removes relative to an open folder.
    return str(args[0]).startswith(folder) or (event in ("os.remove", "os.rmdir") and args[1] != -1)
