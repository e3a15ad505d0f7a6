"""Gradients that are not finite: the step is skipped and tensor and domain are named; ten in a row stop the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.rows import Row
from isodistill.errors import UserError

pytestmark = pytest.mark.faults

Poisoned = Callable[..., DistillTrainer]
POISON = "~"


@pytest.fixture
def poisoned(tmp_path: Path, tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Poisoned:
    """A trainer whose student has one input embedding of NaN: that of a sign in some medicine prompts."""
    (token,) = tokenizer(POISON, add_special_tokens=False).input_ids
    tiny_model.model.embed_tokens.weight.data[token] = float("nan")

    def make(poisoned_sets: int, **settings: Any) -> DistillTrainer:
        rows = [
            Row(
                id=f"{s}/{domain}", set_id=f"{s}", domain=domain, completion=f"{s} + 2 = {s + 2}.",
                prompt=f"Add {s} and 2.{POISON if domain == 'medicine' and s < poisoned_sets else ''}",
            )
            for s in range(4)
            for domain in ("law", "medicine")
        ]  # fmt: skip
        return DistillTrainer(
            tiny_model,
            args=DistillConfig(
                output_dir=str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1, save_steps=1000,
                sets_per_batch=1, learning_rate=1e-2, **settings,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip

    return make


@pytest.mark.parametrize("gradients", ["segment", "domain_major"])
def test_ten_bad_steps_in_a_row_stop_the_run_and_name_tensor_and_domain(poisoned: Poisoned, gradients: str) -> None:
    trainer = poisoned(4, method="iga", gradients=gradients, max_steps=30)
    with pytest.raises(UserError, match=r"10 steps in a row .*layers\.0\.\S*lora_\S* for domain medicine"):
        trainer.train()
    assert trainer.state.global_step == 9
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters() if p.requires_grad)


def test_a_bad_step_is_skipped_and_said(poisoned: Poisoned, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = poisoned(1, method="iga", max_steps=8)  # two epochs: two of the eight steps hold the bad set
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    said = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert len(said) == 2
    assert all("for domain medicine is not finite" in line for line in said)
    after = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(torch.isfinite(p).all() for p in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_a_resumed_run_goes_on_counting_bad_steps(poisoned: Poisoned, tmp_path: Path) -> None:
    poisoned(4, method="erm", max_steps=6).train()
    trainer = poisoned(4, method="erm", max_steps=30)
    with pytest.raises(UserError, match="10 steps in a row"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 9


def test_a_run_of_bad_steps_only_leaves_the_student_as_it_was(poisoned: Poisoned) -> None:
    trainer = poisoned(4, method="erm", max_steps=3, weight_decay=0.1)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if p.requires_grad)
