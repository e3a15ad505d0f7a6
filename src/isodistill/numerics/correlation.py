"""Correlation of paired feature columns, the loss of Flex-KD (arXiv 2507.10155), for one batch or a whole step.

    z = (F - mean) / std                         columns of F (N, d), population std over the N rows
    r_i = mean_n zS_ni zT_ni                     Pearson, in [-1, 1]
    L = mean over live i of (1 - r_i)^2          live: neither column is constant, std > 1e-6 rms

A constant column has no direction to agree on and is left out; NaN counts as live, so that it is seen in L. Correlation
is no sum over rows: the mean of the L of two halves is not L. ``PairMoments`` gives L of many pieces exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PairMoments", "correlation_loss", "linear_cka", "off_diagonal", "pearson", "standardise"]

_CONSTANT = 1e-6


def standardise(F: Tensor) -> tuple[Tensor, Tensor]:
    """z (N, d) in fp32 or fp64, 0 in constant columns, and which columns are live (d,)."""
    F = F if F.dtype == torch.float64 else F.float()
    centred = F - F.mean(0)
    variance = centred.square().mean(0)
    live = ~(variance.detach().sqrt() <= _CONSTANT * F.detach().square().mean(0).sqrt())
    # The square root of 0 has no gradient, so a constant column is divided by 1.
    return centred * live / torch.where(live, variance, 1.0).sqrt(), live


def pearson(F_S: Tensor, F_T: Tensor) -> tuple[Tensor, Tensor]:
    """r (d,) of paired columns of (N, d), and which of them are live on both sides (d,)."""
    (z_S, live_S), (z_T, live_T) = standardise(F_S), standardise(F_T)
    return (z_S * z_T).mean(0), live_S & live_T


def correlation_loss(r: Tensor, live: Tensor) -> Tensor:
    """L of correlations (d,); 0, with its graph, where no column is live."""
    return torch.where(live, (1 - r).square(), 0.0).sum() / live.sum().clamp(min=1)


def off_diagonal(F_S: Tensor, F_T: Tensor) -> Tensor:
    """sum_{i != j} C_ij^2 with C = zS' zT / N, as in Barlow Twins (arXiv 2103.03230)."""
    C = standardise(F_S)[0].T @ standardise(F_T)[0] / len(F_S)
    return C.square().sum() - C.diagonal().square().sum()


def linear_cka(F_S: Tensor, F_T: Tensor) -> Tensor:
    """CKA = norm(X' Y)^2 / (norm(X' X) norm(Y' Y)) of centred X (N, d_S) and Y (N, d_T) (arXiv 1905.00414).

    1 for features that are equal up to rotation and scale; 0 where one side is constant.
    """
    X, Y = (F if F.dtype == torch.float64 else F.float() for F in (F_S, F_T))
    X, Y = X - X.mean(0), Y - Y.mean(0)
    own = (X.T @ X).square().sum().clamp(min=torch.finfo(X.dtype).tiny).sqrt() * (Y.T @ Y).square().sum().sqrt()
    return (X.T @ Y).square().sum() / own.clamp(min=torch.finfo(X.dtype).tiny)


class PairMoments:
    """Means, variances and covariances of paired columns (N, d), built up piece by piece in fp64 (Chan's update).

    Attributes:
        n: rows seen.
    """

    def __init__(self, d: int) -> None:
        self.n = 0
        self._mean = torch.zeros(2, d, dtype=torch.float64)  # of student and teacher
        self._M = torch.zeros(3, d, dtype=torch.float64)  # sums of squares of both, and of their product, centred

    def update(self, F_S: Tensor, F_T: Tensor) -> None:
        """Take rows in."""
        F = torch.stack([F_S.detach(), F_T.detach()]).double().cpu()
        if F.shape[1]:
            mean = F.mean(1)
            S, T = F - mean[:, None]
            self._take(F.shape[1], mean, torch.stack([(S * S).sum(0), (T * T).sum(0), (S * T).sum(0)]))

    def merge(self, packed: Tensor) -> None:
        """Take in what another process has seen; see ``packed``."""
        n, values = int(packed[0]), packed[1:].view(5, -1)
        if n:
            self._take(n, values[:2], values[2:])

    def packed(self) -> Tensor:
        """(1 + 5 d,) fp64: all of it in one tensor."""
        n = torch.tensor([self.n], dtype=torch.float64)
        return torch.cat([n, self._mean.flatten(), self._M.flatten()])

    def _take(self, n: int, mean: Tensor, M: Tensor) -> None:
        delta, total = mean - self._mean, self.n + n
        apart = torch.stack([delta[0] ** 2, delta[1] ** 2, delta[0] * delta[1]])
        self._M = self._M + M + apart * (self.n * n / total)
        self._mean = self._mean + delta * (n / total)
        self.n = total

    def pearson(self) -> tuple[Tensor, Tensor]:
        """r (d,) and live (d,) over all rows, as ``isodistill.numerics.correlation.pearson`` would give at once."""
        variance = self._M[:2] / max(self.n, 1)
        constant = variance.sqrt() <= _CONSTANT * (variance + self._mean.square()).sqrt()
        live = ~(constant[0] | constant[1])
        r = self._M[2] / torch.where(live, (self._M[0] * self._M[1]).sqrt(), 1.0)
        return torch.where(live, r, 0.0), live

    def pull(self, F_S: Tensor, F_T: Tensor) -> Tensor:
        """dL/dF_S (n, d) at some of the rows that were seen, the statistics being those of all N rows.

            dL/dF_S_ni = -2 (1 - r_i) (zT_ni - r_i zS_ni) / (N d_live std_i)

        The gradient of sum_n <pull_n, F_S_n> over all rows is that of L, exactly.
        """
        r, live = self.pearson()
        std = torch.where(live, self._M[:2] / max(self.n, 1), 1.0).sqrt().to(F_S.device)
        mean, r, live = self._mean.to(F_S.device), r.to(F_S.device), live.to(F_S.device)
        z_S, z_T = (F_S.detach().double() - mean[0]) / std[0], (F_T.detach().double() - mean[1]) / std[1]
        scale = -2 * (1 - r) / (self.n * live.sum().clamp(min=1) * std[0])
        return torch.where(live, scale * (z_T - r * z_S), 0.0).to(F_S.dtype)
