"""Stages of a tiny student: each one trained, ended and saved as the pipeline does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.rows import Row
from isodistill.models.load import add_lora
from isodistill.training.slots import fill_guard

MakeStage = Callable[..., DistillTrainer]
DOMAINS = ("law", "medicine")


def make_rows(task: int, n_sets: int = 6) -> list[Row]:
    """Isomer sets of a task, with completions of unequal lengths."""
    return [
        Row(
            id=f"{task}/{s}/{domain}", set_id=f"{task}-{s}", domain=domain, answer=str(s + k), answer_type="number",
            prompt=f"Task {task}, {domain}: add {s} and {k}.", completion=f"{s} + {k} = {s + k}. " * (1 + (s + k) % 3),
        )
        for s in range(n_sets)
        for k, domain in enumerate(DOMAINS)
    ]  # fmt: skip


def adapter(trainer: DistillTrainer) -> dict[str, torch.Tensor]:
    """Copies of the trainable tensors."""
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def finish(trainer: DistillTrainer, **resume: Any) -> Path:
    """Train a stage, end it and save what the next one needs; returns its folder."""
    folder = Path(trainer.args.output_dir)
    trainer.train(**resume)
    trainer.guarding.end_stage(folder / "guard")
    trainer.save_model(str(folder / "student"))
    return folder


@pytest.fixture
def make_stage(tmp_path: Path, tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> MakeStage:
    """The trainer of a stage: of the first one, or of one after ``earlier``."""
    weights = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    def make(
        name: str, guard: dict[str, Any] | None, earlier: Path | None = None, task: int = 0, **overrides: Any
    ) -> DistillTrainer:
        model: Any = LlamaForCausalLM(tiny_model.config)
        model.load_state_dict(weights)
        if earlier is None:
            lora = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
            model = add_lora(model, lora, seed=3)
            generator = torch.Generator().manual_seed(1)
            for key, p in model.named_parameters():
                if "lora_B" in key:
                    p.data = 0.05 * torch.randn(p.shape, generator=generator)
        elif guard is not None and fill_guard(guard)[0].fresh_adapter:
            merged = PeftModel.from_pretrained(model, earlier / "student").merge_and_unload()
            model = add_lora(merged, LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"), seed=4)
        else:
            model = PeftModel.from_pretrained(model, earlier / "student", is_trainable=True)
        beside = {name: overrides.pop(name) for name in ("teacher_model", "target_dataset") if name in overrides}
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / name), "max_steps": 3, "sets_per_batch": 2, "learning_rate": 1e-2,
            "bf16": False, "use_cpu": True, "logging_steps": 1, "save_steps": 100, "disable_tqdm": True, "seed": 3,
            "guard": guard, "guard_state": None if earlier is None else str(earlier / "guard"),
        }  # fmt: skip
        return DistillTrainer(
            model,
            args=DistillConfig(**settings | overrides),
            train_dataset=make_rows(task),
            processing_class=tokenizer,
            **beside,
        )

    return make
