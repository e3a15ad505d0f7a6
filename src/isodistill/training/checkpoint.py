"""Checkpoints for an exact resume: safetensors and JSON only, and a folder appears whole or not at all."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from isodistill.errors import UserError

__all__ = ["load_rng", "load_state", "newest_checkpoint", "publish", "save_rng", "save_state"]

_STATE = "state.safetensors"
_SETTINGS = "state.json"


def newest_checkpoint(folder: Path) -> Path | None:
    """The ``checkpoint-N`` with the largest N; unfinished ones have another name and are never found."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return max(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), default=None)


def publish(unfinished: Path, final: Path, keep: int | None) -> None:
    """Give a finished checkpoint its name, then drop all but the newest ``keep``."""
    for path in unfinished.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if final.exists():  # left by the interrupted run that this one repeats
        shutil.rmtree(final)
    unfinished.replace(final)
    if keep:
        numbered = sorted(final.parent.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
        for old in numbered[:-keep]:
            shutil.rmtree(old)


def save_state(folder: Path, optimizer: torch.optim.Optimizer, scheduler: Any, alignment: dict[str, Tensor]) -> None:
    """Write what is not model, trainer state or random state."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {f"alignment/{name}": value.contiguous() for name, value in alignment.items()}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value.contiguous()
            else:
                scalars.setdefault(str(index), {})[key] = value
    settings = {
        "param_groups": state["param_groups"],
        "optimizer_scalars": scalars,
        "scheduler": {k: v for k, v in scheduler.state_dict().items() if _is_json(v)},
    }
    save_file(tensors, folder / _STATE)
    (folder / _SETTINGS).write_text(json.dumps(settings), encoding="utf-8")


def load_state(folder: Path, optimizer: torch.optim.Optimizer, scheduler: Any) -> dict[str, Tensor]:
    """Restore optimizer and scheduler; returns the alignment's state.

    Raises:
        UserError: a file of the checkpoint is missing or damaged.
    """
    try:
        tensors = load_file(folder / _STATE)
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(
            f"The checkpoint {folder} cannot be read: {error}. Delete the folder to go on from an older one."
        ) from error
    entries: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in settings["optimizer_scalars"].items()}
    alignment = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "alignment":
            alignment[rest] = value
        else:
            index, _, key = rest.partition("/")
            entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": settings["param_groups"]})
    scheduler.load_state_dict(scheduler.state_dict() | settings["scheduler"])
    return alignment


def save_rng(folder: Path, rank: int) -> None:
    """The random states of python, numpy and torch (every device) of one process."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda/{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    settings = {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
    }
    save_file(states, folder / f"rng-{rank}.safetensors", metadata={"settings": json.dumps(settings)})


def load_rng(folder: Path, rank: int) -> None:
    """Take the random states of one process back.

    Raises:
        UserError: the checkpoint was written by a run with fewer processes.
    """
    from safetensors import safe_open

    path = folder / f"rng-{rank}.safetensors"
    if not path.exists():
        raise UserError(
            f"The checkpoint {folder} holds no random state of process {rank}: it was written by fewer processes. "
            "Resume with as many processes as it was started with."
        )
    with safe_open(path, framework="pt") as file:
        settings = json.loads(file.metadata()["settings"])
        torch.set_rng_state(file.get_tensor("torch"))
        if torch.cuda.is_available():
            cuda = sorted((key for key in file.keys() if key.startswith("cuda/")), key=lambda k: int(k[5:]))  # noqa: SIM118
            torch.cuda.set_rng_state_all([file.get_tensor(key) for key in cuda])
    version, internal, gauss = settings["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = settings["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_json(v) for v in value)
    return value is None or isinstance(value, int | float | str | bool)
