"""What a training step of every tier of IGA costs over our plain SFT, at about 4,096 tokens a step.

One process, one student, the same rows in the same micro-batches; the contenders take turns, each turn one optimizer
step after one that warms up, and the median over the turns counts. The unit is processor seconds, so that other work on
the machine does not count; with one thread (``OMP_NUM_THREADS=1``) they are what a clock would show on an idle core.
Run ``python -m benchmarks.iga [--quick]``; quick is one turn.
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

from benchmarks.training import DOMAINS, LORA, _model, _settings
from isodistill import DistillConfig, DistillTrainer
from isodistill.data.encode import encode_rows
from isodistill.isomers.generate import generate_sets
from isodistill.models.load import load_student

SETS, MICRO_BATCHES = 2, 4  # times four domains: 32 rows a step
SFT = "isodistill erm_pooled"
TIERS = {"t": "tangent", "ts": "tangent_separable", "w": "weight", "f": "factor"}


class StepCost(TrainerCallback):
    """Processor seconds of every optimizer step, data and logging aside."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


def run(quick: bool) -> dict[str, float]:
    """Print the table; return the ratios ``iga_TIER_vs_sft_4096``."""
    student = load_student("smollm2-135m")
    rows = generate_sets(
        n_sets=2 * SETS * MICRO_BATCHES, seed=3, domains=DOMAINS, families=["rates", "inclusion", "ordering"]
    )
    encoded, _ = encode_rows(rows, student.tokenizer, 512)
    options: dict[str, dict[str, Any]] = {SFT: {"method": "erm_pooled"}}
    for tier, space in TIERS.items():
        options[f"isodistill iga, tier {tier.upper()}"] = {"method": "iga", "alignment": {"space": space}}
    seconds: dict[str, list[float]] = {name: [] for name in options}
    for _ in range(1 if quick else 3):
        for name, slots in options.items():
            timer = StepCost()
            split = {"sets_per_batch": SETS, "gradient_accumulation_steps": MICRO_BATCHES}
            config = DistillConfig(**split, **slots, **_settings())
            lora = LoraConfig(**LORA)
            trainer = DistillTrainer(_model(student), config, rows, student.tokenizer, peft_config=lora)
            trainer.add_callback(timer)
            trainer.train()
            seconds[name].append(timer.seconds[-1])
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
            del trainer
            gc.collect()  # a trainer and its callbacks know each other; tier W alone holds gigabytes
    tokens = statistics.mean(len(e.input_ids) for e in encoded) * SETS * MICRO_BATCHES * len(DOMAINS)
    print(f"{'contender':34} {'cpu s/step':>10} {'ratio':>7}   ({tokens:.0f} tokens a step)")
    ratios = {}
    for name, taken in seconds.items():
        ratio = statistics.median(own / sft for own, sft in zip(taken, seconds[SFT], strict=True))
        print(f"{name:34} {statistics.median(taken):10.2f} {ratio:7.3f}   {[round(x, 2) for x in taken]}", flush=True)
        if name != SFT:
            ratios[f"iga_{name.rpartition(' ')[2].lower()}_vs_sft_4096"] = ratio
    return ratios


def main() -> None:
    """Measure, and put the ratios beside the others in ``benchmarks/results.json``."""
    path = Path(__file__).with_name("results.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ratios = known | {name: round(value, 3) for name, value in run("--quick" in sys.argv[1:]).items()}
    path.write_text(json.dumps(dict(sorted(ratios.items())), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
