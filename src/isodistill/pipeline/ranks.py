"""Several processes on one run folder (``accelerate launch``, ``torchrun``): the first one writes, the others wait."""

from __future__ import annotations

import os

__all__ = ["is_main", "wait_for_all"]


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_all() -> None:
    """Return when every process of the launch has come here; at once where there is one only."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
