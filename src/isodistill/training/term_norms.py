"""How hard each term of a distillation pulls at the adapter: the norm of its own gradient, every fifty steps.

    ce_norm = | d/dtheta lam_ce mean CE |        kd_norm = | d/dtheta lam_kd mean w temp^2 D |

over all trained tokens of the optimizer step, whatever the alignment makes of them. A divergence whose pull is a
hundredth of the other's teaches next to nothing. Cost: two forwards and backwards of one step in fifty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from isodistill.objectives import Distillation
from isodistill.training.agreement import over_processes
from isodistill.training.forward import trained_tokens

__all__ = ["EVERY", "term_norms"]

EVERY = 50


def term_norms(trainer: Any, batches: Sequence[Mapping[str, Tensor]], counts: Tensor) -> dict[str, float]:
    """The norms, where they are due and the objective has both terms; the training goes on as without them.

    Args:
        trainer: the ``DistillTrainer``, before the first forward of a step.
        batches: its micro-batches.
        counts: (K,) trained tokens of each domain, over all processes.
    """
    objective = trainer.objective
    due = trainer.state.global_step % EVERY == 0
    if not due or not isinstance(objective, Distillation) or not objective.lam_ce or not objective.lam_kd:
        return {}
    lam_ce, lam_kd = objective.lam_ce, objective.lam_kd
    norms = {}
    with torch.random.fork_rng():
        try:
            for name, factors in (("ce", (lam_ce, 0.0)), ("kd", (0.0, lam_kd))):
                objective.lam_ce, objective.lam_kd = factors
                norms[f"objective/{name}_norm"] = _norm(trainer, batches, float(counts.sum()))
        finally:
            objective.lam_ce, objective.lam_kd = lam_ce, lam_kd
    objective.take_metrics()  # its tokens are seen again
    return norms


def _norm(trainer: Any, batches: Sequence[Mapping[str, Tensor]], n_tokens: float) -> float:
    """That of the gradient of the objective as it stands; the buffers are left empty."""
    gradients = trainer.gradients
    gradients.zero()
    for batch in batches:
        inputs = trainer._prepare_inputs(batch)
        gradients.row_bounds = [0] + [len(inputs["labels"])] * len(gradients.flat)  # all rows of one domain
        gradients.n_tokens = inputs["input_ids"].numel()
        tokens, positions = trained_tokens(inputs)
        with trainer._autocast():
            teacher = None if trainer.teacher is None else trainer.teacher(inputs, positions)
            losses, weights = trainer.objective.token_losses(trainer.student(inputs, positions), tokens, teacher)
        ((losses * weights).sum() / n_tokens).backward()
        if not trainer.segmented:
            gradients.fold(0)
    norm = torch.linalg.vector_norm(over_processes(gradients.flat[0], trainer.args))
    gradients.zero()
    return float(norm)
