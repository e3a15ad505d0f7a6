"""What a guard costs per step of a second stage and between two stages, over the same without one.

One process, SmolLM2-135M, the same rows in the same micro-batches (8 isomer rows, about 1,000 tokens). Two guards at a
time and the training without one run in threads of their own and wait at the end of every step until their turn comes
again, so that all are at the same step of a round, and a ratio is that of steps which lie within seconds of each other.
A turn is ten steps, one measurement of the angles among them; its ratio is that of the sums. With
``OMP_NUM_THREADS=1`` the clock is the processor's and of the thread alone, so that other programs on the same cores
hardly count.
Run ``python -m benchmarks.guards [--quick]``; quick is one turn of three. Writes ``guard_NAME_vs_none`` and, as steps
without a guard, ``guard_NAME_between_in_steps`` into ``benchmarks/results.json``.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import TrainerCallback

from benchmarks.training import LORA, _model, _settings, isomer_rows
from isodistill import DistillConfig, DistillTrainer
from isodistill.models.load import Student, add_lora, load_student

GUARDS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "angular_monitor": {"name": "angular"},
    # Whatever moves is frozen at the first measurement: no threshold costs more.
    "angular_freeze": {"name": "angular", "mode": "freeze", "threshold": 0.0},
    "l2": {"name": "l2"},
    "ewc": {"name": "ewc", "n_samples": 16},
    "si": {"name": "si"},
    "lwf": {"name": "lwf"},
    "o_lora": {"name": "o_lora"},
    "replay": {"name": "replay"},
}
SETS, STEPS, REPEATS = 2, 10, 3
AT_ONCE = 2
"""Guards beside ``none`` whose trainings are in memory together, some 2 GB each."""


class Turns(TrainerCallback):
    """Holds a training at the end of each step until ``go`` is released; ``seconds`` of each step, batch and all."""

    def __init__(self) -> None:
        self.go, self.over, self.seconds = threading.Semaphore(0), threading.Semaphore(0), list[float]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step, with what is made at the begin of a training, is none that counts."""
        if state.global_step > 1:
            self.seconds.append(clock() - self._since)
        self.over.release()
        self.go.acquire()
        self._since = clock()


def clock() -> float:
    """Seconds: of this thread on the processor where torch has one thread, else of the wall."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def run(quick: bool) -> dict[str, float]:
    """Print the table; return the ratios."""
    student, turns, ratios = load_student("smollm2-135m"), 1 if quick else 3, dict[str, float]()
    print(f"{'guard':16} {'s/step':>7} {'ratio':>6} {'lowest':>7} {'highest':>8} {'end, s':>7} {'begin, s':>9}")
    rivals = [name for name in GUARDS if name != "none"]
    for i in range(0, len(rivals), AT_ONCE):
        ratios |= _against_none(student, rivals[i : i + AT_ONCE], turns)
        gc.collect()
    return ratios


def _against_none(student: Student, rivals: list[str], turns: int) -> dict[str, float]:
    """The rows and ratios of some guards, beside a training without one."""
    ends, begins, trainers = dict[str, float](), dict[str, float](), dict[str, DistillTrainer]()
    for name in ("none", *rivals):
        guard, folder = GUARDS[name], Path(tempfile.mkdtemp())
        first = _trainer(student, guard, None, 1)
        first.train()
        ends[name] = _seconds(lambda first=first, folder=folder: first.guarding.end_stage(folder / "guard"))  # type: ignore[misc]
        first.save_model(str(folder / "student"))
        del first

        def begin(name: str = name, guard: dict[str, Any] = guard, folder: Path = folder) -> None:
            trainers[name] = _trainer(student, guard, folder, STEPS * turns + 1)

        begins[name] = _seconds(begin)
    seconds, ratios = _in_turns(trainers), dict[str, float]()
    plain = [sum(seconds["none"][t * STEPS : (t + 1) * STEPS]) for t in range(turns)]
    for name, taken in seconds.items():
        found = [sum(taken[t * STEPS : (t + 1) * STEPS]) / plain[t] for t in range(turns)]
        ratio = statistics.median(found)
        # What is written and the drift of all rows at the end, the model at the begin: there without a guard too.
        end, start = ends[name] - ends["none"], begins[name] - begins["none"]
        row = f"{name:16} {statistics.fmean(taken):7.3f} {ratio:6.3f} {min(found):7.3f} {max(found):8.3f}"
        print(f"{row} {end:7.2f} {start:9.2f}", flush=True)
        if name != "none":
            between = (end + start) / (sum(plain) / turns / STEPS)
            ratios |= {f"guard_{name}_vs_none": ratio, f"guard_{name}_between_in_steps": between}
    return ratios


def _in_turns(trainers: dict[str, DistillTrainer]) -> dict[str, list[float]]:
    """Seconds of every step but the first of each training, the trainings one step at a time."""
    turns = {name: Turns() for name in trainers}
    with ThreadPoolExecutor(len(trainers)) as pool:
        running = []
        for name, trainer in trainers.items():
            trainer.add_callback(turns[name])
            running.append(pool.submit(trainer.train))
            running[-1].add_done_callback(lambda _, turn=turns[name]: turn.over.release())  # type: ignore[misc]
            turns[name].over.acquire()
        for _ in range(max(trainer.args.max_steps for trainer in trainers.values())):
            for turn in turns.values():
                turn.go.release()
                turn.over.acquire()
        for one in running:
            one.result()
    return {name: turn.seconds for name, turn in turns.items()}


def _seconds(do: Callable[[], None]) -> float:
    """Median over a few repeats."""
    found = []
    for _ in range(REPEATS):
        gc.collect()  # a trainer and its callbacks know each other, and the last one's model is large
        began = clock()
        do()
        found.append(clock() - began)
    return statistics.median(found)


def _trainer(student: Student, guard: dict[str, Any], earlier: Path | None, steps: int) -> DistillTrainer:
    """A first or second stage, from the student that the pipeline would start it with."""
    state = None if earlier is None else str(earlier / "guard")
    settings = _settings() | {"max_steps": steps, "guard": guard, "guard_state": state}
    config = DistillConfig(method="erm_pooled", sets_per_batch=SETS, **settings)
    model, lora = _model(student), LoraConfig(**LORA)
    if earlier is not None and guard["name"] == "o_lora":
        model = add_lora(PeftModel.from_pretrained(model, earlier / "student").merge_and_unload(), lora, 1)
    elif earlier is not None:
        model = PeftModel.from_pretrained(model, earlier / "student", is_trainable=True)
    left = None if isinstance(model, PeftModel) else lora
    return DistillTrainer(model, config, isomer_rows(8 * SETS), student.tokenizer, peft_config=left)


def main() -> None:
    """Measure, and put the ratios beside the others in ``benchmarks/results.json``."""
    path = Path(__file__).with_name("results.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ratios = known | {name: round(value, 3) for name, value in run("--quick" in sys.argv[1:]).items()}
    path.write_text(json.dumps(dict(sorted(ratios.items())), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
