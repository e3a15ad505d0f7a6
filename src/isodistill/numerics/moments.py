"""Mean, variance and moving averages of the domains' gradients, in one pass and without cancellation.

Notation: ``g_k`` is the gradient of domain ``k`` of ``K``. Forming ``E[g^2] - E[g]^2`` loses every digit where the
domains nearly agree, which is exactly where a conflict mask must be 1. Welford's update never subtracts two large
squares, and gives variance 0, bit for bit, when all ``g_k`` are equal.

Everything is kept in fp32, or in fp64 when the gradients are fp64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["DomainMoments", "Ema", "chunk_slices", "domain_contrasts", "domain_statistics", "lerp_and_statistics"]

CHUNK_PER_THREAD = 1 << 16
"""Entries that a CPU thread handles at a time: a quarter MiB of fp32, so that the temporaries stay in its cache."""


def chunk_slices(numel: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover ``numel`` flat entries: cache-sized on a CPU, one single slice on an accelerator."""
    size = CHUNK_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else max(numel, 1)
    for start in range(0, numel, size):
        yield slice(start, min(start + size, numel))


def _keep_or_widen(x: Tensor) -> Tensor:
    """``x`` without its graph, in fp64 if it is fp64 and in fp32 otherwise."""
    return x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def _check_shape(name: str, x: Tensor, shape: torch.Size) -> None:
    if x.shape != shape:
        raise ValueError(f"{name}: a tensor of shape {tuple(x.shape)} was given after tensors of shape {tuple(shape)}.")


def _fold(g: Tensor, mean: Tensor, m2: Tensor, count: int) -> None:
    """Welford's update of ``mean`` and ``m2`` (sum of squared deviations), in place; ``g`` is number ``count``."""
    g, mean, m2 = g.reshape(-1), mean.view(-1), m2.view(-1)
    for part in chunk_slices(g.numel(), g.device):
        delta = g[part] - mean[part]
        mean[part].add_(delta, alpha=1 / count)
        m2[part].addcmul_(delta, delta, value=(count - 1) / count)


class DomainMoments:
    """Mean and population variance over domains, one domain at a time (Welford), mergeable across ranks (Chan).

    Memory: two buffers of the gradient's shape. A domain without valid tokens is simply not folded in.

        mean = (1/K) sum_k g_k;    variance = (1/K) sum_k (g_k - mean)^2

    The variance divides by ``K``, so that one domain gives 0 and not NaN (our choice; arXiv 2606.05025 does not say).
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | None = None
        self._m2: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of domains folded in so far."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """Mean over domains, shape of the gradients. The live buffer, not a copy."""
        return self._buffers()[0]

    @property
    def variance(self) -> Tensor:
        """Population variance over domains, shape of the gradients; a new tensor."""
        return self._buffers()[1] / self._count

    def update(self, g: Tensor) -> None:
        """Fold in the gradient of one more domain.

        Args:
            g: any shape, the same for every domain.

        Raises:
            ValueError: if the shape differs from that of the earlier domains.
        """
        g = _keep_or_widen(g)
        if self._mean is None or self._m2 is None:
            self._mean = g.clone(memory_format=torch.contiguous_format)
            self._m2 = torch.zeros_like(self._mean)
        else:
            _check_shape("DomainMoments.update", g, self._mean.shape)
            _fold(g, self._mean, self._m2, self._count + 1)
        self._count += 1

    def merge(self, other: DomainMoments) -> None:
        """Fold in the domains that ``other`` has seen; ``other`` is left as it is.

        Raises:
            ValueError: if the two hold tensors of different shape.
        """
        if other._mean is None or other._m2 is None:
            return
        if self._mean is None or self._m2 is None:
            self.load_state_dict(other.state_dict())
            return
        _check_shape("DomainMoments.merge", other._mean, self._mean.shape)
        count = self._count + other._count
        delta = other._mean - self._mean
        self._mean.add_(delta, alpha=other._count / count)
        self._m2.add_(other._m2).addcmul_(delta, delta, value=self._count * other._count / count)
        self._count = count

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of ``count`` and, once a domain was seen, ``mean`` and ``m2``: tensors only."""
        state = {"count": torch.tensor(self._count)}
        if self._mean is not None and self._m2 is not None:
            state |= {"mean": self._mean.clone(), "m2": self._m2.clone()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace everything by what ``state_dict`` gave."""
        self._count = int(state["count"])
        self._mean = state["mean"].clone() if self._count else None
        self._m2 = state["m2"].clone() if self._count else None

    def _buffers(self) -> tuple[Tensor, Tensor]:
        if self._mean is None or self._m2 is None:
            raise ValueError("DomainMoments is empty: call update() with the gradient of at least one domain first.")
        return self._mean, self._m2


def domain_statistics(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance over the rows of a matrix of flat gradients.

    The numbers of ``DomainMoments``, in chunks whose temporaries stay in cache: each entry is read from memory once.

    Args:
        gradients: (K, P), one row per domain that has tokens.

    Returns:
        mean (P,) and variance (P,), fp32, or fp64 for fp64 gradients.

    Raises:
        ValueError: if there is no row, or the tensor is no matrix.
    """
    if gradients.ndim != 2 or gradients.shape[0] == 0:
        raise ValueError(f"domain_statistics needs (K, P) with K >= 1, got shape {tuple(gradients.shape)}.")
    gradients = _keep_or_widen(gradients)
    domains, numel = gradients.shape
    mean, variance = gradients[0].clone(), torch.zeros_like(gradients[0])
    for part in chunk_slices(numel, gradients.device):
        for k in range(1, domains):
            _fold(gradients[k, part], mean[part], variance[part], k + 1)
        variance[part].div_(domains)
    return mean, variance


def lerp_and_statistics(averages: Tensor, gradients: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """averages += weight (gradients - averages), in place, and the ``domain_statistics`` of the result.

    One pass: a chunk of all rows is averaged and folded while it is in cache.

    Args:
        averages: (K, P), fp32 or fp64.
        gradients: (K, P), the same dtype.
        weight: of the new gradients, in [0, 1].

    Returns:
        mean (P,) and variance (P,) of the rows of ``averages``.
    """
    mean, variance = averages.new_empty(averages.shape[1]), averages.new_empty(averages.shape[1])
    for part in chunk_slices(averages.shape[1], averages.device):
        for k, average in enumerate(averages[:, part]):
            average.lerp_(gradients[k, part], weight)
            if k == 0:
                mean[part], variance[part] = average, 0.0
            else:
                _fold(average, mean[part], variance[part], k + 1)
        variance[part].div_(len(averages))
    return mean, variance


def domain_contrasts(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the rows, and K - 1 contrasts between them whose squares sum to K V.

        c_k = sqrt((k - 1) / k) (g_k - mean of g_1 .. g_(k-1)),   k = 2 .. K;    sum_k c_k^2 = K V

    Welford's differences: linear in the gradients, so they can be mapped to another space before they are squared;
    exactly 0 where all rows are equal; one row fewer than the gradients themselves (ours).

    Args:
        gradients: (K, P) with K >= 1.

    Returns:
        mean (P,) and contrasts (K - 1, P), fp32, or fp64 for fp64 gradients.
    """
    gradients = _keep_or_widen(gradients)
    domains, numel = gradients.shape
    mean, contrasts = gradients[0].clone(), gradients.new_empty(domains - 1, numel)
    for part in chunk_slices(numel, gradients.device):
        for k in range(1, domains):
            delta = torch.sub(gradients[k, part], mean[part], out=contrasts[k - 1, part])
            mean[part].add_(delta, alpha=1 / (k + 1))
            delta.mul_((k / (k + 1)) ** 0.5)
    return mean, contrasts


class Ema:
    """Exponential moving average of a tensor, corrected for its start.

        e_t = decay e_(t-1) + (1 - decay) x_t;    value_t = e_t / (1 - decay^t)

    kept as ``value += w_t (x - value)`` with ``w_t = (1 - decay) / (1 - decay^t)``, which is the same number: the first
    value is ``x_1`` and a constant input stays that constant, both bit for bit.

    Args:
        decay: in [0, 1); 0 keeps the last tensor only.

    Raises:
        ValueError: if ``decay`` is outside [0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"The decay of a moving average lies in [0, 1), got {decay}.")
        self.decay = decay
        self._count = 0
        self._value: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of tensors averaged so far."""
        return self._count

    @property
    def value(self) -> Tensor:
        """The corrected average, fp32 or fp64. The live buffer, not a copy."""
        if self._value is None:
            raise ValueError("The moving average is empty: call update() first.")
        return self._value

    def update(self, x: Tensor) -> Tensor:
        """Fold in ``x`` (any shape, always the same) and return ``value``."""
        x = _keep_or_widen(x)
        if self._value is None:
            self._value = x.clone()
        else:
            _check_shape("Ema.update", x, self._value.shape)
            self._value = self._value.to(x.device)  # a checkpoint is loaded on the CPU
            self._value.lerp_(x, (1 - self.decay) / (1 - self.decay ** (self._count + 1)))
        self._count += 1
        return self._value

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of ``count`` and, once there is one, ``value``: tensors only. ``decay`` is a setting, not state."""
        state = {"count": torch.tensor(self._count)}
        return state if self._value is None else state | {"value": self._value.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace everything by what ``state_dict`` gave."""
        self._count = int(state["count"])
        self._value = state["value"].clone() if self._count else None
