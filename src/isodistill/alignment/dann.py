"""DANN (arXiv 1505.07818), domain-adversarial training: no classifier shall tell the domain from the features.

    loss = Lbar + lam_p CE(D(R(phi)), domain) ;    R(phi) = phi with dR/dphi = -1
    lam_p = lam (2 / (1 + exp(-10 p)) - 1) ,       p = optimizer step / all steps

The student gets dLbar - lam_p dCE, the classifier D gets + lam_p dCE. Loss, reversal and schedule are the paper's.
Ours: phi (R, d) is the mean hidden state over the *question*, as in CORAL; CE is the mean of the domains' means; D is
d -> 256 -> 256 -> K with ReLU, as in DomainBed, in fp32, with an AdamW of its own (DomainBed's alternating optimizers
are not offered). D is no part of the student and is thrown away after training; checkpoints hold it. Its accuracy says
little: the adversary may have lost its game where a fresh probe still finds the domain. Cost: a second forward, and D.
Neutral setting: lam = 0 is ERM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill.alignment.coral import question_features
from isodistill.alignment.penalised import Penalised, SeenTokens
from isodistill.models.lora import DomainGradients, LoraLayer
from isodistill.numerics.reversal import reverse_gradient

__all__ = ["DANN"]


@dataclass
class DANN(Penalised):
    """DANN, arXiv 1505.07818; see the module for the equations.

    Args:
        lam: strength at the end of training; 0 is ERM. Default 1, search 0.01 to 100 (DomainBed's).
        width: of the hidden layers of the classifier. Default 256.
        learning_rate: of the classifier. Default 1e-3.

    Raises:
        ValueError: an option is out of range.
    """

    lam: float = 1.0
    width: int = 256
    learning_rate: float = 1e-3

    looks_at: ClassVar[Literal["completion", "question"]] = "question"

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise ValueError(f"alignment.lam is {self.lam}; it must be 0 (ERM) or more")
        if self.width < 1:
            raise ValueError(f"alignment.width is {self.width}; it must be at least 1")
        if self.learning_rate <= 0:
            raise ValueError(f"alignment.learning_rate is {self.learning_rate}; it must be above 0")
        self._step = 0
        self._metrics: dict[str, float] = {}
        self._classifier: nn.Sequential | None = None

    def setup(self, *, layers: list[LoraLayer], total_steps: int, adaptive: bool, seed: int) -> None:
        """Length of the schedule, and where the classifier begins."""
        self._total_steps, self._seed = total_steps, seed

    def statistics(self, seen: SeenTokens) -> Tensor:
        """The features."""
        return question_features(seen)

    def pull(self, s: Tensor, domains: Tensor, tokens: Tensor, n_domains: int) -> Tensor:
        """-lam_p dCE/dphi, and one step of the classifier."""
        if self._classifier is None:
            self._make(s.shape[1], n_domains)
        assert self._classifier is not None
        lam = self.lam * (2 / (1 + math.exp(-10 * self._step / self._total_steps)) - 1)
        self._step += 1
        with torch.enable_grad():
            phi = s.float().requires_grad_()
            logits = self._classifier(reverse_gradient(phi))
            losses = F.cross_entropy(logits, domains, reduction="none")
            CE = torch.stack([losses[domains == k].mean() for k in domains.unique()]).mean()
            self._optimizer.zero_grad()
            (lam * CE).backward()
            self._optimizer.step()
        right = (logits.argmax(1) == domains).float().mean()
        self._metrics = {"lam": lam, "domain_loss": float(CE.detach()), "domain_accuracy": float(right)}
        assert phi.grad is not None
        return phi.grad.to(s)

    def _make(self, d: int, n_domains: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self._classifier = nn.Sequential(
                nn.Linear(d, self.width), nn.ReLU(), nn.Linear(self.width, self.width), nn.ReLU(),
                nn.Linear(self.width, n_domains),
            )  # fmt: skip
        self._optimizer = torch.optim.AdamW(self._classifier.parameters(), lr=self.learning_rate)

    def update(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """The gradient is in the buffers already."""
        return super().update(gradients, present) | self._metrics

    def state_dict(self) -> dict[str, Tensor]:
        """The step of the schedule; once it began, the classifier and the moments of its optimizer."""
        state = {"step": torch.tensor(self._step)}
        if self._classifier is not None:
            state |= {f"classifier/{name}": p for name, p in self._classifier.state_dict().items()}
            for i, entries in self._optimizer.state_dict()["state"].items():
                state |= {f"optimizer/{i}/{key}": value for key, value in entries.items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self._step = int(state["step"])
        weights = {name.removeprefix("classifier/"): p for name, p in state.items() if name.startswith("classifier/")}
        if not weights:
            return
        self._make(weights["0.weight"].shape[1], len(weights["4.bias"]))
        assert self._classifier is not None
        self._classifier.load_state_dict(weights)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer/"):
                _, i, key = name.split("/")
                entries.setdefault(int(i), {})[key] = value
        self._optimizer.load_state_dict(
            {"state": entries, "param_groups": self._optimizer.state_dict()["param_groups"]}
        )
