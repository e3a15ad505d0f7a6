"""What a stage leaves to the guard of the next one: safetensors and JSON, refused under another student or guard."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isodistill.errors import UserError

__all__ = ["FILES", "fingerprint", "read_guard_state", "write_guard_state"]

FILES = ("state.safetensors", "state.json")
"""What the next stage depends on."""


def fingerprint(model: nn.Module) -> dict[str, str]:
    """Digests of the student: ``base`` of what no adapter can change, ``adapted`` of the weights below the adapters,
    to which earlier ones may have been added, ``adapter`` of the trainable tensors.

    Sums of the bits as whole numbers, weighted by row and by column, so neither the number of threads nor the device
    changes them, and exchanged rows or columns do.
    """
    digests = {"base": hashlib.sha256(), "adapted": hashlib.sha256(), "adapter": hashlib.sha256()}
    for name, p in model.named_parameters():
        bits = p.detach().contiguous().view(torch.int32 if p.element_size() == 4 else torch.int16)
        part = "adapter" if p.requires_grad else "adapted" if "base_layer" in name else "base"
        sums = [_weighted(bits.reshape(len(bits), -1), dim) for dim in (0, 1)] if bits.dim() else [int(bits)]
        digests[part].update(json.dumps([name, list(p.shape), *sums]).encode())
    return {part: digest.hexdigest() for part, digest in digests.items()}


def _weighted(bits: Tensor, dim: int) -> int:
    """Sum over ``dim`` first, then over the other one with weights 1, 2, ...; overflow wraps alike everywhere."""
    sums = bits.sum(dim, dtype=torch.int64)
    return int((sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum())


def write_guard_state(folder: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write a state whole or not at all: the JSON file last, without which the folder is not read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILES[1]).unlink(missing_ok=True)
    save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, folder / FILES[0])
    unfinished = folder / f"{FILES[1]}.part"
    unfinished.write_text(json.dumps(about, indent=1, allow_nan=False), encoding="utf-8")
    unfinished.replace(folder / FILES[1])


def read_guard_state(folder: Path, guard: str, model: nn.Module, *, fresh_adapter: bool) -> dict[str, Tensor]:
    """The tensors that the last stage left.

    Args:
        folder: of the state.
        guard: name of the guard that asks.
        model: the student as it stands before the stage.
        fresh_adapter: the adapter is a new one, and the last one is in the weights below it, so only the rest of the
            model is compared.

    Raises:
        UserError: no state, a damaged one, or one of another guard or student.
    """
    try:
        about = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = load_file(folder / FILES[0])
        known, name = about["student"], about["guard"]
    except FileNotFoundError:
        raise UserError(f"{folder} holds no guard state; the stage before this one writes it when it ends.") from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The guard state {folder} is damaged: {error}. Delete the folder of that stage and run the recipe again."
        ) from error
    if name != guard:
        raise UserError(f"The guard state {folder} was written by the guard {name}, and this stage has {guard}.")
    now = fingerprint(model)
    for part in ("base",) if fresh_adapter else ("base", "adapted", "adapter"):
        if now[part] != known[part]:
            what = "adapter" if part == "adapter" else "model"
            raise UserError(
                f"The guard state {folder} belongs to another {what} than the one given: go on from the student that "
                "was saved with that state."
            )
    return tensors
