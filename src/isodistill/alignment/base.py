"""What an alignment owes: K domain losses or gradients in, one update out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from isodistill.models.lora import DomainGradients, LoraLayer

__all__ = ["Alignment"]


class Alignment(ABC):
    """How the losses of K domains become one update of the trainable tensors.

    The trainer asks for ``domain_weights`` before the backwards of a step, hands the accumulated gradients to
    ``update``, which leaves the direction in ``.grad``, lets a guard add to it, calls ``before_clipping``, clips, and
    calls ``before_step`` and ``after_step`` around the optimizer. Alignments that only sum gradients
    (``needs_domain_gradients`` False) get them in one row of the buffers.
    """

    needs_domains: ClassVar[bool] = False
    """At least two domains must be trained."""

    needs_domain_gradients: ClassVar[bool] = False
    """Gradients of the domains are kept apart: row k of the buffers is dL_k."""

    needs_recompute: ClassVar[bool] = False
    """``gradients.recompute`` is called during a step, with the parameters moved."""

    needs_fp32: ClassVar[bool] = False
    """Gradients are subtracted from each other, so products in bf16 would leave noise."""

    steps_on_direction: ClassVar[bool] = True
    """The optimizer steps on what ``update`` leaves in ``.grad``, so what a guard adds to it counts."""

    @property
    def needs_weight_gradients(self) -> bool:
        """Gradients of the effective weights of every LoRA layer are kept as well."""
        return False

    @property
    def needs_halves(self) -> bool:
        """Gradients of two halves of every domain's rows are kept apart: rows 2k and 2k + 1 of the buffers."""
        return False

    @abstractmethod
    def domain_weights(self, counts: Tensor) -> Tensor:
        """Factor (K,) on the *summed* token losses of each domain; ``counts`` (K,) are the step's trained tokens."""

    def setup(self, *, layers: list[LoraLayer], total_steps: int, adaptive: bool, seed: int) -> None:  # noqa: B027
        """Learn what training will be like; called once, before state is loaded.

        Args:
            layers: the student's LoRA layers.
            total_steps: optimizer steps of the whole run.
            adaptive: the optimizer rescales coordinates (Adam-like).
            seed: for methods that draw at random.
        """

    def update(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """Leave the direction of the step in ``.grad``.

        Args:
            gradients: the step's accumulated gradients, already reduced over ranks.
            present: (K,) bool, domains that had a trained token in this step.

        Returns:
            Metrics to log.
        """
        for name, p in gradients.parameters.items():
            p.grad = gradients.views[name][0].to(p.dtype)
        return {}

    def before_clipping(self) -> None:  # noqa: B027
        """Called when ``.grad`` is complete."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027
        """Called after clipping, just before the optimizer moves the parameters."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Called just after the optimizer moved the parameters; returns metrics to log."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything beyond the weights that an exact resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, but the checkpoint holds {sorted(state)}")
