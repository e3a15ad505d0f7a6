"""The arguments of a distillation: transformers' TrainingArguments and what isodistill adds, in one flat class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from isodistill.models.device import choose_placement

__all__ = ["DistillConfig"]


@dataclass
class DistillConfig(TrainingArguments):
    """Arguments of ``DistillTrainer``.

    Parameters that control the method:
        method: a preset that fills the slots: ``erm`` (mean of domain means), ``erm_pooled`` (plain SFT), ``iga``,
            or a rival by the name of its alignment (``vrex``, ``pcgrad``, ...).
        objective: ``{"name": "ce", ...}``; overrides the preset's objective.
        alignment: ``{"name": "iga", "tau": 3.0, ...}``; overrides the preset's alignment.
        term: ``{"name": "isomer_consistency", ...}``, added to the loss; overrides the preset's, which is mostly none.
        guard: ``{"name": "ewc", ...}``: what protects the skills of earlier stages; default none.
        guard_state: folder that the last stage wrote (``trainer.guarding.end_stage``); default: this is the first one.

    Parameters that control the batches:
        sets_per_batch: isomer sets in a micro-batch (single rows where the data have no domains); default 2. With
            ``gradient_accumulation_steps`` it gives the sets of an optimizer step. Replaces
            ``per_device_train_batch_size``, which follows from it.
        domains: the domains to train on, in order; default: all that the rows have.
        missing_domain: ``drop_set`` leaves out sets that lack a domain, ``subset`` trains on what is there.
        split_ranks_by: with several processes, ``sets``: each takes other sets, in all domains; or ``domains``: each
            takes its share of the domains, of the same sets. The step is the same for the same sets per step.
        max_length: longest prompt + completion in tokens; longer rows are refused and counted, never cut.
        max_refused: share of rows that may be refused before training stops with an error; default 0.01.
        gradients: ``segment`` (K gradients in one backward), ``domain_major`` (one backward per domain), or ``auto``.
        shard_base: with several processes, each keeps only its share of the frozen layers (FSDP2) and the whole
            adapter; the step is the same. Default: every process holds the whole model.

    Parameters whose defaults differ from TrainingArguments: learning_rate 2e-4, lr_scheduler_type cosine, warmup_steps
    0.03, optim adamw_torch_fused, logging_steps 5, save_steps 50, save_total_limit 2, remove_unused_columns False,
    report_to none, dataloader_pin_memory False on a CPU; bf16 and use_cpu are chosen from the device, with the reason
    in ``placement``.

    Raises:
        ValueError: an argument is out of range.
    """

    method: str = "erm"
    objective: dict[str, Any] | None = None
    alignment: dict[str, Any] | None = None
    term: dict[str, Any] | None = None
    guard: dict[str, Any] | None = None
    guard_state: str | None = None
    sets_per_batch: int = 2
    domains: list[str] | None = None
    missing_domain: str = "drop_set"
    split_ranks_by: str = "sets"
    max_length: int = 1024
    max_refused: float = 0.01
    gradients: str = "auto"
    shard_base: bool = False

    learning_rate: float = 2e-4
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    optim: str = "adamw_torch_fused"
    logging_steps: float = 5
    save_steps: float = 50
    save_total_limit: int | None = 2
    remove_unused_columns: bool = False
    report_to: str | list[str] | None = "none"
    bf16: bool | None = None
    use_cpu: bool | None = None
    disable_tqdm: bool | None = False
    placement: str = field(default="", init=False)

    def __post_init__(self) -> None:
        device = None if not self.use_cpu else "cpu"
        chosen = choose_placement(device, None if self.bf16 is None else ("bfloat16" if self.bf16 else "float32"))
        self.placement = chosen.reason
        self.use_cpu = chosen.device.type == "cpu"
        self.bf16 = chosen.compute_dtype is torch.bfloat16
        if self.use_cpu:
            self.dataloader_pin_memory = False
        for name, allowed in (
            ("missing_domain", ("drop_set", "subset")),
            ("split_ranks_by", ("sets", "domains")),
            ("gradients", ("auto", "segment", "domain_major")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if self.sets_per_batch < 1:
            raise ValueError(f"sets_per_batch is {self.sets_per_batch}; it must be at least 1")
        super().__post_init__()

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the frozen products; adapters, losses and gradients are fp32."""
        return torch.bfloat16 if self.bf16 else torch.float32
