"""Small contrastive models over frozen features, or encoders tuned in part, fitted with recorded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isodistill.influence.ecif import Influence, Items, segment
from isodistill.numerics import require_finite
from isodistill.numerics.contrastive import contrastive_loss

__all__ = ["Epochs", "Fit", "ProjectionHeads", "divide", "fit_encoder", "fit_heads", "leave_out"]

Epochs = Sequence[Sequence[Tensor]]
"""The batches of every epoch, as numbers of pairs."""


@dataclass(frozen=True)
class Fit:
    """How a contrastive model is fitted.

    Attributes:
        width: of the space that both heads map into; at most that of the features.
        epochs: passes over the pairs.
        batch_size: pairs of a batch; each is the others' negative.
        lr: of Adam.
        temperature: of the logits, frozen.
        delta: L2 weight of theta in the loss summed over an epoch; it pulls heads back to the cosines of the features.
        recorded: last epochs whose batches the scores are taken over.
        damping: share of the mean diagonal of the Gauss-Newton that the influences add to delta; a fit with hardly any
            weight decay needs it.
        probes: random directions for the norms of the parameter changes.
        seed: of the heads, the batches and the probes.
    """

    width: int = 384
    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-3
    temperature: float = 0.1
    delta: float = 100.0
    recorded: int = 3
    damping: float = 0.0
    probes: int = 16
    seed: int = 0


class ProjectionHeads(nn.Module):
    """u = (W + A) a, v = (W + B) b, (n, d) -> (n, width); W is fixed, with orthonormal rows, and A and B start at 0.

    With width = d the heads start as the cosines of the features, and weight decay on A and B pulls them back to these.
    """

    def __init__(self, d: int, width: int, seed: int) -> None:
        super().__init__()
        self.head_a, self.head_b = nn.Linear(d, width, bias=False), nn.Linear(d, width, bias=False)
        for head in (self.head_a, self.head_b):
            nn.init.zeros_(head.weight)
        start = torch.randn(d, width, generator=torch.Generator().manual_seed(seed))
        self.W: Tensor
        self.register_buffer("W", torch.linalg.qr(start)[0].T)

    def encode_a(self, items: Tensor) -> Tensor:
        """Embeddings of the first items."""
        return nn.functional.linear(items, self.W + self.head_a.weight)

    def encode_b(self, items: Tensor) -> Tensor:
        """Embeddings of the second items."""
        return nn.functional.linear(items, self.W + self.head_b.weight)


def divide(rows: Tensor, how: Fit) -> list[list[Tensor]]:
    """The batches of a fit to some pairs: a seeded division of ``rows``, their numbers, for every epoch."""
    epochs = range(how.seed, how.seed + how.epochs)
    return [[rows[batch] for batch in segment(len(rows), how.batch_size, seed)] for seed in epochs]


def leave_out(epochs: Epochs, removed: Tensor) -> list[list[Tensor]]:
    """The same batches without the pairs ``removed``, by number, so that two fits differ by these and not by chance.

    A batch with fewer than two pairs left, which has no loss, goes too.
    """
    out = torch.zeros(1 + max(int(batch.max()) for epoch in epochs for batch in epoch), dtype=torch.bool)
    out[removed] = True
    shorter = [[batch[~out[batch]] for batch in epoch] for epoch in epochs]
    return [[batch for batch in epoch if len(batch) > 1] for epoch in shorter]


def fit_heads(a: Tensor, b: Tensor, how: Fit, epochs: Epochs | None = None) -> Influence:
    """``fit_encoder`` for heads over frozen features.

    Args:
        a: (N, d) frozen features of the first items.
        b: (N, d), of the second.
        how: the settings.
        epochs: the batches of every epoch, where not every division will do.

    Raises:
        ValueError: for fewer than two pairs, which have no contrast, or batches of one.
        FloatingPointError: if features hold NaN or an infinity.
    """
    require_finite({"a": a, "b": b}, where="features")
    heads = ProjectionHeads(a.shape[1], min(how.width, a.shape[1]), how.seed).to(a.device)
    return fit_encoder(heads, ["head_*"], a, b, how, epochs)


def fit_encoder(
    encoder: nn.Module,
    parameters: Sequence[str],
    a: Items,
    b: Items,
    how: Fit,
    epochs: Epochs | None = None,
) -> Influence:
    """Minimise sum of L_batch + delta/2 norm(theta)^2 over seeded batches; the last epochs' batches are Seg.

    The curvature is that of the last one: on 700 and 2,048 pairs the scores had a rank correlation of .999 and .997
    with those by the curvature of all three, at a third of the cost.

    Args:
        encoder: a ``DualEncoder``; its theta is set to what was found.
        parameters: patterns of the names that are theta, such as ``["*lora_*"]``; the rest stays as it is.
        a: first items.
        b: second items.
        how: the settings.
        epochs: the batches of every epoch, ``how.epochs`` seeded divisions without it.

    Raises:
        ValueError: for fewer than two pairs, which have no contrast, batches of one, a negative damping, or no such
            parameter.
    """
    if len(a) < 2:
        raise ValueError(f"A contrastive model needs at least two pairs, got {len(a)}.")
    if how.batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, got {how.batch_size}: a pair alone has no negatives.")
    if how.damping < 0:
        raise ValueError(f"damping must be 0 or more, got {how.damping:g}.")
    epochs = epochs or divide(torch.arange(len(a)), how)
    last = epochs[-how.recorded :]
    batches = [batch for epoch in last for batch in epoch]
    delta = how.delta * len(last)
    influence = Influence(
        encoder, parameters, a, b, batches, temperature=how.temperature, delta=delta, curvature=last[-1]
    )
    theta = influence.theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=how.lr)
    for epoch in epochs:
        for batch in epoch:
            loss = contrastive_loss(influence.batch_logits(theta, batch))
            loss = loss + how.delta / 2 * theta.square().sum() / len(epoch)
            optimizer.zero_grad()
            (loss / how.batch_size).backward()  # of a short batch, too: its share of the L2 term is that of any other
            optimizer.step()
    influence.theta = theta.detach()
    if how.damping:
        influence.delta += how.damping * influence.mean_diagonal(how.seed)
    encoder.load_state_dict(influence.named(influence.theta), strict=False)
    return influence
