"""What a bug report needs: versions, processor, memory, device and the dtype that would be chosen."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from isodistill.models.device import choose_placement
from isodistill.models.load import cache_folder

__all__ = ["describe_environment"]

_PACKAGES = ("isodistill", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "scipy")


def describe_environment() -> dict[str, str]:
    """Name -> value, in the order to print."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **found,
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "compute": choose_placement().reason,
        "cache folder": str(cache_folder()),
    }
