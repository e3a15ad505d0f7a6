"""What VCRD costs over plain forward KL, and what a chunked KL step holds in memory over one of cross-entropy.

One process, SmolLM2-135M as student and (``self``) as teacher, the rows and micro-batches of ``benchmarks.training``;
the contenders take turns, each turn one optimizer step after one that warms up, and the median counts. Step mode is
measured twice: where every row's steps are known already, and where they are proposed and checked by rules first.

    python -m benchmarks.vcrd [--quick]
    python -m benchmarks.vcrd --peak NAME      peak memory of one contender; the first asks each in turn
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import Trainer

from benchmarks.training import LORA, SETS, _in_turns, _model, _settings, isomer_rows, peak_resident
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


def contender(student: Student, name: str) -> Trainer:
    """Our trainer with one of the objectives, two steps a call of ``train``."""
    config = DistillConfig(method="erm_pooled", objective=OBJECTIVES[name], sets_per_batch=SETS, **_settings())
    teacher = None if name == CE else "self"
    rows, lora = isomer_rows(SETS), LoraConfig(**LORA)
    return DistillTrainer(_model(student), config, rows, student.tokenizer, peft_config=lora, teacher_model=teacher)


def run(quick: bool) -> dict[str, float]:
    """Print the tables; return the ratios ``vcrd_vs_fkl``, ``vcrd_steps_*_vs_fkl`` and ``kl_peak_vs_ce``."""
    student = load_student("smollm2-135m")
    found = _in_turns({name: contender(student, name) for name in OBJECTIVES}, 3 if quick else 5)
    peaks = {name: _peak(name) for name in (CE, FKL, TOKEN)}
    for name, peak in peaks.items():
        print(f"peak memory {name:34} {peak:6.0f} MB")
    return {
        "vcrd_vs_fkl": found[TOKEN] / found[FKL],
        "vcrd_steps_known_vs_fkl": found[KNOWN] / found[FKL],
        "vcrd_steps_proposed_vs_fkl": found[FRESH] / found[FKL],
        "fkl_vs_ce": found[FKL] / found[CE],
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
