"""One run: draw the task, make the student, train it with a method, test it."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from isodistill.errors import UserError
from isodistill.lab.evaluate import evaluate
from isodistill.lab.model import LabModel
from isodistill.lab.settings import LabSettings
from isodistill.lab.task import Task
from isodistill.lab.train import train
from isodistill.terms import IsomerConsistency
from isodistill.training.slots import fill_slots
from isodistill.training.step_term import alignment_obstacles

__all__ = ["run_lab"]


def run_lab(settings: LabSettings) -> dict[str, Any]:
    """Train and test one student; the record of the run, ready for JSON. The same settings give the same numbers.

    Every draw comes from ``seed``, so two methods with one seed share task, initial weights, batches and tests.

    Raises:
        UserError: an unknown method or option.
    """
    objective, alignment, term, slots = fill_slots(settings.method, None, settings.alignment, settings.term)
    if slots["objective"]["name"] != "ce" or alignment.needs_weight_gradients:
        raise UserError(
            f"The lab trains with cross-entropy on plain weights; {settings.method} with {slots} needs "
            f"{'LoRA layers' if alignment.needs_weight_gradients else type(objective).__name__}."
        )
    if term is not None and not isinstance(term, IsomerConsistency):
        raise UserError(f"The lab has no teacher and no prompt, and the term {term.name} needs one.")
    if term is not None and not term.is_neutral:
        obstacles = alignment_obstacles(alignment, settings.method)
        if not settings.task.sets:
            obstacles.append("a term compares the members of isomer sets: set task.sets to true")
        if obstacles:
            raise UserError("This training cannot start. " + " Also: ".join(obstacles) + ".")
    draw, weights, batches, tests = (int(n) for n in np.random.SeedSequence(settings.seed).generate_state(4))
    task = Task(settings.task, draw)
    model = LabModel(
        vocabulary=task.vocabulary,
        outputs=task.outputs,
        length=task.prompt + task.trace - 1,
        width=settings.train.width,
        layers=settings.train.layers,
        generator=torch.Generator().manual_seed(weights),
    )
    began = time.perf_counter()
    metrics = train(model, task, alignment, settings.train, batches, term)
    seconds = time.perf_counter() - began
    splits = evaluate(model, task, torch.Generator().manual_seed(tests))
    return {
        **asdict(settings),
        "alignment": slots["alignment"],
        "term": slots.get("term"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "training": {name: round(value, 6) for name, value in metrics.items()},
        "splits": {
            split: {name: None if math.isnan(value) else round(value, 6) for name, value in numbers.items()}
            for split, numbers in splits.items()
        },
    }
