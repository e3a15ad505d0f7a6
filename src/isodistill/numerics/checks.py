"""The finite check that comes before every decomposition and every update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["require_finite"]


def _is_finite(x: Tensor) -> Tensor:
    """Whether all entries of a non-empty tensor are finite, as a 0-dim bool tensor on its device.

    The extremes carry NaN and infinities along, and finding them takes a fraction of the time of ``isfinite(x).all()``,
    which writes a tensor of bools.
    """
    low, high = torch.aminmax(x.detach())
    return torch.isfinite(low) & torch.isfinite(high)


def _describe(name: str, x: Tensor) -> str:
    bad = ~torch.isfinite(x.detach())
    first = tuple(bad.nonzero()[0].tolist())
    nan = int(torch.isnan(x.detach()).sum())
    return f"{name} (shape {tuple(x.shape)}: {nan} NaN, {int(bad.sum()) - nan} infinite; first at {first})"


def require_finite(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], where: str = "") -> None:
    """Raise if any tensor holds NaN or an infinity; one device synchronisation for all of them.

    Args:
        tensors: names and tensors of any shape, all on one device.
        where: what the message adds about the place, for example ``"domain law, step 12"``.

    Raises:
        FloatingPointError: names every bad tensor, how many of its entries are bad, and the first of them.
    """
    named = [(n, x) for n, x in (tensors.items() if isinstance(tensors, Mapping) else tensors) if x.numel()]
    if not named:
        return
    finite = torch.stack([_is_finite(x) for _, x in named]).tolist()
    bad = [_describe(name, x) for (name, x), ok in zip(named, finite, strict=True) if not ok]
    if bad:
        place = f" ({where})" if where else ""
        raise FloatingPointError(
            f"Not finite{place}: {'; '.join(bad)}. "
            "Skip this step; if it happens again, lower the learning rate or compute the loss in fp32."
        )
