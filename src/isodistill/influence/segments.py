"""Seg, which pairs stood together in which batch: recorded from a training, kept in a file, replayed for influences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from isodistill.data.files import write_lines
from isodistill.errors import UserError

__all__ = ["BatchRecorder", "Segment", "read_segments", "write_segments"]


@dataclass(frozen=True)
class Segment:
    """One batch.

    Attributes:
        epoch: which pass over the pairs, from 0.
        batch: its place in the epoch, from 0.
        pairs: (n,) long, the numbers of its pairs by row.
    """

    epoch: int
    batch: int
    pairs: Tensor


class BatchRecorder:
    """A batch sampler that remembers what it yielded: ``DataLoader(..., batch_sampler=BatchRecorder(sampler))``.

    Args:
        batches: yields the batches of one epoch, as lists of numbers of pairs, whenever it is iterated.

    Attributes:
        segments: all batches so far, by epoch.
    """

    def __init__(self, batches: Iterable[list[int]]) -> None:
        self._batches = batches
        self._epochs = 0
        self.segments: list[Segment] = []

    def __iter__(self) -> Iterator[list[int]]:
        epoch, self._epochs = self._epochs, self._epochs + 1
        for number, batch in enumerate(self._batches):
            self.segments.append(Segment(epoch, number, torch.tensor(batch)))
            yield batch

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]


def write_segments(path: Path, segments: Iterable[Segment]) -> None:
    """One line ``{"epoch", "batch", "pairs"}`` per batch."""
    lines = ({"epoch": s.epoch, "batch": s.batch, "pairs": s.pairs.tolist()} for s in segments)
    write_lines(path, (json.dumps(line) for line in lines))


def read_segments(path: Path, n_pairs: int, last_epochs: int) -> list[Tensor]:
    """The batches of the last epochs, as ``Influence`` takes them.

    Args:
        path: as ``write_segments`` wrote it.
        n_pairs: the number of pairs that the batches speak of.
        last_epochs: how many epochs; scores are summed over them, so delta is that of so many.

    Raises:
        UserError: no file, a line that is no batch, a pair that does not exist or stands twice in a batch, or fewer
            epochs than asked for.
    """
    if not path.is_file():
        raise UserError(f"No recorded batches at {path}: write_segments makes this file.")
    segments = [_segment(path, number, line, n_pairs) for number, line in enumerate(path.open(encoding="utf-8"), 1)]
    epochs = sorted({s.epoch for s in segments})
    if not 1 <= last_epochs <= len(epochs):
        raise UserError(f"{path} holds {len(epochs)} epochs; asked for the last {last_epochs}.")
    return [s.pairs for s in segments if s.epoch in epochs[-last_epochs:]]


def _segment(path: Path, number: int, line: str, n_pairs: int) -> Segment:
    try:
        found = json.loads(line)
        segment = Segment(int(found["epoch"]), int(found["batch"]), torch.tensor(found["pairs"], dtype=torch.long))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}, line {number}: expected epoch, batch and pairs of one batch ({error}).") from error
    pairs = segment.pairs
    if pairs.ndim != 1 or not len(pairs) or pairs.min() < 0 or pairs.max() >= n_pairs:
        raise UserError(f"{path}, line {number}: pairs must be a list of numbers from 0 to {n_pairs - 1}.")
    if len(pairs.unique()) != len(pairs):
        raise UserError(
            f"{path}, line {number}: a pair stands twice in the batch; the loss knows one positive per row."
        )
    return segment
