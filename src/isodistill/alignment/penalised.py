"""What the alignments share that add a penalty on statistics of sequences: IRM, CORAL, DANN.

    loss = Lbar + Omega(s_1, ..., s_N) ;    s_i (F,) a statistic of sequence i, Omega over the whole optimizer step

Omega is not linear, so it cannot be summed over micro-batches. A first pass makes every s_i, then the pull
c_i = dOmega/ds_i is known, and the gradient of sum_i c_i . s_i, which *is* a sum, equals that of Omega exactly. So the
gradient depends neither on the split into micro-batches nor on the number of processes; the cost is a second forward.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isodistill.alignment.erm import ERM
from isodistill.models.lora import DomainGradients, LoraLayer

__all__ = ["AnnealedPenalty", "Penalised", "SeenTokens"]


@dataclass(frozen=True)
class SeenTokens:
    """What a penalty sees of the R sequences of a micro-batch.

    Attributes:
        hidden: (M, d) hidden states, after the final norm, of the positions that the penalty looks at.
        targets: (M,) the token that follows each of them.
        rows: (M,) the sequence of each of them.
        weights: (R,) the weights of the sequences.
        head: from hidden states (n, d) to logits.
        head_weight: (n_vocab, d) of the head.
    """

    hidden: Tensor
    targets: Tensor
    rows: Tensor
    weights: Tensor
    head: Callable[[Tensor], Tensor]
    head_weight: Tensor

    def summed(self, values: Tensor) -> Tensor:
        """Values (M, F) summed over each sequence, (R, F)."""
        return values.new_zeros(len(self.weights), values.shape[1]).index_add_(0, self.rows, values)


class Penalised(ERM):
    """ERM and a penalty on statistics of the sequences of an optimizer step."""

    needs_domains: ClassVar[bool] = True

    looks_at: ClassVar[Literal["completion", "question"]]
    """Whose hidden states ``statistics`` gets: the positions that predict trained tokens, or the prompt's."""

    @abstractmethod
    def statistics(self, seen: SeenTokens) -> Tensor:
        """s (R, F) in fp32 with gradient."""

    @abstractmethod
    def pull(self, s: Tensor, domains: Tensor, tokens: Tensor, n_domains: int) -> Tensor:
        """c (N, F) = dOmega/ds; called once per optimizer step, with the same arguments on all processes.

        Args:
            s: (N, F) statistics of all sequences of the step, fp64 on the CPU, in the order of the sampler.
            domains: (N,) domain of each.
            tokens: (N,) trained tokens of each.
            n_domains: K.
        """


@dataclass
class AnnealedPenalty(Penalised):
    """Omega = lam_t (1/K) times a plain function of the statistics, weaker in the first steps.

    Args:
        lam: strength; 0 is ERM.
        anneal: share of the steps during which the strength is min(``before``, lam).
    """

    before: ClassVar[float] = 1.0

    lam: float = 1.0
    anneal: float = 0.0

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise ValueError(f"alignment.lam is {self.lam}; it must be 0 (ERM) or more")
        if not 0 <= self.anneal <= 1:
            raise ValueError(f"alignment.anneal is {self.anneal}; it is a share of the steps, 0 to 1")
        self._step = 0
        self._metrics: dict[str, float] = {}

    def setup(self, *, layers: list[LoraLayer], total_steps: int, adaptive: bool, seed: int) -> None:
        """Where lam takes effect."""
        self._anneal_steps = int(self.anneal * total_steps)

    @abstractmethod
    def penalty(self, s: Tensor, domains: Tensor, tokens: Tensor) -> Tensor:
        """Omega / lam, a scalar with gradient; arguments as in ``pull``."""

    def pull(self, s: Tensor, domains: Tensor, tokens: Tensor, n_domains: int) -> Tensor:
        """By autograd through ``penalty``, K numbers or K (F, F) matrices."""
        lam = self.lam if self._step >= self._anneal_steps else min(self.before, self.lam)
        self._step += 1
        with torch.enable_grad():
            s = s.detach().requires_grad_()
            value = self.penalty(s, domains, tokens)
            self._metrics = {"penalty": float(value.detach()), "lam": lam}
            if not value.requires_grad:  # nothing to compare in this step
                return torch.zeros_like(s)
            return lam * torch.autograd.grad(value, s)[0]

    def update(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """The gradient is in the buffers already."""
        return super().update(gradients, present) | self._metrics

    def state_dict(self) -> dict[str, Tensor]:
        """The step of the schedule."""
        return {"step": torch.tensor(self._step)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self._step = int(state["step"])
