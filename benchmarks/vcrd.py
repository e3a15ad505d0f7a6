"""What VCRD costs over plain forward KL, and what a chunked KL step holds in memory over one of cross-entropy.

One process, SmolLM2-135M as student and (``self``) as teacher, the rows and micro-batches of ``benchmarks.training``;
the contenders take turns, each turn one optimizer step after one that warms up, with all that happens between them, and
the median of the ratios counts. The unit is processor seconds. Step mode is measured twice: where every row's steps are
known already, and where they are proposed and checked by rules first.

    python -m benchmarks.vcrd [--quick]
    python -m benchmarks.vcrd --peak NAME      peak memory of one contender; the first asks each in turn
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import Trainer, TrainerCallback

from benchmarks.training import LORA, SETS, _model, _settings, isomer_rows, peak_resident
from isodistill import DistillConfig, DistillTrainer
from isodistill.models.load import Student, load_student

CE, FKL, TOKEN, KNOWN, FRESH = "cross-entropy", "forward KL", "VCRD, token", "VCRD, steps known", "VCRD, steps proposed"
_STEPS = {"scorer": {"name": "rule"}, "n_prefix": 4, "max_tokens": 32}
OBJECTIVES: dict[str, dict[str, Any]] = {
    CE: {"name": "ce"},
    FKL: {"name": "fkl"},
    TOKEN: {"name": "vcrd"},
    KNOWN: {"name": "vcrd", "steps": _STEPS},
    FRESH: {"name": "vcrd", "steps": _STEPS | {"every": 1}},
}


class StepCost(TrainerCallback):
    """Processor seconds from the end of a step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.process_time())


def contender(student: Student, name: str) -> Trainer:
    """Our trainer with one of the objectives, two steps a call of ``train``."""
    config = DistillConfig(method="erm_pooled", objective=OBJECTIVES[name], sets_per_batch=SETS, **_settings())
    teacher = None if name == CE else "self"
    rows, lora = isomer_rows(SETS), LoraConfig(**LORA)
    return DistillTrainer(_model(student), config, rows, student.tokenizer, peft_config=lora, teacher_model=teacher)


def run(quick: bool) -> dict[str, float]:
    """Print the tables; return the ratios ``vcrd_vs_fkl``, ``vcrd_steps_*_vs_fkl`` and ``kl_peak_vs_ce``."""
    student = load_student("smollm2-135m")
    seconds: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
    for _ in range(1 if quick else 3):
        for name, taken in seconds.items():
            timer, trainer = StepCost(), contender(student, name)
            trainer.add_callback(timer)
            trainer.train()
            taken.append(timer.ends[-1] - timer.ends[-2])
            print(f"{name:24} {taken[-1]:8.2f} s/step", flush=True)
            del trainer
            gc.collect()  # a trainer and its callbacks know each other

    def ratio(name: str, rival: str) -> float:
        return statistics.median(own / other for own, other in zip(seconds[name], seconds[rival], strict=True))

    peaks = {name: _peak(name) for name in (CE, FKL, TOKEN)}
    for name, peak in peaks.items():
        print(f"peak memory {name:34} {peak:6.0f} MB")
    return {
        "vcrd_vs_fkl": ratio(TOKEN, FKL),
        "vcrd_steps_known_vs_fkl": ratio(KNOWN, FKL),
        "vcrd_steps_proposed_vs_fkl": ratio(FRESH, FKL),
        "fkl_vs_ce": ratio(FKL, CE),
        "kl_peak_vs_ce": peaks[FKL] / peaks[CE],
    }


def _peak(name: str) -> float:
    """Peak resident memory in MB of a process that trains two steps with this contender alone."""
    command = [sys.executable, "-m", "benchmarks.vcrd", "--peak", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Everything, its ratios put beside the others in ``benchmarks/results.json``; or one contender's memory."""
    if "--peak" in sys.argv:
        contender(load_student("smollm2-135m"), sys.argv[-1]).train()
        print(peak_resident() / 2**20)
        return
    path = Path(__file__).with_name("results.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ratios = known | {name: round(value, 3) for name, value in run("--quick" in sys.argv[1:]).items()}
    path.write_text(json.dumps(dict(sorted(ratios.items())), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
