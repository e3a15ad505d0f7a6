"""What scoring all pairs of a projection head costs, in forward passes and against one gradient per pair; and the verb.

``python -m benchmarks.audit [--quick] [--verb N]``: an encoder of MiniLM's size (6 layers, width 384, random weights,
24 tokens per text) and two 384 x 384 heads on frozen features, batches of 32, fp32, one thread, processor seconds.
Solve and scores are timed on all pairs, with features drawn at random; encoding, and one gradient per pair, are timed
on some pairs and counted for all. ``--verb N``: all that `isodistill audit` does to N pairs beside encoding them, its
fits included, with its own heads, batches and weight decay.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from isodistill.data.pairs import Pair
from isodistill.influence import Influence, segment, suspect
from isodistill.pipeline.audit import CURVE_PAIRS
from isodistill.pipeline.audit_findings import explain_query, removal_findings
from isodistill.pipeline.audit_model import audit_model
from isodistill.pipeline.pair_features import Features

WIDTH, BATCH, TOKENS, QUERIES, SINGLES, TOLERANCE = 384, 32, 24, 256, 64, 1e-2
N_VERB, N_VERB_QUICK = 10_000, 1024


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


def _read(n: int, seed: int) -> Features:
    """What the verb would have made of n pairs; a tenth of them are shuffled."""
    torch.manual_seed(seed)
    a, b = (nn.functional.normalize(side, dim=-1) for side in _features(n))
    b[: n // 10] = b[: n // 10].roll(1, 0)
    pairs = [Pair(f"{seed}-{i}", f"{seed}-{i}", f"{seed}-{i}", i, False, None, {}) for i in range(n)]
    return Features(pairs, a, b, [], 0)


def verb(n: int) -> tuple[float, dict[str, float]]:
    """Processor seconds of each part of an audit of n pairs of 384 features, but for the encoding and the page."""
    read, asked = _read(n, 1), _read(QUERIES, 2)
    model = audit_model(None, None, read, asked, None)  # type: ignore[arg-type]
    marks = [time.process_time()]
    influence = model.fit_to_all()
    marks.append(time.process_time())
    found = suspect(influence, model.query_a, model.query_b, model.how.probes, model.how.seed)
    marks.append(time.process_time())
    explain_query(model, read, asked, influence, found.norms.values, None)
    marks.append(time.process_time())
    removal_findings(model, asked, influence, found, CURVE_PAIRS)
    marks.append(time.process_time())
    names = ("fit", "scores and norms", "trace and its two fits", "removal curve")
    parts = {name: end - start for name, start, end in zip(names, marks, marks[1:], strict=False)}
    print(f"{found.solution.steps} products for the scores, {found.norms.solved.steps} for the norms")
    return marks[-1] - marks[0], parts


def run(quick: bool, n_verb: int | None = None) -> dict[str, float]:
    """``audit_forwards``: (encode once + solve one query + score) / one forward; ``audit_vs_pairwise``: its scoring.

    ``audit_verb_forwards``: the whole verb, with its fits, on fewer pairs.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n, n_encoded = (2048, 256) if quick else (100_000, 1024)
    per_pair = _encoding(n_encoded)
    forward = per_pair * n
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
    n_verb = n_verb or (N_VERB_QUICK if quick else N_VERB)
    whole, parts = verb(n_verb)
    told = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items())
    print(f"the verb, {n_verb} pairs: encoding {per_pair * n_verb:.0f} s, {told}")
    return {
        "audit_forwards": (forward + solving + scoring) / forward,
        "audit_vs_pairwise": pairwise / scoring,
        "audit_verb_forwards": 1 + whole / (per_pair * n_verb),
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    n_pairs = int(given[given.index("--verb") + 1]) if "--verb" in given else None
    for name, value in run("--quick" in given, n_pairs).items():
        print(f"{name}: {value:.3f}")
