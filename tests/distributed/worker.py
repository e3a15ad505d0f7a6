"""Trains tiny students in the process group that the launcher made, one after the other as the tests ask."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.load import load_rows
from isodistill.models.load import add_lora


def main(jobs: Path, owner: int) -> None:
    """Take ``0``, ``1``, ... in the folder, each the path of a settings file, until one is empty.

    Every process tells of the end of a job in ``NUMBER-RANK``: nothing, or what went wrong. After an error it ends,
    because the others of its group may wait for it forever.
    """
    number, rank = 0, int(os.environ.get("RANK", "0"))
    while settings := _wait_for(jobs / str(number), owner):
        told = ""
        try:
            train(Path(settings))
        except Exception:  # noqa: BLE001 whatever it is, the test that asked says it
            told = traceback.format_exc()
        write(jobs / f"{number}-{rank}", told)
        if told:
            os._exit(1)  # a process group whose members have parted hangs where it is closed
        number += 1
    if torch.distributed.is_initialized():  # or its threads may abort the process when it ends
        torch.distributed.destroy_process_group()


def _wait_for(file: Path, owner: int) -> str:
    while not file.exists():
        if not Path(f"/proc/{owner}").exists() and Path("/proc").exists():
            os._exit(1)  # the tests were killed
        time.sleep(0.02)
    return file.read_text()


def write(file: Path, text: str) -> None:
    """Whole or not at all: the other side looks for the name."""
    part = file.with_name(file.name + ".part")
    part.write_text(text)
    part.rename(file)


def train(settings: Path) -> None:
    """Read the settings file that the test wrote, train, save ``weights-NAME-RANK.safetensors`` beside it."""
    given = json.loads(settings.read_text())
    resume, disturbed, width = (given.pop(name, None) for name in ("resume", "disturb_rank", "teacher"))
    earlier, ends, target, astray = (given.pop(name, None) for name in ("earlier", "ends", "target", "astray"))
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(settings.parent / "tokenizer")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    if earlier is not None:
        given["guard_state"] = f"{earlier}/guard"
        fresh = given["guard"]["name"] == "o_lora"
        model = PeftModel.from_pretrained(model, f"{earlier}/student", is_trainable=not fresh)
        if fresh:
            model = add_lora(model.merge_and_unload(), lora, seed=5)
    trainer = DistillTrainer(
        model,
        args=DistillConfig(**{"use_cpu": True, "bf16": False, "disable_tqdm": True, "logging_steps": 1} | given),
        train_dataset=load_rows(settings.parent / "rows.jsonl").rows,
        processing_class=tokenizer,
        peft_config=lora if earlier is None else None,
        teacher_model=None if width is None else other_weights(config, width),
        target_dataset=target,
    )
    generator = torch.Generator().manual_seed(1)
    for name, p in trainer.model.named_parameters():
        if "lora_B" in name and earlier is None:
            p.data = 0.05 * torch.randn(p.shape, generator=generator)
    if trainer.args.process_index == disturbed:
        update = trainer.alignment.update

        def disturb(gradients: Any, present: torch.Tensor) -> dict[str, float]:
            if trainer.state.global_step == 1:
                gradients.flat[0].mul_(2)
            return update(gradients, present)

        trainer.alignment.update = disturb
    if trainer.args.process_index == astray:
        # Alone it would freeze nothing, and give nothing back.
        trainer.guarding.guard.threshold, trainer.guarding.guard.lower = torch.pi, 0.0
    trainer.train(resume_from_checkpoint=bool(resume))
    if ends is not None:
        trainer.guarding.end_stage(Path(ends) / "guard")
        trainer.save_model(str(Path(ends) / "student"))
    ranked = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    rank = trainer.args.process_index
    save_file(ranked, settings.with_name(f"weights-{settings.stem}-{rank}.safetensors"))
    settings.with_name(f"held-{settings.stem}-{rank}.json").write_text(json.dumps(frozen_layers(trainer.model)))


def frozen_layers(model: Any) -> dict[str, int]:
    """Numbers in the frozen weights of the decoder layers: all, and those that this process holds."""
    frozen = [p for n, p in model.named_parameters() if ".layers." in n and not p.requires_grad]
    local = [p.to_local() if isinstance(p, DTensor) else p for p in frozen]
    return {"whole": sum(p.numel() for p in frozen), "held": sum(p.numel() for p in local)}


def other_weights(config: LlamaConfig, width: int) -> LlamaForCausalLM:
    """A teacher."""
    torch.manual_seed(9)
    return LlamaForCausalLM(LlamaConfig(**config.to_dict() | {"hidden_size": width, "head_dim": width // 4}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
