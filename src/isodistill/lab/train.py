"""The training loop of the laboratory: our alignments on a plain model, in the order of calls of the trainer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from isodistill.alignment import Alignment
from isodistill.lab.model import LabModel, grouped
from isodistill.lab.settings import TrainOptions
from isodistill.lab.task import Task
from isodistill.models.lora import DomainGradients

__all__ = ["train"]

_WARMUP = 0.05
_CLIP = 1.0


def train(model: LabModel, task: Task, alignment: Alignment, options: TrainOptions, seed: int) -> dict[str, float]:
    """Train in place; ``seed`` is that of the problems, words and cues of the batches.

    Returns:
        Means of the alignment's metrics over the second half of the steps, and ``loss``, likewise.
    """
    domains = task.options.domains
    generator = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(model, options)
    gradients = DomainGradients.allocate(model, domains if alignment.needs_domain_gradients else 1)
    alignment.setup(layers=[], total_steps=options.steps, adaptive=options.optimizer != "sgd", seed=seed)
    counts = torch.full((domains,), float(task.trace * options.rows))
    present = torch.ones(domains, dtype=torch.bool)
    sums: dict[str, float] = {}
    for step in range(options.steps):
        tokens = task.training_batch(options.rows, generator)
        gradients.zero()
        loss = _backward(model, gradients, tokens, task.trace, alignment.domain_weights(counts))
        metrics = alignment.update(gradients, present)
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (step + 1) / (_WARMUP * options.steps))
        alignment.before_step(optimizer)
        optimizer.step()
        metrics |= alignment.after_step(optimizer)
        if 2 * step >= options.steps:
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value
    return {name: value / (options.steps - options.steps // 2) for name, value in sums.items()}


def _backward(model: LabModel, gradients: DomainGradients, tokens: Tensor, trace: int, weights: Tensor) -> float:
    """Add the gradients of the weighted domain losses to the buffers; returns the mean of the domains' mean losses."""
    K, rows, length = tokens.shape
    groups = len(gradients.flat)
    inputs = tokens[..., :-1].reshape(groups, K * rows // groups, length - 1)
    copies = grouped(model, groups)
    logits, _ = model(copies, inputs, last=trace)
    losses = F.cross_entropy(logits.flatten(0, -2), tokens[..., -trace:].flatten(), reduction="none").view(K, -1)
    for name, gradient in zip(
        copies, torch.autograd.grad((weights * losses.sum(1)).sum(), [*copies.values()]), strict=True
    ):
        gradients.views[name].add_(gradient)
    return float(losses.detach().mean())


def _optimizer(model: LabModel, options: TrainOptions) -> torch.optim.Optimizer:
    if options.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    decay = 0.1 if options.optimizer == "adamw" else 0.0
    return torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=decay)
