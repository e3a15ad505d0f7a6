"""Ctrl-C during training: finish the step, write a checkpoint, stop. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

__all__ = ["StopOnSignal"]


class StopOnSignal(TrainerCallback):
    """A context manager around training and, inside it, the callback that asks the trainer to save and stop."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> StopOnSignal:
        self.trainer.add_callback(self)
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.trainer.remove_callback(self)
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt("stopped at once; the last checkpoint is the newest one in the run's folder")
        self.asked = True
        print("\nCtrl-C: finishing this step and saving a checkpoint; press again to stop at once.", flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Save and stop once asked; whatever stops the training, its last step is logged, so that its cost is whole."""
        if args.world_size > 1:  # all ranks stop at one step, whichever of them was asked first
            flag = torch.tensor(int(self.asked), device=args.device)
            dist.all_reduce(flag)
            self.asked = bool(flag)
        if self.asked:
            control.should_save = True
            control.should_training_stop = True
        if control.should_training_stop:
            control.should_log = True
        return control
