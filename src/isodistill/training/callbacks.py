"""The trainer's callbacks (metrics on disk, progress, epochs), and the search for the tensor that is not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from isodistill.errors import UserError
from isodistill.models.lora import DomainGradients

__all__ = ["MetricsFile", "QuietProgress", "SamplerEpoch", "finite_or_blame"]


class MetricsFile(TrainerCallback):
    """Append what the trainer logs to ``metrics.jsonl``; a resumed run drops the lines that it is about to repeat."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to the step that training goes on from."""
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A killed run may leave a partial last line, or the closing line of a training that will close again.
            whole = {line: self._entry(line, n) for n, line in enumerate(lines, start=1) if line.endswith("\n")}
            done = state.global_step
            kept = [text for text, entry in whole.items() if entry["step"] <= done and "train_runtime" not in entry]
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text("".join(kept) if state.global_step else "", encoding="utf-8")
        unfinished.replace(self.path)

    def _entry(self, line: str, number: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
            if "step" in entry:
                return cast("dict[str, Any]", entry)
        except ValueError:
            pass
        raise UserError(f"{self.path}, line {number} is damaged. Delete that line and start the same command again.")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step} | logs) + "\n")


class QuietProgress(ProgressCallback):
    """A progress bar with an estimate and the current loss; the numbers themselves go to ``metrics.jsonl``."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the loss behind the bar instead of printing every log line."""
        if self.training_bar is not None and logs is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class SamplerEpoch(TrainerCallback):
    """Tell the sampler its epoch: accelerate forgets to after a resume in the middle of one, with several processes."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The epoch that the state stands in; the same one changes nothing."""
        self.trainer.sampler.set_epoch(int(state.epoch or 0))


def finite_or_blame(gradients: DomainGradients, domains: list[str]) -> str | None:
    """None when every gradient is finite, else the first tensor and domain that are not.

    The sum of squares is finite exactly when all entries are (up to overflow at 1e19 and more, which is as bad).
    """
    buffers = [gradients.flat, *(dense.flatten(1) for dense in gradients.dense.values())]
    if all(bool(torch.isfinite(torch.linalg.vector_norm(buffer))) for buffer in buffers):
        return None
    for name, view in (gradients.views | gradients.dense).items():
        for k, domain in enumerate(domains):
            if not bool(torch.isfinite(view[k]).all()):
                return f"the gradient of {name} for domain {domain} is not finite"
    return "the norm of the gradients overflows"
