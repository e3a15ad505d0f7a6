"""One run: draw the task, make the student, train it with a method, test it."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from isodistill.alignment import ERM, InvariantGradientAlignment
from isodistill.errors import UserError
from isodistill.lab.evaluate import evaluate
from isodistill.lab.model import LabModel
from isodistill.lab.settings import LabSettings, TrainOptions
from isodistill.lab.task import Task
from isodistill.lab.train import train
from isodistill.terms import IsomerConsistency
from isodistill.training.slots import fill_slots
from isodistill.training.step_term import alignment_obstacles

__all__ = ["run_lab"]

_PARTS = 50
"""Of a training, whose mean losses make its curve."""


def run_lab(settings: LabSettings) -> dict[str, Any]:
    """Train and test one student; the record of the run, ready for JSON. The same settings give the same numbers.

    Every draw comes from ``seed``, so two methods with one seed share task, initial weights, batches and tests.

    Raises:
        UserError: an unknown method or option.
    """
    objective, alignment, term, slots = fill_slots(settings.method, None, settings.alignment, settings.term)
    if slots["objective"]["name"] != "ce" or alignment.needs_halves:
        raise UserError(
            f"The lab trains with cross-entropy on whole batches of a domain; {settings.method} with {slots} needs "
            f"{'two halves of each' if alignment.needs_halves else type(objective).__name__}."
        )
    if isinstance(alignment, InvariantGradientAlignment) and alignment.space != "factor" and not settings.train.lora:
        raise UserError(
            f"alignment.space {alignment.space} masks W = W0 + s B A and needs LoRA layers; set train.lora to a rank."
        )
    if term is not None and not isinstance(term, IsomerConsistency):
        raise UserError(f"The lab has no teacher and no prompt, and the term {term.name} needs one.")
    if term is not None and not term.is_neutral:
        obstacles = alignment_obstacles(alignment, settings.method)
        if not settings.task.sets:
            obstacles.append("a term compares the members of isomer sets: set task.sets to true")
        if obstacles:
            raise UserError("This training cannot start. " + " Also: ".join(obstacles) + ".")
    draw, weights, batches, tests, warm, factors = (
        int(n) for n in np.random.SeedSequence(settings.seed).generate_state(6)
    )
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
    if settings.train.warm:
        before = TrainOptions(steps=settings.train.warm, rows=settings.train.rows)
        train(model, task, ERM(), before, warm, rho=0.0)
    if settings.train.lora:
        model.adapt(settings.train.lora, torch.Generator().manual_seed(factors))
    metrics, losses = train(model, task, alignment, settings.train, batches, term)
    seconds = time.perf_counter() - began
    splits = evaluate(model, task, torch.Generator().manual_seed(tests))
    return {
        **asdict(settings),
        "alignment": slots["alignment"],
        "term": slots.get("term"),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": round(seconds, 1),
        "training": {name: round(value, 6) for name, value in metrics.items()},
        "curve": [round(float(part.mean()), 6) for part in np.array_split(losses, min(_PARTS, len(losses)))],
        "splits": {
            split: {name: None if math.isnan(value) else round(value, 6) for name, value in numbers.items()}
            for split, numbers in splits.items()
        },
    }
