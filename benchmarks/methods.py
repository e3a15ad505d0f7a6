"""What a training step of every alignment and term costs over ERM at equal tokens, on the real LoRA student.

One process, one student, the same 8 rows (2 isomer sets in 4 domains); the contenders take turns, each turn one
optimizer step after one that warms up, and of the ratios to ERM's step of the same turn the median counts. The unit is
processor seconds, so that other work on the machine does not count; take ``OMP_NUM_THREADS=1``. Products are bf16 where
the processor has them, but for IGA-2020, which needs fp32 and is held against ERM in fp32. Features are distilled from
a teacher of the student's own size, which reads the same rows; PRADA reads as many target questions beside them.

    python -m benchmarks.methods [--quick]      quick is one turn
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import TrainerCallback

from benchmarks.training import BF16, LORA, SETS, _model, _settings, isomer_rows
from isodistill import DistillConfig, DistillTrainer
from isodistill.data.encode import encode_rows
from isodistill.models.load import Student, load_student

METHODS = (
    *("erm", "erm_pooled", "iga", "random_mask", "and_mask", "sand_mask", "pcgrad", "cagrad", "upgrad", "vrex"),
    *("group_dro", "irm", "coral", "dann", "fishr", "fish", "mldg", "isomer_consistency", "iga_consistency"),
    *("prada", "flexkd", "projector", "cka"),
)
TAUGHT = ("flexkd", "projector", "cka")
FP32 = ("erm", "iga2020")
TURNS = 3


class StepEnds(TrainerCallback):
    """Processor time at the end of every step: between two lies all of a step, the first pass of a penalty, too."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.process_time())


def run(quick: bool) -> dict[str, float]:
    """Print the table; return the ratios ``cost_METHOD_vs_erm``."""
    student, rows = load_student("smollm2-135m"), isomer_rows(SETS)
    contenders = dict.fromkeys([*((method, BF16) for method in METHODS), *((method, False) for method in FP32)])
    seconds: dict[tuple[str, bool], list[float]] = {contender: [] for contender in contenders}
    for _ in range(1 if quick else TURNS):
        for contender in contenders:
            seconds[contender].append(_step(student, rows, *contender))
            print(f"{contender[0]}: {seconds[contender][-1]:.2f} s", flush=True)
    encoded, _ = encode_rows(rows, student.tokenizer, 512)
    print(f"{'method':24} {'cpu s/step':>10} {'ratio':>7}   ({sum(len(e.input_ids) for e in encoded)} tokens a step)")
    ratios = {}
    for (method, bf16), taken in seconds.items():
        ratio = statistics.median(own / erm for own, erm in zip(taken, seconds["erm", bf16], strict=True))
        name = method if bf16 else f"{method}, fp32"
        print(f"{name:24} {statistics.median(taken):10.2f} {ratio:7.3f}   {[round(x, 2) for x in taken]}", flush=True)
        if method != "erm":
            ratios[f"cost_{method}_vs_erm"] = ratio
    return ratios


def _step(student: Student, rows: list[Any], method: str, bf16: bool) -> float:
    """Processor seconds of the second optimizer step of a trainer of its own."""
    ends = StepEnds()
    config = DistillConfig(method=method, sets_per_batch=SETS, **_settings() | {"bf16": bf16})
    beside: dict[str, Any] = {}
    if method in TAUGHT:
        beside = {"teacher_model": _model(student), "teacher_processing_class": student.tokenizer}
    if method == "prada":
        beside = {"target_dataset": isomer_rows(len(rows), ("cooking",))}
    trainer = DistillTrainer(_model(student), config, rows, student.tokenizer, peft_config=LoraConfig(**LORA), **beside)
    trainer.add_callback(ends)
    trainer.train()
    del trainer
    gc.collect()  # a trainer and its callbacks know each other
    return ends.times[-1] - ends.times[-2]


def main() -> None:
    """Measure, and put the ratios beside the others in ``benchmarks/results.json``."""
    path = Path(__file__).with_name("results.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ratios = known | {name: round(value, 3) for name, value in run("--quick" in sys.argv[1:]).items()}
    path.write_text(json.dumps(dict(sorted(ratios.items())), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
