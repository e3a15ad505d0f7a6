"""What VCRD costs over plain forward KL, and what a chunked KL step holds in memory over one of cross-entropy.

SmolLM2-135M as student and (``self``) as teacher, the rows and micro-batches of ``benchmarks.training``. Each contender
is a process of its own, so that its peak memory is known, too. They take turns; a turn is one optimizer step after one
that warms up, with all that happens between the two, in processor seconds, and the median of the ratios counts. Step
mode is measured twice: every row's steps known already, and proposed and checked by rules first.

    python -m benchmarks.vcrd [--quick]
    python -m benchmarks.vcrd --one NAME      seconds and peak memory in MB of one contender
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import TrainerCallback

from benchmarks.training import LORA, SETS, _settings, isomer_rows, peak_resident
from isodistill import DistillConfig, DistillTrainer
from isodistill.models.load import load_student

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


def run(quick: bool) -> dict[str, float]:
    """Print the table; return the ratios of seconds, and ``kl_peak_vs_ce``, that of peak memory."""
    found: dict[str, list[list[float]]] = {name: [] for name in OBJECTIVES}
    for _ in range(1 if quick else 3):
        for name, turns in found.items():
            command = [sys.executable, "-m", "benchmarks.vcrd", "--one", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            turns.append([float(number) for number in done.stdout.split()[-2:]])
            print(f"{name:24} {turns[-1][0]:6.2f} cpu s/step {turns[-1][1]:6.0f} MB", flush=True)

    def ratio(name: str, rival: str, what: int = 0) -> float:
        return statistics.median(own[what] / other[what] for own, other in zip(found[name], found[rival], strict=True))

    return {
        "vcrd_vs_fkl": ratio(TOKEN, FKL),
        "vcrd_steps_known_vs_fkl": ratio(KNOWN, FKL),
        "vcrd_steps_proposed_vs_fkl": ratio(FRESH, FKL),
        "fkl_vs_ce": ratio(FKL, CE),
        "kl_peak_vs_ce": ratio(FKL, CE, 1),
    }


def one(name: str) -> None:
    """Train two steps with an objective; print the seconds of the second and the peak of the process."""
    student, timer = load_student("smollm2-135m"), StepCost()
    config = DistillConfig(method="erm_pooled", objective=OBJECTIVES[name], sets_per_batch=SETS, **_settings())
    teacher = None if name == CE else "self"
    rows, lora = isomer_rows(SETS), LoraConfig(**LORA)
    trainer = DistillTrainer(student.model, config, rows, student.tokenizer, peft_config=lora, teacher_model=teacher)
    trainer.add_callback(timer)
    trainer.train()
    print(timer.ends[-1] - timer.ends[-2], peak_resident() / 2**20)


def main() -> None:
    """Everything, its ratios put beside the others in ``benchmarks/results.json``; or one contender."""
    if "--one" in sys.argv:
        one(sys.argv[-1])
        return
    path = Path(__file__).with_name("results.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ratios = known | {name: round(value, 3) for name, value in run("--quick" in sys.argv[1:]).items()}
    path.write_text(json.dumps(dict(sorted(ratios.items())), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
