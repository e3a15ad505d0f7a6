"""What scoring all pairs of a projection head costs, in forward passes and against one gradient per pair.

``python -m benchmarks.audit [--quick]``: an encoder of MiniLM's size (6 layers, width 384, random weights, 24 tokens
per text) and two 384 x 384 heads on frozen features, batches of 32, fp32, one thread, processor seconds. Solve and
scores are timed on all pairs, with features drawn at random; encoding, and one gradient per pair, are timed on some
pairs and counted for all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from isodistill.influence import Influence, segment

WIDTH, BATCH, TOKENS, QUERIES, SINGLES, TOLERANCE = 384, 32, 24, 256, 64, 1e-2


class Heads(nn.Module):
    """One linear head per side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def encode_a(self, items: Tensor) -> Tensor:
        embeddings: Tensor = self.a(items)
        return embeddings

    def encode_b(self, items: Tensor) -> Tensor:
        embeddings: Tensor = self.b(items)
        return embeddings


def _seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _encoding(n_pairs: int) -> float:
    """Seconds to encode one pair, both sides, the median over batches."""
    config = BertConfig(hidden_size=WIDTH, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    encoder = BertModel(config).eval()
    ids = torch.randint(1000, 20000, (n_pairs // BATCH, 2, BATCH, TOKENS))
    with torch.no_grad():
        encoder(ids[0, 0])
        times = [_seconds(lambda sides=sides: [encoder(side) for side in sides]) for sides in ids]
    return median(times) / BATCH


def _features(n: int) -> tuple[Tensor, Tensor]:
    """Pairs with a falling spectrum; b is a with as much noise."""
    scale = torch.arange(1, WIDTH + 1).float().rsqrt()
    a = torch.randn(n, WIDTH) * scale
    return a, a + torch.randn(n, WIDTH) * scale


def run(quick: bool) -> dict[str, float]:
    """``audit_forwards``: (encode once + solve one query + score) / one forward; ``audit_vs_pairwise``: its scoring."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n, n_encoded = (2048, 256) if quick else (100_000, 1024)
    forward = _encoding(n_encoded) * n
    a, b = _features(n)
    how = {"temperature": 0.1, "delta": float(n)}
    influence = Influence(Heads(), ["*"], a, b, segment(n, BATCH, 0), **how)
    g = influence.query_gradient(*_features(QUERIES))
    started = time.process_time()
    solution = influence.inverse_product(g, tol=TOLERANCE)
    solving = time.process_time() - started
    scoring = _seconds(lambda: influence.score_all(solution.q))
    few = Influence(Heads(), ["*"], a[:SINGLES], b[:SINGLES], segment(SINGLES, BATCH, 0), **how)
    singles = torch.eye(SINGLES, dtype=torch.bool)
    pairwise = _seconds(lambda: [few.removal_gradient(one) @ g for one in singles]) * n / SINGLES
    print(
        f"{n} pairs: forward {forward:.1f} s (from {n_encoded}), solve {solving:.1f} s ({solution.steps} products, "
        f"residual {solution.residual:.2g}), score all {scoring:.2f} s, one gradient per pair {pairwise:.1f} s "
        f"(from {SINGLES})"
    )
    return {"audit_forwards": (forward + solving + scoring) / forward, "audit_vs_pairwise": pairwise / scoring}


if __name__ == "__main__":
    for name, value in run("--quick" in sys.argv[1:]).items():
        print(f"{name}: {value:.3f}")
