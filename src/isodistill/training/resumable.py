"""A transformers.Trainer whose checkpoints hold no pickle, appear whole or not at all, and resume bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer

from isodistill.alignment import Alignment
from isodistill.guards import Guard
from isodistill.training.checkpoint import load_rng, load_state, publish, save_rng, save_state
from isodistill.training.guarding import Guarding
from isodistill.training.step_term import StepTerm

__all__ = ["ResumableTrainer"]


class ResumableTrainer(Trainer):
    """The checkpoint side of ``DistillTrainer``: adapter, optimizer, scheduler, alignment, random states, counters."""

    alignment: Alignment
    guarding: Guarding
    term: StepTerm
    _skips: int  # steps in a row that were not finite

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints of the run lie."""
        return Path(self.args.output_dir) / "checkpoints"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self.checkpoints
        final = folder / f"checkpoint-{self.state.global_step}"
        unfinished = folder / f"unfinished-{self.state.global_step}"
        unfinished.mkdir(parents=True, exist_ok=True)
        save_rng(unfinished, self.args.process_index)
        if self.args.should_save:
            self.model.save_pretrained(unfinished)
            method = {"skips": torch.tensor(self._skips), **self.alignment.state_dict()}
            for start, part in self._beside.items():
                method |= {f"{start}{name}": value for name, value in part.state_dict().items()}
            save_state(unfinished, self._inner_optimizer(), self.lr_scheduler, method)
            self.state.save_to_json(str(unfinished / "trainer_state.json"))
        if self.args.world_size > 1:
            dist.barrier()
        if self.args.should_save:
            publish(unfinished, final, self.args.save_total_limit)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        weights = load_file(Path(resume_from_checkpoint) / "adapter_model.safetensors")
        set_peft_model_state_dict(self.model, weights)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            method = load_state(Path(checkpoint), self._inner_optimizer(), self.lr_scheduler)
            for start, part in self._beside.items():
                mine = [name for name in method if name.startswith(start)]
                part.load_state_dict({name.removeprefix(start): method.pop(name) for name in mine})
            self._skips = int(method.pop("skips"))
            self.alignment.load_state_dict(method)

    @property
    def _beside(self) -> dict[str, Guard | StepTerm]:
        """What has state beside the alignment, by what its names begin with in a checkpoint."""
        return {"guard/": self.guarding.guard, "term/": self.term}

    def _inner_optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer inside accelerate's wrapper."""
        return cast(torch.optim.Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_rng(Path(checkpoint), self.args.process_index)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Adapter and tokenizer; no pickled arguments."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            self.model.save_pretrained(folder)
            self.term.save(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
