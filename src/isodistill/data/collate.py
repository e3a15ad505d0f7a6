"""Encoded rows as one padded batch, domain by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from isodistill.data.encode import IGNORE_INDEX, Encoded

__all__ = ["collate"]


def collate(encoded: Sequence[Encoded], domains: Sequence[str], pad_id: int) -> dict[str, Tensor]:
    """A batch whose rows are sorted by domain, so that each domain is one slice; the order within a domain is kept.

    Args:
        encoded: N rows.
        domains: the training domains; their order gives the domain indices.
        pad_id: token id on the right of shorter rows.

    Returns:
        input_ids, attention_mask (1 on tokens, 0 on padding) and labels, each (N, T) int64 with T the longest row;
        domain_index (N,) int64, not decreasing; weights (N,) float32; set_index (N,) int64, a number for each group of
        members of one set that the sampler handed out together, -1 for rows without a set; answer_at (N, 2) int64, the
        first token of the answer and one behind its last, 0 and 0 where it is not known; place (N,) int64, see
        ``Encoded``.

    Raises:
        ValueError: no rows, or a row whose domain is not among ``domains``.
    """
    index = {domain: k for k, domain in enumerate(domains)}
    if not encoded:
        raise ValueError("a batch needs at least one row")
    for row in encoded:
        if row.domain not in index:
            raise ValueError(f"row {row.row_id!r} is of domain {row.domain!r}, expected one of {list(domains)}")
    numbered = sorted(zip(encoded, _groups(encoded, index), strict=True), key=lambda pair: index[pair[0].domain])
    ordered = [row for row, _ in numbered]
    shape = (len(ordered), max(len(row.input_ids) for row in ordered))
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    for n, row in enumerate(ordered):
        length = len(row.input_ids)
        input_ids[n, :length] = torch.tensor(row.input_ids)
        attention_mask[n, :length] = 1
        labels[n, :length] = torch.tensor(row.labels)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "domain_index": torch.tensor([index[row.domain] for row in ordered]),
        "weights": torch.tensor([row.weight for row in ordered], dtype=torch.float32),
        "set_index": torch.tensor([group for _, group in numbered]),
        "answer_at": torch.tensor([row.answer_at or (0, 0) for row in ordered]),
        "place": torch.tensor([row.place for row in ordered]),
    }


def _groups(encoded: Sequence[Encoded], index: Mapping[str, int]) -> list[int]:
    """The group of each row: it ends where the set changes, or where a domain comes again (another teacher's trace)."""
    groups: list[int] = []
    number = -1
    before: tuple[str | None, int] = (None, -1)
    for row in encoded:
        here = (row.set_id, index[row.domain])
        if here[0] != before[0] or here[1] <= before[1]:
            number += 1
        groups.append(number if row.set_id is not None else -1)
        before = here
    return groups
