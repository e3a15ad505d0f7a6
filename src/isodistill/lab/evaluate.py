"""Tests of a lab student: every test problem on several surfaces, answered greedily, scored as everywhere else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isodistill.evaluation import (
    acc_macro,
    agreement,
    all_correct,
    lcs_random,
    lcs_ratio,
    logical_consistency_score,
)
from isodistill.lab.model import LabModel
from isodistill.lab.task import BASE, UNSEEN, Task

__all__ = ["evaluate", "greedy"]


def evaluate(model: LabModel, task: Task, generator: torch.Generator) -> dict[str, dict[str, float]]:
    """The numbers of the splits, named as in results.json, and ``acc_first``, the share of right first results.

    ``id``: trained surfaces, cue as in training. ``cue_random``: trained surfaces, random cue. ``ood``: unseen
    surfaces, random cue. Their problems are the same, none was trained. ``valid``, where problems are kept to select
    by: these, cue as in training, on the trained surfaces, or on the one among them that was left out of training.
    """
    K, rho = task.options.domains, task.options.rho
    splits: dict[str, tuple[Tensor, Sequence[int], float]] = {
        "id": (task.test_problems, task.surfaces, rho),
        "cue_random": (task.test_problems, task.surfaces, 0.0),
        "ood": (task.test_problems, range(K, K + UNSEEN), 0.0),
    }
    if len(task.valid_problems):
        left_out = task.options.without
        splits["valid"] = (task.valid_problems, task.surfaces if left_out < 0 else [left_out], rho)
    return {
        split: _scores(model, task, task.tell(problems.expand(len(surfaces), -1, -1), surfaces, rho, generator))
        for split, (problems, surfaces, rho) in splits.items()
    }


@torch.no_grad()
def greedy(model: LabModel, prompts: Tensor, trace: int) -> tuple[Tensor, Tensor]:
    """Traces (N, trace) that the student writes after prompts (N, T), and its states (N, d) at the last prompt token,
    which LCS is about."""
    weights = {name: W[None] for name, W in model.weights().items()}
    tokens, first = prompts[None], None
    for _ in range(trace):
        logits, states = model(weights, tokens, last=1)
        first = states if first is None else first
        tokens = torch.cat([tokens, logits.argmax(-1)], dim=-1)
    assert first is not None
    return tokens[0, :, prompts.shape[1] :], first[0, :, 0]


def _scores(model: LabModel, task: Task, told: Tensor) -> dict[str, float]:
    """Accuracy and consistency on (D, N, prompt + trace) tokens of N problems on D surfaces."""
    surfaces, problems, _ = told.shape
    rows = told.flatten(0, 1)
    traces, states = greedy(model, rows[:, : task.prompt], task.trace)
    set_ids = list(range(problems)) * surfaces
    domains = [k for k in range(surfaces) for _ in range(problems)]
    answers = [answer if answer < BASE else None for answer in traces[:, -1].tolist()]
    correct = (traces[:, -1] == rows[:, -1]).numpy()
    return {
        "acc_macro": acc_macro(correct, domains),
        "all_correct": all_correct(correct, set_ids, domains),
        "acc_first": float((traces[:, 0] == rows[:, task.prompt]).double().mean()),
        "agreement": agreement(answers, set_ids, domains),
        "lcs": logical_consistency_score(states, set_ids),
        "lcs_random": lcs_random(states, set_ids, domains),
        "lcs_ratio": lcs_ratio(states, set_ids, domains),
    }
