"""Rows of unequal lengths in three domains, factories of trainers on tiny students, and their first gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.rows import Row

DOMAINS = ("law", "mathematics", "medicine")


def make_rows(n_sets: int = 8, domains: tuple[str, ...] = DOMAINS) -> list[Row]:
    """Isomer sets whose completions differ in length by set and by domain."""
    rows = []
    for s in range(n_sets):
        for k, domain in enumerate(domains):
            steps = " ".join(f"{s + 2} x {i + 3} = {(s + 2) * (i + 3)}." for i in range(1 + (s + 2 * k) % 4))
            rows.append(
                Row(
                    id=f"set-{s}/{domain}",
                    prompt=f"In {domain}, {s + 2} clerks file {k + 3} briefs each. How many?",
                    completion=f"{steps} The answer is {(s + 2) * (k + 3)}.",
                    answer=str((s + 2) * (k + 3)),
                    answer_type="number",
                    set_id=f"set-{s}",
                    domain=domain,
                )
            )
    return rows


@pytest.fixture
def make_trainer(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., DistillTrainer]:
    """Trainers from one start: the same base weights and, by the seed, the same adapter."""
    weights = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    def make(rows: list[Row] | None = None, *, start_away_from_zero: bool = True, **overrides: Any) -> DistillTrainer:
        model = type(tiny_model)(tiny_model.config)
        model.load_state_dict(weights)
        names = ("teacher_model", "teacher_processing_class", "scorer", "target_dataset")
        beside = {name: overrides.pop(name, None) for name in names}
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"), "max_steps": 4, "sets_per_batch": 2, "learning_rate": 1e-2,
            "bf16": False, "use_cpu": True, "logging_steps": 1, "save_steps": 100, "disable_tqdm": True, "seed": 3,
        }  # fmt: skip
        trainer = DistillTrainer(
            model,
            args=DistillConfig(**settings | overrides),
            train_dataset=make_rows() if rows is None else rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
            **beside,
        )
        if start_away_from_zero:
            generator = torch.Generator().manual_seed(1)
            for name, p in trainer.model.named_parameters():
                if "lora_B" in name:
                    p.data = 0.05 * torch.randn(p.shape, generator=generator)
        return trainer

    return make


def other_weights(student: LlamaForCausalLM, width: int = 32, **overrides: Any) -> LlamaForCausalLM:
    """A teacher for the student's tokenizer: other weights, and another width or other settings where asked."""
    settings = student.config.to_dict() | {"hidden_size": width, "head_dim": width // 4} | overrides
    torch.manual_seed(9)
    return LlamaForCausalLM(LlamaConfig(**settings)).to(torch.float32)


@pytest.fixture
def taught(
    make_trainer: Callable[..., DistillTrainer], tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., DistillTrainer]:
    """Trainers of one step whose teacher has other weights than the student, unless one is given."""

    def make(teacher: Any = None, **settings: Any) -> DistillTrainer:
        given = {"teacher_model": other_weights(tiny_model) if teacher is None else teacher}
        given["teacher_processing_class"] = tokenizer
        return make_trainer(**{"max_steps": 1, "max_grad_norm": 1e9} | given | settings)

    return make


def gradient(trainer: DistillTrainer) -> dict[str, torch.Tensor]:
    """Train; the gradient that the optimizer got at its last step."""
    seen: dict[str, torch.Tensor] = {}

    def grab(optimizer: Any, args: Any, kwargs: Any) -> None:
        seen.update({n: p.grad.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})

    trainer.create_optimizer().register_step_pre_hook(grab)
    trainer.train()
    return seen


def alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal up to rounding."""
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


@pytest.fixture
def adapter() -> Callable[[DistillTrainer], dict[str, torch.Tensor]]:
    """Copies of the trainable tensors of a trainer."""
    return lambda trainer: {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.fixture
def rows() -> list[Row]:
    """The rows that trainers get when a test gives none."""
    return make_rows()
