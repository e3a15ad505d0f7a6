"""Experience replay: the honest upper line where a few old rows may be kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isodistill.data.encode import IGNORE_INDEX, Encoded
from isodistill.data.rows import NO_DOMAIN
from isodistill.guards.base import Guard, StageEnd

__all__ = ["Replay"]


@dataclass
class Replay(Guard):
    """Some rows of every earlier stage are learned from again in each step. Not memory-less: report it apart.

        direction of the alignment + lam d/dtheta (mean token loss of the old rows of this step)

    The old rows have domains of their own, so they stand beside the domains that the alignment compares, not among
    them; their loss is the objective of the current stage.

    Args:
        buffer: rows kept of each stage, drawn once; default 100.
        share: old rows in a step, as a share of its new rows and at least one; default 0.05.
        lam: weight of their loss; default 1. 0 is no guard.

    Raises:
        ValueError: an option is out of range.
    """

    adds_direction: ClassVar[bool] = True
    learns_again: ClassVar[bool] = True

    buffer: int = 100
    share: float = 0.05
    lam: float = 1.0

    def __post_init__(self) -> None:
        if self.buffer < 1:
            raise ValueError(f"buffer is {self.buffer}; it counts rows and must be at least 1")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it is a share above 0, up to 1")
        if not 0 <= self.lam < math.inf:
            raise ValueError(f"lam is {self.lam}; it must be 0 or more, and finite")

    def begin(self, model: nn.Module, past: Mapping[str, Tensor] | None, seed: int) -> None:
        """The rows of the earlier stages."""
        super().begin(model, past, seed)
        self.seed, self.rows, self._gradient = seed, _unpacked(past or {}), dict[str, Tensor]()

    def past_rows(self, step: int, n_rows: int) -> list[Encoded]:
        """A draw that depends on seed and step alone, so that a resumed run sees the same."""
        if not self.rows or not self.lam:
            return []
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        n = max(1, round(self.share * n_rows))
        return [self.rows[i] for i in torch.randperm(len(self.rows), generator=generator)[:n].tolist()]

    def take_replayed(self, gradient: Mapping[str, Tensor]) -> None:
        """Keep it until the alignment is done."""
        self._gradient = dict(gradient)

    @torch.no_grad()
    def after_backward(self) -> dict[str, float]:
        """Add the gradient of the old rows."""
        for name, g in self._gradient.items():
            p = self.parameters[name]
            if p.grad is not None:
                p.grad.add_(g.to(p.grad), alpha=self.lam)
        self._gradient = {}
        return {}

    def end(self, stage: StageEnd) -> dict[str, Any]:
        """Draw the rows to keep of this stage."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(stage.rows), generator=generator)[: self.buffer].sort().values.tolist()
        self.rows = [*self.rows, *(stage.rows[i] for i in chosen)]
        return {"kept_rows": len(self.rows)}

    def carried(self) -> dict[str, Tensor]:
        """Token ids of all kept rows, one after the other, where each begins, and how long its prompt is."""
        lengths = [len(row.input_ids) for row in self.rows]
        return {
            "ids": torch.tensor([i for row in self.rows for i in row.input_ids]),
            "starts": torch.tensor([0, *lengths]).cumsum(0),
            "prompts": torch.tensor([sum(label == IGNORE_INDEX for label in row.labels) for row in self.rows]),
            "weights": torch.tensor([row.weight for row in self.rows], dtype=torch.float64),
        }


def _unpacked(past: Mapping[str, Tensor]) -> list[Encoded]:
    if not past:
        return []
    ids, rows = past["ids"].tolist(), []
    for n, (start, stop) in enumerate(pairwise(past["starts"].tolist())):
        own, prompt = ids[start:stop], int(past["prompts"][n])
        labels = [IGNORE_INDEX] * prompt + own[prompt:]
        rows.append(Encoded(f"kept-{n}", NO_DOMAIN, None, own, labels, float(past["weights"][n])))
    return rows
