"""What has been done in a run folder, and with which inputs: finished steps are skipped, changed ones done anew."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from isodistill import __version__
from isodistill.data.files import write_lines
from isodistill.errors import UserError
from isodistill.pipeline.ranks import is_main, wait_for_all

__all__ = ["Stamps", "digest", "files_under", "share_step"]


def digest(settings: Any, files: Iterable[Path] = ()) -> str:
    """SHA-256 of JSON-ready settings, the contents of files, and the version of isodistill."""
    whole = hashlib.sha256(json.dumps([__version__, settings], sort_keys=True, default=str).encode())
    for path in sorted(files):
        whole.update(path.name.encode())
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def files_under(path: Path) -> list[Path]:
    """Every file of a folder, or the one file; empty where there is none."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] * path.is_file()


class Stamps:
    """The file ``steps.json`` of a run folder: step -> digest of its inputs and whether it was finished."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "steps.json"
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            try:
                self.done = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(
                    f"{self.path} is damaged: {error}. Delete it, and every step of the run is done anew."
                ) from error

    def step(
        self, name: str, inputs: str, *, clear: Callable[[], None], do: Callable[[], None], together: bool = False
    ) -> bool:
        """Do a step unless it was finished with the same inputs.

        Args:
            name: of the step.
            inputs: digest of all that the step depends on.
            clear: removes what a step with *other* inputs left behind.
            do: does the step; goes on from what an interrupted one with the same inputs left behind.
            together: every process of a launch does this step; they begin and end it together.

        Returns:
            Whether the step was done now.

        Raises:
            UserError: a file could not be read or written, as on a full disk.
        """
        stamp = self.done.get(name, {})
        if stamp == {"inputs": inputs, "finished": True}:
            return False
        if stamp.get("inputs") != inputs and is_main():
            if stamp:
                print(f"{self.path.parent}: the inputs of the step {name} have changed; it is done anew", flush=True)
            clear()
            self._write(name, inputs, finished=False)
        if together:
            wait_for_all()
        try:
            do()
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"The step {name} of {self.path.parent} was stopped by a file: {error}. Mend that (free some space, "
                "check the rights); the same command then goes on from what was finished."
            ) from error
        if together:
            wait_for_all()
        if is_main():
            self._write(name, inputs, finished=True)
        return True

    def _write(self, name: str, inputs: str, *, finished: bool) -> None:
        self.done[name] = {"inputs": inputs, "finished": finished}
        write_lines(self.path, [json.dumps(self.done, indent=1)])


def share_step(name: str, shared: Path, folder: Path, part: str) -> None:
    """A finished step of another run folder as a step of this one, with links to its files.

    Args:
        name: of the step.
        shared: the folder where it was done.
        folder: the one that takes it over.
        part: the subfolder that the step wrote.
    """
    source, target = shared / part, folder / part

    def clear() -> None:
        if target.exists():
            shutil.rmtree(target)

    def do() -> None:
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            (target / path.name).unlink(missing_ok=True)
            try:
                os.link(path, target / path.name)
            except OSError:  # a file system without hard links
                shutil.copy2(path, target / path.name)

    Stamps(folder).step(name, Stamps(shared).done[name]["inputs"], clear=clear, do=do)
