"""A small contrastive model over frozen features, fitted with recorded batches, and the suspicion of its pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isodistill.influence.ecif import Influence, segment
from isodistill.numerics import require_finite
from isodistill.numerics.contrastive import contrastive_loss

__all__ = ["Fit", "ProjectionHeads", "Suspicion", "change_norms", "fit_heads", "suspect"]


@dataclass(frozen=True)
class Fit:
    """How the heads are fitted.

    Attributes:
        width: of the space that both heads map into; at most that of the features.
        epochs: passes over the pairs.
        batch_size: pairs of a batch; each is the others' negative.
        lr: of Adam.
        temperature: of the logits, frozen.
        delta: L2 weight of the loss summed over an epoch.
        recorded: last epochs whose batches the scores are taken over.
        probes: random directions for the norms of the parameter changes.
        seed: of the heads, the batches and the probes.
    """

    width: int = 64
    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-2
    temperature: float = 0.3
    delta: float = 10.0
    recorded: int = 3
    probes: int = 16
    seed: int = 0


class ProjectionHeads(nn.Module):
    """u = A a, v = B b, (n, d) -> (n, width); A = B with orthogonal rows at the start."""

    def __init__(self, d: int, width: int, seed: int) -> None:
        super().__init__()
        self.head_a, self.head_b = nn.Linear(d, width, bias=False), nn.Linear(d, width, bias=False)
        start = torch.randn(d, width, generator=torch.Generator().manual_seed(seed))
        for head in (self.head_a, self.head_b):
            head.weight.data.copy_(torch.linalg.qr(start)[0].T)

    def encode_a(self, items: Tensor) -> Tensor:
        """Embeddings of the first items."""
        u: Tensor = self.head_a(items)
        return u

    def encode_b(self, items: Tensor) -> Tensor:
        """Embeddings of the second items."""
        v: Tensor = self.head_b(items)
        return v


def fit_heads(a: Tensor, b: Tensor, how: Fit) -> Influence:
    """Minimise sum of L_batch + delta/2 norm(theta)^2 over seeded batches; the last epochs' batches are Seg.

    Args:
        a: (N, d) frozen features of the first items.
        b: (N, d), of the second.
        how: the settings.

    Raises:
        ValueError: for fewer than two pairs, which have no contrast.
        FloatingPointError: if features hold NaN or an infinity.
    """
    if len(a) < 2:
        raise ValueError(f"A contrastive model needs at least two pairs, got {len(a)}.")
    require_finite({"a": a, "b": b}, where="features")
    heads = ProjectionHeads(a.shape[1], min(how.width, a.shape[1]), how.seed)
    optimizer = torch.optim.Adam(heads.parameters(), lr=how.lr)
    epochs = [segment(len(a), how.batch_size, how.seed + epoch) for epoch in range(how.epochs)]
    for epoch in epochs:
        for batch in epoch:
            u = nn.functional.normalize(heads.encode_a(a[batch]), dim=-1)
            v = nn.functional.normalize(heads.encode_b(b[batch]), dim=-1)
            size = torch.stack([weight.square().sum() for weight in heads.parameters()]).sum()
            loss = contrastive_loss(u @ v.T / how.temperature) + how.delta / 2 * size / len(epoch)
            optimizer.zero_grad()
            (loss / len(batch)).backward()
            optimizer.step()
    last = epochs[-how.recorded :]
    batches = [batch for epoch in last for batch in epoch]
    return Influence(heads, ["head_*"], a, b, batches, temperature=how.temperature, delta=how.delta * len(last))


@dataclass(frozen=True)
class Suspicion:
    """What is known of each pair, (N,) each.

    Attributes:
        relative: relIS = IS / norm(dtheta); the lowest is the most suspicious.
        influence: IS, the change of the loss on the queries when the pair is removed; < 0 is harmful.
        similarity: cosine of the pair's embeddings.
        loss: the pair's own loss, the mean over its batches.
        residual: of the solve for the queries.
    """

    relative: Tensor
    influence: Tensor
    similarity: Tensor
    loss: Tensor
    residual: float


def change_norms(influence: Influence, n_probes: int, seed: int) -> Tensor:
    """norm(dtheta(n)) of every pair, (N,) fp64, without a solve per pair (ours).

    norm(H^-1 g)^2 = E <z, H^-1 g>^2 = E <H^-1 z, g>^2 for z ~ N(0, I): a probe z costs one solve and one ``score_all``.
    The relative error of a norm is about 1 / sqrt(2 n_probes), and it is the same probes for all pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(influence.a), dtype=torch.float64)
    for _ in range(n_probes):
        z = torch.randn(influence.theta.shape, generator=generator)
        total += influence.score_all(influence.inverse_product(z, tol=1e-2).q).square()
    return (total / n_probes).sqrt()


def suspect(influence: Influence, query_a: Tensor, query_b: Tensor, how: Fit) -> Suspicion:
    """ECIF scores of all pairs for clean queries, with the two plain baselines.

    Raises:
        ValueError: for fewer than two queries.
    """
    solution = influence.inverse_product(influence.query_gradient(query_a, query_b))
    scores = influence.score_all(solution.q)
    norms = change_norms(influence, how.probes, how.seed) + 1e-12 * float(influence.theta.norm())
    similarity, loss, seen = (torch.zeros(len(influence.a), dtype=torch.float64) for _ in range(3))
    for batch in influence.segments:
        S = influence.batch_logits(influence.theta, batch).double()
        own = S.diagonal()
        similarity[batch] = own * how.temperature
        loss[batch] += S.logsumexp(1) + S.logsumexp(0) - 2 * own
        seen[batch] += 1
    return Suspicion(scores / norms, scores, similarity, loss / seen, solution.residual)
