"""Device and compute dtype, chosen once per run, with the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Placement", "choose_placement"]


@dataclass(frozen=True)
class Placement:
    """Where a run computes and in which dtype; ``reason`` says why, in one line for people."""

    device: torch.device
    compute_dtype: torch.dtype
    reason: str


def choose_placement(device: str | None = None, dtype: str | None = None) -> Placement:
    """Device and dtype of the frozen products; adapters, losses, gradients and masks stay in fp32 everywhere.

    Args:
        device: "cpu", "cuda", "cuda:1"; None takes an accelerator where there is one.
        dtype: "float32" or "bfloat16"; None takes bf16 where the hardware multiplies in bf16, fp32 elsewhere.
    """
    place = torch.device(device) if device else _best_device()
    if dtype is not None:
        return Placement(place, getattr(torch, dtype), f"{place}, {dtype}: asked for by the recipe")
    if place.type == "cuda":
        name = torch.cuda.get_device_name(place)
        if torch.cuda.is_bf16_supported():
            return Placement(place, torch.bfloat16, f"{place} ({name}), bf16 products: supported by this GPU")
        return Placement(place, torch.float32, f"{place} ({name}), fp32: this GPU has no bf16")
    # Private names, but the only ones that every release since our floor has.
    if torch.cpu._is_amx_tile_supported():
        return Placement(place, torch.bfloat16, "cpu, bf16 products: this processor has AMX")
    if torch.cpu._is_avx512_bf16_supported():
        return Placement(place, torch.bfloat16, "cpu, bf16 products: this processor has AVX512-BF16")
    return Placement(place, torch.float32, "cpu, fp32: this processor has neither AVX512-BF16 nor AMX")


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")  # not mps: token counts and statistics are kept in fp64, which it lacks
