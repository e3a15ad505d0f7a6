"""What scoring all pairs of a projection head costs, in forward passes and against one gradient per pair.

``python -m benchmarks.audit [--quick]``: an encoder of MiniLM's size (6 layers, width 384, random weights, 24 tokens
per text), two 384 x 384 heads on its frozen features, batches of 32, fp32, one thread.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from isodistill.influence import Influence, segment

WIDTH, BATCH, TOKENS, PRODUCTS = 384, 32, 24, 30


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
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run(quick: bool) -> dict[str, float]:
    """``audit_forwards``: (encode once + solve one query + score) / one forward; ``audit_vs_pairwise``: its scoring."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n = 512 if quick else 2048
    config = BertConfig(hidden_size=WIDTH, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    encoder = BertModel(config).eval()
    ids = torch.randint(1000, 20000, (2, n, TOKENS))
    features = [torch.empty(n, WIDTH), torch.empty(n, WIDTH)]

    @torch.no_grad()
    def encode() -> None:
        for side in (0, 1):
            for rows in torch.arange(n).split(BATCH):
                features[side][rows] = encoder(ids[side, rows]).last_hidden_state.mean(1)

    forward = _seconds(encode)
    influence = Influence(Heads(), ["*"], *features, segment(n, BATCH, 0), temperature=0.1, delta=float(n))
    g = influence.query_gradient(*(side[:BATCH] for side in features))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights: the cost of the products counts, not where they end
        solving = _seconds(lambda: influence.inverse_product(g, tol=0.0, max_steps=PRODUCTS))
    scoring = median(_seconds(lambda: influence.score_all(g)) for _ in range(3))
    singles = torch.eye(n, dtype=torch.bool)[:64]
    pairwise = _seconds(lambda: [influence.removal_gradient(one) @ g for one in singles]) * n / len(singles)
    print(
        f"{n} pairs: forward {forward:.2f} s, solve ({PRODUCTS} products) {solving:.2f} s, score all {scoring:.3f} s, "
        f"one gradient per pair {pairwise:.2f} s"
    )
    return {"audit_forwards": (forward + solving + scoring) / forward, "audit_vs_pairwise": pairwise / scoring}


if __name__ == "__main__":
    for name, value in run("--quick" in sys.argv[1:]).items():
        print(f"{name}: {value:.3f}")
