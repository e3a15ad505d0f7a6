"""Fishr (arXiv 2109.02934): the gradients of single sequences shall vary alike in every domain.

    g_i  = dl_i/dgamma (d,)                       l_i: mean token loss of sequence i of domain k
    v_k  = (1/N_k) sum_i (g_i - mean_i g_i)^2     centred, over the sequences of the step
    e_k <- ema e_k + (1 - ema) v_k ;   vt_k = e_k / (1 - ema)      scale "unit": without the division
    loss = Lbar + lam (1/K) sum_k mean over coordinates of (vt_k - mean_j vt_j)^2 / S
    S    = 1;   scale "relative": mean over coordinates of (mean_j vt_j)^2, held fixed

The penalty and the running mean are the paper's; the division by 1 - ema and the mean over coordinates are those of its
code, which makes vt about 20 times v in the long run. The old e_k carries no gradient. Without S the penalty falls with
the fourth power of the gradients' size, and the reference's lam does nothing to a language model (in the laboratory it
is below 1 % of the loss); with S, ours and the default, it is the squared variation of the variances between domains,
and lam means the same for every student. Ours too: the block of parameters is
gamma, the gain of the last norm, so that gradients of single sequences are one product with the frozen head away and no
double backward is needed (h_t: hidden states that enter the head W):

    g_i = (1/n_i) sum_t h_t * (W' (softmax(W h_t) - onehot(y_t)))

The share ``anneal`` of the steps has no penalty (DomainBed: 1500 of 5000 steps), while the running means fill. A domain
with fewer than two sequences in the step is left out of it and keeps e_k. The penalty looks at cross-entropy on the
trace, whatever the objective is. Cost: a second forward; the logits and their way back through the head, three times.
Neutral setting: lam = 0 is ERM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from isodistill.alignment.penalised import AnnealedPenalty, SeenTokens

__all__ = ["Fishr"]

_CHUNK = 512  # positions whose logits exist at one time


@dataclass
class Fishr(AnnealedPenalty):
    """Fishr, arXiv 2109.02934; see the module for the equations.

    Args:
        lam: strength; 0 is ERM. Default 1, search 0.01 to 100; DomainBed's for ``reference`` is 1000, 10 to 1e4.
        anneal: share of the steps without penalty. Default 0.3.
        ema: decay of the running variances, in [0, 1). Default 0.95, search 0.9 to 0.99.
        scale: ``relative`` (ours) divides the spread by the squared mean variance, ``reference`` the running variances
            by 1 - ema, ``unit`` neither.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    lam: float = 1.0
    anneal: float = 0.3
    ema: float = 0.95
    scale: Literal["relative", "reference", "unit"] = "relative"

    looks_at: ClassVar[Literal["completion", "question"]] = "completion"
    before: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ema < 1:
            raise ValueError(f"alignment.ema is {self.ema}; it must be at least 0 and below 1")
        if self.scale not in ("relative", "reference", "unit"):
            raise ValueError(f"alignment.scale is {self.scale!r}; choose one of relative, reference, unit")
        self._e: Tensor | None = None  # (K, d), known with the first step

    def statistics(self, seen: SeenTokens) -> Tensor:
        """g (R, d)."""

        def per_token(hidden: Tensor, targets: Tensor) -> Tensor:
            p = seen.head(hidden).float().softmax(-1)
            towards = p - torch.nn.functional.one_hot(targets, p.shape[-1])
            return hidden.float() * (towards.to(seen.head_weight.dtype) @ seen.head_weight).float()

        chunks = zip(seen.hidden.split(_CHUNK), seen.targets.split(_CHUNK), strict=True)
        g_t = torch.cat([checkpoint(per_token, hidden, targets, use_reentrant=False) for hidden, targets in chunks])
        counts = torch.bincount(seen.rows, minlength=len(seen.weights)).clamp(min=1)
        return seen.summed(g_t) * (seen.weights / counts)[:, None]

    def penalty(self, s: Tensor, domains: Tensor, tokens: Tensor) -> Tensor:
        """The spread of the running variances between domains; moves them."""
        assert self._e is not None
        vt = []
        for k in domains.unique():
            g = s[domains == k]
            if len(g) < 2:
                continue
            e = self.ema * self._e[k] + (1 - self.ema) * (g - g.mean(0)).square().mean(0)
            self._e[k] = e.detach()
            vt.append(e / (1 - self.ema) if self.scale == "reference" else e)
        if not vt:
            return s.new_zeros(())
        variances = torch.stack(vt)
        spread = (variances - variances.mean(0)).square().mean()
        if self.scale != "relative":
            return spread
        S = variances.detach().mean(0).square().mean()
        return spread / S if S > 0 else s.new_zeros(())  # no sequence differs from another

    def pull(self, s: Tensor, domains: Tensor, tokens: Tensor, n_domains: int) -> Tensor:
        """By autograd through the spread of the variances."""
        if self._e is None:
            self._e = s.new_zeros(n_domains, s.shape[1])
        return super().pull(s, domains, tokens, n_domains)

    def state_dict(self) -> dict[str, Tensor]:
        """The step of the schedule and, once it began, the running variances."""
        return super().state_dict() | ({} if self._e is None else {"e": self._e})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        super().load_state_dict(state)
        self._e = state["e"].clone() if "e" in state else None
