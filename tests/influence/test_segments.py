"""Recorded batches: what a DataLoader drew is what the influences are taken over, from memory or from the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from isodistill.errors import UserError
from isodistill.influence import BatchRecorder, Influence, read_segments, write_segments

N = 10


class Head(nn.Linear):
    def encode_a(self, items: torch.Tensor) -> torch.Tensor:
        return self(items)

    def encode_b(self, items: torch.Tensor) -> torch.Tensor:
        return items


def trained(n_epochs: int) -> tuple[BatchRecorder, list[list[list[int]]]]:
    """What the recorder saw, and what came out of the loader."""
    generator = torch.Generator().manual_seed(0)
    recorder = BatchRecorder(BatchSampler(RandomSampler(range(N), generator=generator), 4, drop_last=False))
    loader = DataLoader(TensorDataset(torch.arange(N)), batch_sampler=recorder)
    assert len(loader) == 3
    return recorder, [[batch.tolist() for (batch,) in loader] for _ in range(n_epochs)]


def test_the_file_replays_the_last_epochs_of_the_loader(tmp_path: Path) -> None:
    recorder, seen = trained(3)
    path = tmp_path / "segments.jsonl"
    write_segments(path, recorder.segments)
    assert [(s.epoch, s.batch) for s in recorder.segments] == [(e, b) for e in range(3) for b in range(3)]
    replayed = read_segments(path, N, last_epochs=2)
    assert [batch.tolist() for batch in replayed] == [*seen[1], *seen[2]]
    assert seen[0] != seen[1]


def test_scores_from_the_file_are_those_of_the_recorded_batches(tmp_path: Path) -> None:
    recorder, _ = trained(2)
    write_segments(tmp_path / "segments.jsonl", recorder.segments)
    torch.manual_seed(1)
    head, a, b = Head(3, 3), torch.randn(N, 3), torch.randn(N, 3)
    q = torch.randn(12)
    recorded, replayed = [s.pairs for s in recorder.segments], read_segments(tmp_path / "segments.jsonl", N, 2)
    scores = [Influence(head, ["*"], a, b, s, temperature=0.5).score_all(q) for s in (recorded, replayed)]
    assert torch.equal(*scores)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 0, "batch": 0, "pairs": [0, 1]}\n{"epoch": 0, "batch"\n', "line 2: expected epoch"),
        ('{"epoch": 0, "pairs": [0]}\n', "line 1: expected epoch"),
        ('{"epoch": 0, "batch": 0, "pairs": [[0], [1, 2]]}\n', "line 1: expected epoch"),
        ('{"epoch": 0, "batch": 0, "pairs": [0, 10]}\n', "numbers from 0 to 9"),
        ('{"epoch": 0, "batch": 0, "pairs": []}\n', "numbers from 0 to 9"),
        ('{"epoch": 0, "batch": 0, "pairs": [3, 3]}\n', "twice in the batch"),
        ('{"epoch": 0, "batch": 0, "pairs": [3, 4]}\n', "holds 1 epochs; asked for the last 2"),
    ],
)
def test_files_that_are_no_record_say_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "segments.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_segments(tmp_path / "segments.jsonl", N, last_epochs=2)


def test_a_missing_file_says_who_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write_segments"):
        read_segments(tmp_path / "none.jsonl", N, last_epochs=1)
