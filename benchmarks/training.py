"""Tokens per second of a training step: ours, plain peft + transformers.Trainer, TRL's SFTTrainer; IGA beside our SFT.

One process, one student, the same rows in the same micro-batches (8 isomer rows, about 1,000 tokens), bf16 on the
frozen weights wherever contender and processor can; the contenders take turns, each turn one optimizer step after one
that warms up, and the median over the turns counts. With ``OMP_NUM_THREADS=1`` the clock is the processor's, so that
other programs on the same cores do not count; with more threads it is the one on the wall.

    python -m benchmarks.training [--quick]     all; needs the extra ``trl``
    python -m benchmarks.training --peak NAME   peak memory of one contender; the first asks each in turn
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.collate import collate
from isodistill.data.encode import Encoded, encode_rows
from isodistill.data.rows import Row
from isodistill.isomers.generate import generate_sets
from isodistill.models.device import choose_placement
from isodistill.models.load import Student, load_student

DOMAINS = ("mathematics", "medicine", "law", "science")
BF16 = choose_placement("cpu").compute_dtype is torch.bfloat16
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
SETS = 2  # times four domains: eight rows in a micro-batch


def clock() -> float:
    """Seconds: of the processor with one thread, where they are exact, else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def peak_resident() -> int:
    """Most bytes this program has held; ``ru_maxrss`` would count those of the parent that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes where there is no /proc: macOS


class StepTimer(TrainerCallback):
    """Seconds of every optimizer step by ``clock``, data and logging aside."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(clock() - self.start)


def run(quick: bool) -> dict[str, float]:
    """Print the tables; return ratios of tokens per second (sft_*) and of seconds per step (iga_*)."""
    student, repeats = load_student("smollm2-135m"), 3 if quick else 5
    contenders = {name: make(student) for name, make in CONTENDERS.items()}
    found = _in_turns(contenders, repeats)
    for name in contenders:
        print(f"peak memory {name:34} {_peak(name):6.0f} MB")
    sft = found[SFT]
    ratios = {"sft_vs_peft": found[PEFT] / sft, "iga_f_vs_sft_1024": found[IGA] / sft}
    if TRL_BEST in found:
        ratios["sft_vs_trl_best"] = found[TRL_BEST] / sft
    if TRL_DEFAULTS in found:
        ratios["sft_vs_trl_default"] = found[TRL_DEFAULTS] / sft
    del contenders
    return ratios | _flat_in_k(student, repeats)


def isomer_rows(n_sets: int, domains: tuple[str, ...] = DOMAINS) -> list[Row]:
    """Rows of one micro-batch of isomer sets."""
    return generate_sets(n_sets=n_sets, seed=7, domains=domains, families=["rates", "inclusion", "ordering"])


def _flat_in_k(student: Student, repeats: int) -> dict[str, float]:
    """Seconds of an IGA step with 16 domains over one with 2: the same 32 rows, their domains merged or renamed."""
    rows, steps = isomer_rows(8), {}
    for n_domains in (2, 4, 8, 16):
        names = [f"domain-{k:02}" for k in range(n_domains)]
        renamed = [
            dataclasses.replace(row, domain=names[i % n_domains], set_id=f"set-{i // n_domains}")
            for i, row in enumerate(rows)
        ]
        steps[f"iga, K = {n_domains}"] = ours(student, renamed, "iga", len(rows) // n_domains)
    found = _in_turns(steps, repeats)
    return {"iga_f_k16_vs_k2": found["iga, K = 16"] / found["iga, K = 2"]}


def _in_turns(trainers: dict[str, Trainer], repeats: int) -> dict[str, float]:
    """Median seconds of a step of each; prints them."""
    timers = {name: StepTimer() for name in trainers}
    for name, trainer in trainers.items():
        trainer.add_callback(timers[name])
    for _ in range(repeats):
        for name, trainer in trainers.items():
            trainer.train()
            # The first step of a turn fills caches that the previous contender emptied.
            del timers[name].seconds[-2]
    medians = {name: statistics.median(timer.seconds) for name, timer in timers.items()}
    for name, seconds in medians.items():
        print(f"{name:34} {seconds:8.2f} s/step", flush=True)
    return medians


def _peak(name: str) -> float:
    """Peak resident memory in MB of a process that trains two steps with this contender alone."""
    command = [sys.executable, "-m", "benchmarks.training", "--peak", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _settings() -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(), "max_steps": 2, "use_cpu": True, "bf16": BF16, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1000, "optim": "adamw_torch_fused",
    }  # fmt: skip


def _model(student: Student) -> PreTrainedModel:
    return copy.deepcopy(student.model)


def ours(student: Student, rows: list[Row], method: str, n_sets: int = SETS) -> Trainer:
    """Our trainer, two steps a call of ``train``, on micro-batches of ``n_sets`` isomer sets."""
    config = DistillConfig(method=method, sets_per_batch=n_sets, **_settings())
    return DistillTrainer(_model(student), config, rows, student.tokenizer, peft_config=LoraConfig(**LORA))


def _plain(student: Student) -> Trainer:
    """What a user writes by hand: peft, padding to the longest row, the loss of the model."""
    encoded, _ = encode_rows(isomer_rows(SETS), student.tokenizer, 512)

    def pad(batch: list[Encoded]) -> dict[str, torch.Tensor]:
        whole = collate(batch, DOMAINS, student.tokenizer.pad_token_id)
        return {name: whole[name] for name in ("input_ids", "attention_mask", "labels")}

    arguments = TrainingArguments(
        per_device_train_batch_size=SETS * len(DOMAINS), remove_unused_columns=False, **_settings()
    )
    model = get_peft_model(_model(student), LoraConfig(**LORA))
    return Trainer(model, arguments, train_dataset=encoded, data_collator=pad)


def _trl(student: Student, **overrides: Any) -> Trainer:
    import datasets
    from trl import SFTConfig, SFTTrainer

    data = datasets.Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row.prompt}],
                "completion": [{"role": "assistant", "content": row.completion}],
            }
            for row in isomer_rows(SETS)
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


SFT, IGA, PEFT = "isodistill erm_pooled", "isodistill iga", "peft + Trainer"
TRL_DEFAULTS, TRL_BEST = "TRL, defaults", "TRL, no checkpointing"
CONTENDERS: dict[str, Callable[[Student], Trainer]] = {
    SFT: lambda student: ours(student, isomer_rows(SETS), "erm_pooled"),
    IGA: lambda student: ours(student, isomer_rows(SETS), "iga"),
    PEFT: _plain,
}
if importlib.util.find_spec("trl"):
    CONTENDERS |= {TRL_BEST: functools.partial(_trl, gradient_checkpointing=False), TRL_DEFAULTS: _trl}
else:
    print("TRL is not installed, so it is left out: pip install isodistill[trl]")


def main() -> None:
    """Everything, or with ``--peak NAME`` one contender's memory."""
    if "--peak" in sys.argv:
        CONTENDERS[sys.argv[-1]](load_student("smollm2-135m")).train()
        print(peak_resident() / 2**20)
    else:
        print(run("--quick" in sys.argv[1:]))


if __name__ == "__main__":
    main()
