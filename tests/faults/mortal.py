"""Runs that die on purpose, or are killed: imported by the processes that tests start."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from isodistill.pipeline import run_recipe, teach_run
from isodistill.recipe import Recipe, load_recipe

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


def teach(folder: Path) -> None:
    """``isodistill teach recipe.yaml --out run`` in ``folder``; what it prints goes to ``output.txt``."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    teach_run(load_recipe(Path("recipe.yaml")), Path("run"), dry=False)


def _changed(event: str, args: tuple[Any, ...], folder: str) -> str | None:
    """The path below ``folder`` that an event changes."""
    path = str(args[0])
    if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
        return None
    if path.startswith(folder):
        return path.removeprefix(folder)
    # shutil.rmtree names what it removes relative to an open folder.
    return path if event in ("os.remove", "os.rmdir") and args[1] != -1 else None
