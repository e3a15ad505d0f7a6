"""Tiny trainers of one start on a CPU and on a GPU; a skip where there is no GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.rows import Row

from ..guards.conftest import make_stage  # noqa: F401
from ..training.conftest import make_rows

MakeTrainer = Callable[..., DistillTrainer]


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: torch.cuda.is_available() is false")


@pytest.fixture
def make_trainer(tmp_path: Path, tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> MakeTrainer:
    """Trainers in fp32 by ``device``, from the same base weights and, by the seed, the same adapter."""

    def make(device: str, rows: list[Row] | None = None, **overrides: Any) -> DistillTrainer:
        beside = {
            name: copy.deepcopy(overrides.pop(name, None)) for name in ("teacher_model", "scorer", "target_dataset")
        }
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / device), "max_steps": 2, "sets_per_batch": 2, "learning_rate": 0.1,
            "optim": "sgd", "bf16": False, "use_cpu": device == "cpu", "logging_steps": 1, "save_steps": 100,
            "disable_tqdm": True, "seed": 3,
        }  # fmt: skip
        trainer = DistillTrainer(
            copy.deepcopy(tiny_model),
            args=DistillConfig(**settings | overrides),
            train_dataset=make_rows() if rows is None else rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
            **beside,
        )
        generator = torch.Generator().manual_seed(1)
        for name, p in trainer.model.named_parameters():
            if "lora_B" in name:
                p.data.copy_(0.05 * torch.randn(p.shape, generator=generator))
        assert trainer.args.device.type == device
        return trainer

    return make


def weights(trainer: DistillTrainer) -> dict[str, Tensor]:
    """Copies on the CPU of all that is trained."""
    return {n: p.detach().cpu().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.fixture
def both(make_trainer: MakeTrainer) -> Callable[..., None]:
    """Train on either device with the same settings: the weights must agree, and must have moved."""

    def compare(rtol: float = 1e-3, atol: float = 2e-5, **settings: Any) -> None:
        start, ends = weights(make_trainer("cpu", **settings)), []
        for device in ("cpu", "cuda"):
            trainer = make_trainer(device, **settings)
            trainer.train()
            ends.append(weights(trainer))
        expected, found = ends
        assert any(not torch.equal(found[name], value) for name, value in start.items())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol)

    return compare
