"""Two adapters as one: the ranks add up, the function is the sum.

W0 + s B_1 A_1 + s B_2 A_2 = W0 + s [B_1, B_2] [A_1; A_2]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from isodistill.errors import UserError

__all__ = ["stack_adapters"]


def stack_adapters(below: Path, folder: Path) -> None:
    """Turn the adapter in ``folder`` into the sum of the one in ``below`` and itself.

    Raises:
        UserError: they adapt other layers, or their scales alpha / r differ.
    """
    configs = [_config(path) for path in (below, folder)]
    r, alpha = ([config[key] for config in configs] for key in ("r", "lora_alpha"))
    tensors = [load_file(path / "adapter_model.safetensors") for path in (below, folder)]
    special = [key for config in configs for key in ("use_rslora", "rank_pattern", "alpha_pattern") if config.get(key)]
    if tensors[0].keys() != tensors[1].keys() or alpha[0] * r[1] != alpha[1] * r[0] or special:
        raise UserError(
            f"The adapters in {below} and {folder} cannot be one: they need the same layers, no rslora and no pattern "
            f"of ranks, and one scale lora_alpha / r; here it is {alpha[0]} / {r[0]} and {alpha[1]} / {r[1]}."
        )
    first, second = tensors
    # A (r, n) below each other, B (m, r) side by side.
    whole = {name: torch.cat([A, second[name]], dim=1 if "lora_B" in name else 0) for name, A in first.items()}
    config = configs[1] | {"r": sum(r), "lora_alpha": sum(alpha)}
    save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config
