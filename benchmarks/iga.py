"""What a training step of every tier of IGA costs over our plain SFT, at about 4,096 tokens a step.

One process, one student, the same 32 rows in one micro-batch; the contenders take turns, each turn one optimizer step
after one that warms up, and the median over the turns counts. Tier W, which holds gigabytes, takes its turns with SFT
after the others. With ``OMP_NUM_THREADS=1`` the clock is the processor's, so that other programs on the same cores do
not count; with more threads it is the one on the wall. Run ``python -m benchmarks.iga [--quick]``; quick is one turn.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from peft import LoraConfig

from benchmarks.training import DOMAINS, LORA, StepTimer, _model, _settings
from isodistill import DistillConfig, DistillTrainer
from isodistill.data.encode import encode_rows
from isodistill.data.rows import Row
from isodistill.isomers.generate import generate_sets
from isodistill.models.load import Student, load_student

SETS = 8  # times four domains: 32 rows a step
TIERS = {"t": "tangent", "ts": "tangent_separable", "w": "weight", "f": "factor"}


def run(quick: bool) -> dict[str, float]:
    """Print the table; return the ratios ``iga_TIER_vs_sft_4096``."""
    student = load_student("smollm2-135m")
    rows = generate_sets(n_sets=2 * SETS, seed=3, domains=DOMAINS, families=["rates", "inclusion", "ordering"])
    encoded, _ = encode_rows(rows, student.tokenizer, 512)
    tokens = statistics.mean(len(e.input_ids) for e in encoded) * SETS * len(DOMAINS)
    print(f"{'contender':34} {'s/step':>10} {'ratio':>7}   ({tokens:.0f} tokens a step)")
    ratios = {}
    for tiers in (("f", "ts", "t"), ("w",)):
        options: dict[str, dict[str, Any]] = {"erm_pooled": {"method": "erm_pooled"}}
        options |= {tier: {"method": "iga", "alignment": {"space": TIERS[tier]}} for tier in tiers}
        seconds: dict[str, list[float]] = {name: [] for name in options}
        for _ in range(1 if quick else 5):
            for name, slots in options.items():
                seconds[name].append(_second_step(student, rows, slots))
        for name, taken in seconds.items():
            ratio = statistics.median(own / sft for own, sft in zip(taken, seconds["erm_pooled"], strict=True))
            label = "isodistill " + (f"iga, tier {name.upper()}" if name in TIERS else name)
            shown = [round(x, 2) for x in taken]
            print(f"{label:34} {statistics.median(taken):10.2f} {ratio:7.3f}   {shown}", flush=True)
            if name in TIERS:
                ratios[f"iga_{name}_vs_sft_4096"] = ratio
    return ratios


def _second_step(student: Student, rows: list[Row], slots: dict[str, Any]) -> float:
    """Seconds of the second optimizer step of a fresh trainer."""
    config = DistillConfig(sets_per_batch=SETS, **slots, **_settings())
    trainer = DistillTrainer(_model(student), config, rows, student.tokenizer, peft_config=LoraConfig(**LORA))
    timer = StepTimer()
    trainer.add_callback(timer)
    trainer.train()
    del trainer
    gc.collect()  # a trainer and its callbacks know each other; tier W alone holds gigabytes
    return timer.seconds[-1]


def main() -> None:
    """Measure, and put the ratios beside the others in ``benchmarks/results.json``."""
    path = Path(__file__).with_name("results.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ratios = known | {name: round(value, 3) for name, value in run("--quick" in sys.argv[1:]).items()}
    path.write_text(json.dumps(dict(sorted(ratios.items())), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
