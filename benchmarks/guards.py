"""What a guard costs per step of a second stage and at the end of a stage, over the same step without one.

One process, SmolLM2-135M, the same rows in the same micro-batches (8 isomer rows, about 1,000 tokens); the guards take
turns, each turn two optimizer steps after one that warms up, and the median over the turns counts. With
``OMP_NUM_THREADS=1`` the clock is the processor's, so that other programs on the same cores do not count.
Run ``python -m benchmarks.guards [--quick]``; quick is one turn. Writes ``guard_NAME_vs_none`` and, as steps without a
guard, ``guard_NAME_end_in_steps`` into ``benchmarks/results.json``.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel

from benchmarks.training import LORA, StepTimer, _model, _settings, clock, isomer_rows
from isodistill import DistillConfig, DistillTrainer
from isodistill.models.load import Student, load_student

GUARDS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "angular_monitor": {"name": "angular"},
    "angular_freeze": {"name": "angular", "mode": "freeze", "threshold": 0.01},
    "l2": {"name": "l2"},
    "ewc": {"name": "ewc", "n_samples": 16},
    "si": {"name": "si"},
    "lwf": {"name": "lwf"},
    "replay": {"name": "replay"},
}
"""``o_lora`` is left out: each of its stages has another adapter on other weights."""
SETS, STEPS = 2, 10  # so many steps hold one measurement of the angles


def run(quick: bool) -> dict[str, float]:
    """Print the table; return the ratios."""
    student, ends, folders = load_student("smollm2-135m"), dict[str, float](), dict[str, Path]()
    for name, guard in GUARDS.items():
        trainer = _trainer(student, guard, None, steps=1)
        trainer.train()
        folders[name], began = Path(tempfile.mkdtemp()), clock()
        trainer.guarding.end_stage(folders[name] / "guard")
        ends[name] = clock() - began
        trainer.save_model(str(folders[name] / "student"))
        del trainer
        gc.collect()
    seconds: dict[str, list[float]] = {name: [] for name in GUARDS}
    for _ in range(1 if quick else 3):
        for name, guard in GUARDS.items():
            timer = StepTimer()
            trainer = _trainer(student, guard, folders[name], STEPS + 1)
            trainer.add_callback(timer)
            trainer.train()
            seconds[name].append(statistics.fmean(timer.seconds[1:]))  # the mean: not every step measures angles
            del trainer
            gc.collect()
    ratios, step = {}, statistics.median(seconds["none"])
    print(f"{'guard':18} {'s/step':>8} {'ratio':>7} {'s at the end':>13} {'in steps':>9}")
    for name, taken in seconds.items():
        ratio = statistics.median(own / plain for own, plain in zip(taken, seconds["none"], strict=True))
        end = ends[name] - ends["none"]  # what is written, and the drift per layer, are there without a guard too
        print(f"{name:18} {statistics.median(taken):8.2f} {ratio:7.3f} {end:13.2f} {end / step:9.2f}", flush=True)
        if name != "none":
            ratios |= {f"guard_{name}_vs_none": ratio, f"guard_{name}_end_in_steps": end / step}
    return ratios


def _trainer(student: Student, guard: dict[str, Any], earlier: Path | None, steps: int) -> DistillTrainer:
    """A first or second stage."""
    state = None if earlier is None else str(earlier / "guard")
    settings = _settings() | {"max_steps": steps, "guard": guard, "guard_state": state}
    config = DistillConfig(method="erm_pooled", sets_per_batch=SETS, **settings)
    model: Any = _model(student)
    if earlier is not None:
        model = PeftModel.from_pretrained(model, earlier / "student", is_trainable=True)
    lora = LoraConfig(**LORA) if earlier is None else None
    return DistillTrainer(model, config, isomer_rows(8 * SETS), student.tokenizer, peft_config=lora)


def main() -> None:
    """Measure, and put the ratios beside the others in ``benchmarks/results.json``."""
    path = Path(__file__).with_name("results.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ratios = known | {name: round(value, 3) for name, value in run("--quick" in sys.argv[1:]).items()}
    path.write_text(json.dumps(dict(sorted(ratios.items())), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
