"""``isodistill ...`` in a process forked from one that has imported everything, which saves seconds a command."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path


def isodistill(arguments: list[str], folder: Path, env: dict[str, str]) -> tuple[int, str]:
    """Exit code and output of the command in ``folder``; its first argument is its own name."""
    output = folder / ".output"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isodistill.cli", "isodistill.pipeline"])
    process = context.Process(target=_work, args=(arguments, folder, env, output))
    process.start()
    process.join(900)
    if process.exitcode is None:
        process.kill()
        process.join()
    printed = output.read_text(encoding="utf-8", errors="replace")
    output.unlink()
    assert process.exitcode is not None
    return process.exitcode, printed


def _work(arguments: list[str], folder: Path, env: dict[str, str], output: Path) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    sys.argv = arguments
    runpy.run_module("isodistill", run_name="__main__")
