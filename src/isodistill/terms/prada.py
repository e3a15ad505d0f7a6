"""PRADA (arXiv 2501.09804): a soft prompt, LoRA, and an adversary over labelled source and unlabelled target questions.

    E = L_y - lam [ mean_S CE(D(q)) + mean_T CE(D(q)) ] ;   th_f, th_y minimise E, th_d maximises it
    loss = L_y + lam_p sum over domains k of mean over its rows of CE(D(R(q)), k) ,   R(q) = q with dR/dq = -1
    lam_p = lam (2 / (1 + exp(-10 p)) - 1) ,   p = optimizer step / all steps

q (R, d) is the mean last hidden state over the question, the prompt's virtual tokens and the answer left out; th_f the
prompt and LoRA, th_d the classifier D. The objective, prompt layers and reversal are the paper's. Ours, since it leaves
them open: the question as the place to look (a target has no rationale, and the answer would tell that there is one),
D as d -> 256 -> 256 -> K with ReLU and dropout, the schedule of DANN (arXiv 1505.07818), prompt and LoRA trained
together. More than two domains have one mean each. ``lambda_placement`` grl puts lam_p into R: th_f gets the same
gradient, th_d one that is not multiplied by lam_p. The means are those of the whole optimizer step.
Cost: a second forward, over as many target questions. Neutral setting: lam = 0 is P-Tuning, LoRA or both, by ``adapt``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill.numerics.reversal import reverse_gradient
from isodistill.terms.base import Term
from isodistill.terms.learner import Learner

__all__ = ["PRADA"]

_CHOICES = {
    "adapt": ("prompt+lora", "prompt", "lora", "full"),
    "lambda_placement": ("loss", "grl"),
    "schedule": ("dann", "constant"),
    "control": ("none", "frozen", "shuffled", "source"),
}


@dataclass
class PRADA(Term):
    """PRADA, arXiv 2501.09804; see the module for the equations.

    Args:
        lam: strength of the adversary; 0 needs no target. Default 1, search 0.01, 0.1, 1.
        adapt: what is trained: ``prompt+lora`` (default), ``prompt`` (the literal P-Tuning), ``lora`` (DANN without
            prompt), ``full``: prompt and all weights, the head's too.
        n_virt: virtual tokens of the prompt. Default 20.
        prompt_learning_rate: of the prompt encoder, under the schedule of the training. Default 3e-4.
        lambda_placement: ``loss``, or ``grl``; see the module.
        schedule: of lam_p: ``dann``, or ``constant``.
        width: of the hidden layers of the classifier. Default 256.
        dropout: in the classifier. Default 0.1.
        learning_rate: of the classifier. Default 1e-3.
        control: ``frozen``: the classifier stays as it was drawn; ``shuffled``: every question has a domain drawn by a
            hash of its tokens; ``source``: the source's questions stand in for the target's.

    Raises:
        ValueError: an option is out of range.
    """

    name: ClassVar[str] = "prada"

    lam: float = 1.0
    adapt: str = "prompt+lora"
    n_virt: int = 20
    prompt_learning_rate: float = 3e-4
    lambda_placement: str = "loss"
    schedule: str = "dann"
    width: int = 256
    dropout: float = 0.1
    learning_rate: float = 1e-3
    control: str = "none"

    def __post_init__(self) -> None:
        super().__init__()
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        self.require("prompt_learning_rate", "learning_rate", lam=0, n_virt=1, width=1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be 0 or more, and below 1")

    @property
    def is_neutral(self) -> bool:
        """Neither adversary nor prompt."""
        return self.lam == 0 and not self.has_prompt

    @property
    def has_prompt(self) -> bool:
        """A soft prompt stands before every text."""
        return self.adapt != "lora"

    def setup(self, d: int, n_domains: int, total_steps: int, seed: int) -> None:
        """The classifier, drawn from the seed, and the length of the schedule."""
        self._total_steps, self._n_domains, self._seed = total_steps, n_domains, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            D = nn.Sequential(
                nn.Linear(d, self.width), nn.ReLU(), nn.Dropout(self.dropout),
                nn.Linear(self.width, self.width), nn.ReLU(), nn.Dropout(self.dropout),
                nn.Linear(self.width, n_domains),
            )  # fmt: skip
        self.learner = Learner(D, self.learning_rate)

    def lam_at(self, step: int) -> float:
        """lam_p before optimizer step ``step`` (0 is the first)."""
        if self.schedule == "constant":
            return self.lam
        return self.lam * (2 / (1 + math.exp(-10 * step / self._total_steps)) - 1)

    def labels(self, domains: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """What the classifier is told (R,): the domains, or draws where the control is ``shuffled``."""
        if self.control != "shuffled":
            return domains
        drawn = [int(sha256(f"{self._seed} {list(text)}".encode()).hexdigest(), 16) for text in texts]
        return domains.new_tensor([number % self._n_domains for number in drawn])

    def loss(self, q: Tensor, labels: Tensor, counts: Tensor, step: int) -> Tensor:
        """The part of some rows in lam_p L_d.

        Args:
            q: (R, d) features with gradient.
            labels: (R,) domains.
            counts: (K,) rows of every domain in the whole optimizer step.
            step: the optimizer step.
        """
        assert self.learner is not None
        D, lam = self.learner.on(q.device), self.lam_at(step)
        with torch.autocast(q.device.type, enabled=False):
            logits = D(reverse_gradient(q.float(), lam if self.lambda_placement == "grl" else 1.0))
            CE = F.cross_entropy(logits, labels, reduction="none")
            L_d = (CE / counts.to(CE)[labels]).sum()
        for right, value in zip((logits.argmax(1) == labels).tolist(), CE.tolist(), strict=True):
            self.measure("domain_accuracy", float(right))
            self.measure("domain_loss", value)
        self.measure("lam", lam)
        return L_d if self.lambda_placement == "grl" else lam * L_d

    def step(self) -> None:
        """The classifier moves, unless it is frozen."""
        if self.control == "frozen" and self.learner is not None:
            self.learner.module.zero_grad()
        else:
            super().step()
