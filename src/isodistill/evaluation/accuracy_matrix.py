"""What a stream of tasks left behind: R[i][j] is the accuracy on task j after training task i (arXiv 1706.08840)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

__all__ = ["average_accuracy", "backward_transfer", "forgetting", "forward_transfer"]

Matrix = Sequence[Sequence[float]]


def average_accuracy(R: Matrix) -> float:
    """ACC = mean_j R_Tj, after the last task T."""
    return fmean(R[-1])


def backward_transfer(R: Matrix) -> float:
    """BWT = mean_{j<T} (R_Tj - R_jj); 0 for one task."""
    last = len(R) - 1
    return fmean(R[last][j] - R[j][j] for j in range(last)) if last else 0.0


def forward_transfer(R: Matrix, b: Sequence[float]) -> float:
    """FWT = mean_{j>1} (R_{j-1,j} - b_j), b_j the accuracy on task j before any training; 0 for one task."""
    return fmean(R[j - 1][j] - b[j] for j in range(1, len(R))) if len(R) > 1 else 0.0


def forgetting(R: Matrix) -> float:
    """mean_{j<T} (max_{j<=i<T} R_ij - R_Tj): the best since task j was trained, minus the last; 0 for one task."""
    last = len(R) - 1
    return fmean(max(R[i][j] for i in range(j, last)) - R[last][j] for j in range(last)) if last else 0.0
