"""Encoded rows as one padded batch, domain by domain."""

from __future__ import annotations

from collections.abc import Sequence

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
        domain_index (N,) int64, not decreasing; weights (N,) float32; place (N,) int64, see ``Encoded``.

    Raises:
        ValueError: no rows, or a row whose domain is not among ``domains``.
    """
    index = {domain: k for k, domain in enumerate(domains)}
    if not encoded:
        raise ValueError("a batch needs at least one row")
    for row in encoded:
        if row.domain not in index:
            raise ValueError(f"row {row.row_id!r} is of domain {row.domain!r}, expected one of {list(domains)}")
    ordered = sorted(encoded, key=lambda row: index[row.domain])
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
        "place": torch.tensor([row.place for row in ordered]),
    }
