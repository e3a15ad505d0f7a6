"""Tokens per second of a training step: ours, plain peft + transformers.Trainer, TRL's SFTTrainer; IGA beside our SFT.

One process, one student, the same rows in the same micro-batches (8 isomer rows, about 1,000 tokens), bf16 on the
frozen weights wherever the contender can; the contenders take turns, each turn one optimizer step after one that warms
up, and the median over the turns counts. Run ``python -m benchmarks.training [--quick]``; needs the extra ``trl``.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.collate import collate
from isodistill.data.encode import Encoded, encode_rows
from isodistill.data.rows import Row
from isodistill.isomers.generate import generate_sets
from isodistill.models.load import Student, load_student

DOMAINS = ("mathematics", "medicine", "law", "science")
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
SETS = 2  # times four domains: eight rows in a micro-batch


class StepTimer(TrainerCallback):
    """Seconds of every optimizer step, data and logging aside."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def run(quick: bool) -> dict[str, float]:
    """Print the table; return ratios of tokens per second (sft_*) and of seconds per step (iga_*)."""
    student = load_student("smollm2-135m")
    rows = generate_sets(n_sets=4 * SETS, seed=3, domains=DOMAINS, families=["rates", "inclusion", "ordering"])
    encoded, _ = encode_rows(rows, student.tokenizer, 512)
    contenders = _contenders(student, rows, encoded)
    timers = {name: StepTimer() for name in contenders}
    trainers = {name: make() for name, make in contenders.items()}
    for name, trainer in trainers.items():
        trainer.add_callback(timers[name])
    for _ in range(3 if quick else 5):
        for name, trainer in trainers.items():
            trainer.train()
            # The first step of a turn fills caches that the previous contender emptied.
            del timers[name].seconds[-2]
    tokens = statistics.mean(len(e.input_ids) for e in encoded) * SETS * len(DOMAINS)
    medians = {name: statistics.median(timer.seconds) for name, timer in timers.items()}
    print(f"{'contender':34} {'s/step':>8} {'tokens/s':>9}   ({tokens:.0f} tokens a step)")
    for name, seconds in medians.items():
        print(f"{name:34} {seconds:8.2f} {tokens / seconds:9.0f}")
    ours = medians["isodistill erm_pooled"]
    ratios = {
        "sft_vs_peft": medians["peft + Trainer, bf16"] / ours,
        "iga_f_vs_sft_1024": medians["isodistill iga"] / ours,
    }
    if "TRL, defaults" in medians:
        ratios["sft_vs_trl_default"] = medians["TRL, defaults"] / ours
        ratios["sft_vs_trl_best"] = medians["TRL, no checkpointing"] / ours
    return ratios


def _contenders(student: Student, rows: list[Row], encoded: list[Encoded]) -> dict[str, Callable[[], Trainer]]:
    found: dict[str, Callable[[], Trainer]] = {
        "isodistill erm_pooled": lambda: _ours(student, rows, "erm_pooled"),
        "isodistill iga": lambda: _ours(student, rows, "iga"),
        "peft + Trainer, bf16": lambda: _plain(student, encoded),
    }
    try:
        import trl  # noqa: F401
    except ImportError:
        print("TRL is not installed, so it is left out: pip install isodistill[trl]")
        return found
    return found | {
        "TRL, defaults": lambda: _trl(student, rows),
        "TRL, no checkpointing": lambda: _trl(student, rows, gradient_checkpointing=False),
    }


def _settings() -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(), "max_steps": 2, "use_cpu": True, "bf16": True, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1000, "optim": "adamw_torch_fused",
    }  # fmt: skip


def _model(student: Student) -> PreTrainedModel:
    return copy.deepcopy(student.model)


def _ours(student: Student, rows: list[Row], method: str) -> Trainer:
    config = DistillConfig(method=method, sets_per_batch=SETS, **_settings())
    return DistillTrainer(_model(student), config, rows, student.tokenizer, peft_config=LoraConfig(**LORA))


def _plain(student: Student, encoded: list[Encoded]) -> Trainer:
    """What a user writes by hand: peft, padding to the longest row, the loss of the model."""

    def pad(batch: list[Encoded]) -> dict[str, torch.Tensor]:
        whole = collate(batch, DOMAINS, student.tokenizer.pad_token_id)
        return {name: whole[name] for name in ("input_ids", "attention_mask", "labels")}

    arguments = TrainingArguments(
        per_device_train_batch_size=SETS * len(DOMAINS), remove_unused_columns=False, **_settings()
    )
    model = get_peft_model(_model(student), LoraConfig(**LORA))
    return Trainer(model, arguments, train_dataset=encoded, data_collator=pad)


def _trl(student: Student, rows: list[Row], **overrides: Any) -> Trainer:
    import datasets
    from trl import SFTConfig, SFTTrainer

    data = datasets.Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row.prompt}],
                "completion": [{"role": "assistant", "content": row.completion}],
            }
            for row in rows
        ]
    )
    arguments = SFTConfig(per_device_train_batch_size=SETS * len(DOMAINS), max_length=512, **_settings(), **overrides)
    return SFTTrainer(
        _model(student),
        arguments,
        train_dataset=data,
        processing_class=student.tokenizer,
        peft_config=LoraConfig(**LORA),
    )


if __name__ == "__main__":
    print(run("--quick" in sys.argv[1:]))
