"""Flex-KD (arXiv 2507.10155): only the teacher's dimensions that its task depends on are distilled.

    idx = the d_S dimensions of largest score                 once, before training; see ``isodistill.terms.scoring``
    F_T = h_T[..., idx] (N, d_S);   F_S = h_S (N, d_S)        hidden states at the N trained positions
    L   = L_task + b mean_i (1 - r_i)^2                       r_i Pearson of column i, see ``numerics.correlation``

No parameter is added, and the widths need not agree: with d_S = d_T all dimensions are taken in order, with d_S > d_T
they meet the first d_T of the student. The paper's: gradient scores summed over the data, a static global choice of d_S
dimensions, a loss of correlation. Ours, since the paper leaves it open: the diagonal of the cross-correlation, its
square, ascending order, b, and all that ``score``, ``stats``, ``refresh_every`` offer. ``p_mask`` is the variant of the
ancestor (aclanthology.org/2023.findings-emnlp.882). ``select`` other than top, and ``loss`` mse, are baselines and
controls. Logit distillation is the objective's matter: ``{name: fkl, temperature: 2, lam_ce: 1, lam_kd: 0.5}``.
Cost: the teacher's forward, O(N d_S), and the scoring pass. Neutral setting: b = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from isodistill.numerics.correlation import PairMoments, correlation_loss, off_diagonal, pearson, standardise
from isodistill.terms.base import FeatureTerm
from isodistill.terms.scoring import AGGREGATIONS, DimensionScores, top_dimensions

__all__ = ["FlexKD"]

_CHOICES = {
    "score": AGGREGATIONS,
    "select": ("top", "lowest", "variance", "random", "first"),
    "loss_form": ("correlation", "standardised_mse", "mse"),
    "order": ("ascending", "score"),
    "stats": ("micro", "step"),
}
_ROWS = 64  # fewer make a noisy correlation


def _is_layer(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and (number >= 1 or number == -1)


@dataclass
class FlexKD(FeatureTerm):
    """Flex-KD, arXiv 2507.10155; see the module for the equations.

    Args:
        b: factor of the feature loss; 0 is the loss without it. Default 1.
        score: how gradients become scores: ``abs`` (default), ``squared`` (diagonal Fisher), ``grad_x_input``,
            ``signed_sum``.
        select: ``top``; controls: ``lowest`` scores, highest ``variance``, ``random`` (drawn from the seed), the
            ``first`` d_S.
        loss_form: ``correlation``; baselines: ``standardised_mse`` (2 (1 - r_i) per column), ``mse`` on plain features.
        offdiag: factor of sum_{i != j} C_ij^2 (Barlow Twins, 5e-3 there). Default 0.
        layers: pairs of teacher and student layer; default the last of both.
        order: of the chosen dimensions: ``ascending``, or by ``score``.
        examples: training rows that are scored, drawn from the seed. Default 1024.
        refresh_every: steps after which the next ``examples`` rows are scored and the choice is made anew; 0 never.
        p_mask: share of columns left out in each step, drawn anew. Default 0.
        stats: means and correlations of each ``micro``-batch (default; 64 tokens or more are advised), or of the whole
            optimizer ``step`` over micro-batches and processes, exactly, for a second forward.

    Raises:
        ValueError: an option is out of range.
    """

    name: ClassVar[str] = "flexkd"

    b: float = 1.0
    score: str = "abs"
    select: str = "top"
    loss_form: str = "correlation"
    offdiag: float = 0.0
    layers: list[list[int]] = field(default_factory=lambda: [[-1, -1]])
    order: str = "ascending"
    examples: int = 1024
    refresh_every: int = 0
    p_mask: float = 0.0
    stats: str = "micro"

    def __post_init__(self) -> None:
        super().__init__()
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        self.require(b=0, offdiag=0, examples=2, refresh_every=0)
        if not 0 <= self.p_mask < 1:
            raise ValueError(f"p_mask is {self.p_mask}; it is a share of the columns, 0 to below 1")
        if not self.layers or not all(len(pair) == 2 and all(map(_is_layer, pair)) for pair in self.layers):
            raise ValueError(f"layers is {self.layers}; give pairs of teacher and student layer, 1 to L or -1")
        plain = self.loss_form == "correlation" and self.offdiag == 0 and self.p_mask == 0
        if self.stats == "step" and not plain:
            raise ValueError("stats step is exact for the diagonal correlation alone: no offdiag, p_mask, other loss")
        self.idx: list[Tensor] = []
        self._chosen: dict[str, float] = {}
        self._told = False

    def setup(self, widths: list[tuple[int, int]], seed: int) -> None:
        """Widths, and the seed of what is drawn."""
        self.widths, self._seed = widths, seed
        self.idx, self.refreshed = [], 0

    def choose(self, scores: list[DimensionScores]) -> None:
        """Make idx of every pair from the scores of its teacher layer."""
        self.idx, self._chosen = [], {}
        if not scores:  # no teacher is wider than its student
            scores = [DimensionScores(self.score, d_T) for _, d_T in self.widths]
        for pair, ((d_S, d_T), one) in enumerate(zip(self.widths, scores, strict=True)):
            if d_S >= d_T:  # nothing to choose
                self.idx.append(torch.arange(d_T))
                continue
            generator = torch.Generator().manual_seed(self._seed + 1000 * pair)
            ranked = {
                "top": one.scores(),
                "lowest": -one.scores(),
                "variance": one.variance(),
                "random": torch.rand(d_T, generator=generator),
                "first": -torch.arange(d_T),
            }[self.select]
            self.idx.append(top_dimensions(ranked, d_S, self.order))
            ours = set(top_dimensions(one.scores(), d_S).tolist())
            self._chosen[f"overlap_with_top_{pair}"] = len(ours & set(self.idx[-1].tolist())) / d_S
            self._chosen[f"halves_agree_{pair}"] = one.agreement(d_S)

    def paired(self, pair: int, F_S: Tensor, F_T: Tensor) -> tuple[Tensor, Tensor]:
        """The columns that meet: (N, min(d_S, d_T)) of both."""
        idx = self.idx[pair].to(F_T.device)
        return F_S[:, : len(idx)], F_T[:, idx]

    def loss(self, pair: int, F_S: Tensor, F_T: Tensor, step: int) -> Tensor:
        """L over the rows of one micro-batch; 0, with its graph, for fewer than two."""
        F_S, F_T = self.paired(pair, F_S, F_T)
        self._tell_of_few(len(F_S))
        if len(F_S) < 2:
            return (0.0 * F_S).sum()
        kept = self._kept(F_S.shape[1], step).to(F_S.device)
        F_S, F_T = F_S[:, kept], F_T[:, kept]
        r, live = pearson(F_S, F_T)
        self.measure(f"r_{pair}", torch.where(live, r, 0.0).sum() / live.sum().clamp(min=1))
        if self.loss_form == "correlation":
            L = correlation_loss(r, live)
        elif self.loss_form == "standardised_mse":
            (z_S, live_S), (z_T, live_T) = standardise(F_S), standardise(F_T)
            both = live_S & live_T
            L = ((z_S - z_T).square().mean(0) * both).sum() / both.sum().clamp(min=1)
        else:
            L = (F_S.float() - F_T.float()).square().mean()
        if self.offdiag:
            L = L + self.offdiag * off_diagonal(F_S, F_T)
        self.measure("loss", L)
        return L

    def _tell_of_few(self, n: int) -> None:
        """Once, by one process."""
        if n < _ROWS and not self._told:
            self._told = True
            if not dist.is_initialized() or dist.get_rank() == 0:
                nothing = " (fewer than 2 add nothing)" if n < 2 else ""
                print(
                    f"flexkd correlates over {n} rows{nothing}; {_ROWS} or more are advised: larger batches", flush=True
                )

    def step_loss(self, pair: int, F_S: Tensor, F_T: Tensor, moments: PairMoments) -> Tensor:
        """A sum over rows whose gradient, over all micro-batches, is that of L of the whole step."""
        F_S, F_T = self.paired(pair, F_S, F_T)
        return (moments.pull(F_S, F_T) * F_S).sum()

    def take_metrics(self) -> dict[str, float]:
        """Loss and mean r; of the last choice, its overlap with the top scores, and of the halves of its examples."""
        return super().take_metrics() | self._chosen

    def _kept(self, d: int, step: int) -> Tensor:
        """The columns of this step; the same ones in all its micro-batches and processes."""
        if self.p_mask == 0:
            return torch.arange(d)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        return torch.randperm(d, generator=generator)[: max(1, round((1 - self.p_mask) * d))].sort().values

    def state_dict(self) -> dict[str, Tensor]:
        """The dimensions, and how often they were chosen anew."""
        chosen = {f"idx/{pair}": idx for pair, idx in enumerate(self.idx)}
        return chosen | {"refreshed": torch.tensor(self.refreshed)} if chosen else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state back."""
        if state:
            self.idx = [state[f"idx/{pair}"] for pair in range(len(self.layers))]
            self.refreshed = int(state["refreshed"])
