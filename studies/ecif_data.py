"""Pairs of the study of ECIF, the small model that is fitted to them, and what it gets right."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from isodistill.influence import Influence

BATCH, WIDTH = 100, 16
TEMPERATURE = {"digits": 1.0, "snli": 0.1}
N_PAIRS = {"digits": 1000, "snli": 700}
DELTA = {"digits": 10.0, "snli": 100.0}


class Heads(nn.Module):
    """A linear projection of frozen features for each side: x A, or where the features match already normed x (I + A).

    Norms are free of A only where they are taken of x (I + A): x A normed has no minimum with weight decay, for a
    smaller A is always better.
    """

    def __init__(self, wide_a: int, wide_b: int, residual: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.residual, width = residual, wide_a if residual else WIDTH
        start = 0.0 if residual else 1.0
        self.I = torch.eye(width) if residual else torch.zeros(())
        self.A = nn.Parameter(start * torch.randn(wide_a, width, generator=generator) / math.sqrt(wide_a))
        self.B = nn.Parameter(start * torch.randn(wide_b, width, generator=generator) / math.sqrt(wide_b))

    def encode_a(self, items: Tensor) -> Tensor:
        """(n, width)."""
        u = items @ (self.I + self.A)
        return F.normalize(u, dim=-1) if self.residual else u

    def encode_b(self, items: Tensor) -> Tensor:
        """(n, width)."""
        v = items @ (self.I + self.B)
        return F.normalize(v, dim=-1) if self.residual else v


@dataclass(frozen=True)
class Pairs:
    """Features of the searched pairs, of clean queries, and of the test: test_a[i] belongs to choices[answer[i]]."""

    a: Tensor
    b: Tensor
    planted: Tensor
    query_a: Tensor
    query_b: Tensor
    test_a: Tensor
    choices: Tensor
    answer: Tensor


Features = dict[str, tuple[Tensor, Tensor]]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a gzipped file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def digits(data: Path) -> Features:
    """Pixels / 16 (N, 64) and a 1, and the words of the captions (N, V)."""
    rows = {split: read(data / "pairs" / "digits_captions" / f"{split}.jsonl.gz") for split in ("train", "test")}
    words = sorted({word for found in rows.values() for row in found for word in row["caption"].split()})
    features: Features = {}
    for split, found in rows.items():
        pixels = torch.tensor([[*row["image"], 16.0] for row in found]) / 16
        bag = torch.tensor([[float(word in row["caption"].split()) for word in words] for row in found])
        features[split] = (pixels, bag)
    return features


def snli(data: Path, encoder: Path) -> Features:
    """Frozen features of the first entailment pair of each caption: 64 main axes of the first items, centred."""
    encoded = encode_snli(data, encoder)
    middle = encoded["train"][0].mean(0)
    axes = torch.linalg.svd(encoded["train"][0] - middle, full_matrices=False)[2][:64].T
    return {s: (F.normalize((a - middle) @ axes), F.normalize((b - middle) @ axes)) for s, (a, b) in encoded.items()}


def encode_snli(data: Path, encoder: Path) -> Features:
    """Sentence embeddings (N, 384) of these pairs, computed once and kept."""
    name = hashlib.sha256(f"{data.resolve()} {encoder.resolve()}".encode()).hexdigest()[:16]
    cache = Path(tempfile.gettempdir()) / f"isodistill-snli-{name}.safetensors"
    if cache.is_file():
        cached = load_file(cache)
        return {split: (cached[f"{split}/a"], cached[f"{split}/b"]) for split in {key.split("/")[0] for key in cached}}
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    @torch.no_grad()
    def encode(texts: list[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None].float()
            parts.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return F.normalize(torch.cat(parts), dim=-1)

    features: Features = {}
    for split, name in {"train": "dev", "test": "test"}.items():
        rows = read(data / "pairs" / "snli_pairs" / f"{name}.jsonl.gz")
        first = {row["anchor"]: row for row in reversed(rows) if row["label"] == "entailment"}
        a, b = (encode([row[side] for row in first.values()]) for side in ("text_a", "text_b"))
        features[split] = (a, b)
    save_file(
        {f"{split}/{side}": x for split, pair in features.items() for side, x in zip("ab", pair, strict=True)}, cache
    )
    return features


def drawn(setting: str, features: Features, share: float, seed: int) -> Pairs:
    """The seed draws which rows are pairs and which queries, and which second items are passed on in a ring."""
    generator = torch.Generator().manual_seed(seed)
    (a, b), (test_a, test_b) = features["train"], features["test"]
    order, n = torch.randperm(len(a), generator=generator), N_PAIRS[setting]
    rows, queries = order[:n], order[n:]
    ring = torch.randperm(n, generator=generator)[: round(share * n)]
    shuffled = b[rows].clone()
    shuffled[ring] = b[rows][ring.roll(1)]
    planted = (shuffled != b[rows]).any(1)
    choices, answer = test_b.unique(dim=0, return_inverse=True)
    return Pairs(a[rows], shuffled, planted, a[queries], b[queries], test_a, choices, answer)


def fit(
    pairs: Pairs, segments: list[Tensor], setting: str, seed: int, start: Heads | None = None
) -> tuple[Heads, list[Tensor]]:
    """Heads at the minimum of the summed loss + (delta / 2) norm^2 over the recorded batches, and their checkpoints.

    Three times 40 iterations from the seed's heads, or 40 from ``start``.
    """
    generator, delta = torch.Generator().manual_seed(seed), DELTA[setting]
    heads = deepcopy(start) if start else Heads(pairs.a.shape[1], pairs.b.shape[1], setting == "snli", generator)
    padded, valid = (pad_sequence(x, batch_first=True) for x in (segments, [b >= 0 for b in segments]))
    optimizer = torch.optim.LBFGS(heads.parameters(), max_iter=40, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        u, v = heads.encode_a(pairs.a), heads.encode_b(pairs.b)
        S = u[padded] @ v[padded].mT / TEMPERATURE[setting]
        rows, columns = (S.masked_fill(~valid[:, None], -torch.inf), S.masked_fill(~valid[:, :, None], -torch.inf))
        terms = rows.logsumexp(2) + columns.logsumexp(1) - 2 * S.diagonal(dim1=1, dim2=2)
        loss = terms[valid].sum() + delta / 2 * (heads.A.square().sum() + heads.B.square().sum())
        loss.backward()
        return loss

    checkpoints = []
    for _ in range(1 if start else 3):
        optimizer.step(closure)
        checkpoints.append(torch.cat([p.detach().reshape(-1) for p in heads.parameters()]))
    return heads, checkpoints


def influence_of(heads: Heads, pairs: Pairs, segments: list[Tensor], setting: str) -> Influence:
    """Influences of the pairs on these heads; the encoders norm what is to be normed."""
    how = {"temperature": TEMPERATURE[setting], "delta": DELTA[setting]}
    return Influence(heads, ["A", "B"], pairs.a, pairs.b, segments, similarity="dot", **how)


@torch.no_grad()
def predictions(heads: Heads, pairs: Pairs) -> Tensor:
    """The choice of the largest inner product with each test item."""
    return (heads.encode_a(pairs.test_a) @ heads.encode_b(pairs.choices).T).argmax(1)


def accuracy(heads: Heads, pairs: Pairs) -> float:
    """Share of the test items whose choice is their own."""
    return float((predictions(heads, pairs) == pairs.answer).double().mean())
