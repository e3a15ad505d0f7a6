"""Trains a tiny student in the process group that the launcher made, and saves what process 0 ends with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.load import load_rows


def main(settings: Path) -> None:
    """Read the settings file that the test wrote, train, save ``weights.safetensors`` beside it."""
    given = json.loads(settings.read_text())
    resume, disturbed = given.pop("resume", False), given.pop("disturb_rank", None)
    teacher_width, target = given.pop("teacher_width", None), given.pop("target", None)
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(settings.parent / "tokenizer")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    student, teacher = LlamaForCausalLM(config), None
    if teacher_width is not None:
        wide = config.to_dict() | {"hidden_size": teacher_width, "head_dim": teacher_width // 4}
        teacher = LlamaForCausalLM(LlamaConfig(**wide))
    trainer = DistillTrainer(
        student,
        args=DistillConfig(use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1, **given),
        train_dataset=load_rows(settings.parent / "rows.jsonl").rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        teacher_model=teacher,
        target_dataset=target,
    )
    generator = torch.Generator().manual_seed(1)
    for name, p in trainer.model.named_parameters():
        if "lora_B" in name:
            p.data = 0.05 * torch.randn(p.shape, generator=generator)
    if trainer.args.process_index == disturbed:
        update = trainer.alignment.update

        def disturb(gradients: Any, present: torch.Tensor) -> dict[str, float]:
            if trainer.state.global_step == 1:
                gradients.flat[0].mul_(2)
            return update(gradients, present)

        trainer.alignment.update = disturb
    trainer.train(resume_from_checkpoint=resume)
    ranked = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    save_file(ranked, settings.with_name(f"weights-{settings.stem}-{trainer.args.process_index}.safetensors"))
    if torch.distributed.is_initialized():  # or its threads may abort the process when it ends
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
