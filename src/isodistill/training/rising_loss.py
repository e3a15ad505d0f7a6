"""The warning of an adversary that is too strong: the task's loss goes up again."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

__all__ = ["RisingLoss"]

_KEPT = 0.7
_RISE = 1.2


class RisingLoss(TrainerCallback):
    """Say once that the smoothed task loss lies 20 % above its lowest value so far.

    The lowest value stands for that without the adversary, which one run alone does not know: with the schedule of DANN
    the adversary comes in late, when most has been learned.

    Args:
        lam: strength of the adversary, for the message.
    """

    def __init__(self, lam: float) -> None:
        self.lam, self.told = lam, False
        self.smoothed: float | None = None
        self.lowest = float("inf")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take in one value of the loss."""
        if logs is None or "loss" not in logs:
            return
        loss = float(logs["loss"])
        self.smoothed = loss if self.smoothed is None else _KEPT * self.smoothed + (1 - _KEPT) * loss
        self.lowest = min(self.lowest, self.smoothed)
        if self.smoothed > _RISE * self.lowest and not self.told and state.is_world_process_zero:
            self.told = True
            above = self.smoothed / self.lowest - 1
            print(
                f"step {state.global_step}: the task loss, smoothed, is {above:.0%} above its "
                f"lowest value so far; prada's lam {self.lam:g} may be too large: compare with lam: 0, or try a tenth",
                flush=True,
            )
