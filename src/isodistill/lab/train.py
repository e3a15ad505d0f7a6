"""The training loop of the laboratory: our alignments on a plain model, in the order of calls of the trainer."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from isodistill.alignment import Alignment, Penalised, SeenTokens
from isodistill.lab.model import LabModel, grouped
from isodistill.lab.settings import TrainOptions
from isodistill.lab.task import Task
from isodistill.models.lora import DomainGradients
from isodistill.terms import IsomerConsistency, SetMembers

__all__ = ["backward", "train"]

_WARMUP = 0.05
_CLIP = 1.0


def train(
    model: LabModel,
    task: Task,
    alignment: Alignment,
    options: TrainOptions,
    seed: int,
    term: IsomerConsistency | None = None,
    rho: float | None = None,
) -> tuple[dict[str, float], list[float]]:
    """Train in place; ``seed`` is that of the problems, words and cues of the batches, ``rho`` the task's if None.

    Returns:
        Means of the metrics of alignment and term over the second half of the steps, and ``loss``, likewise. The losses
        of all steps.
    """
    domains = len(task.surfaces)
    generator = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(model, options)
    gradients = DomainGradients.allocate(model, domains if alignment.needs_domain_gradients else 1)
    if alignment.needs_weight_gradients:
        gradients.dense = {name: torch.zeros(domains, *layer.shape) for name, layer in model.lora.items()}
    gradients.losses = torch.zeros(domains, dtype=torch.float64)
    layers = [*model.lora.values()]
    alignment.setup(layers=layers, total_steps=options.steps, adaptive=options.optimizer != "sgd", seed=seed)
    present = torch.ones(domains, dtype=torch.bool)
    sums: dict[str, float] = {}
    losses: list[float] = []
    for step in range(options.steps):
        tokens = task.training_batch(options.rows, generator, rho)
        gradients.zero()
        gradients.recompute = functools.partial(_gradient_of, model, tokens, task.trace)
        loss = backward(model, gradients, tokens, task.trace, alignment, term)
        metrics = alignment.update(gradients, present)
        if term is not None:
            metrics |= term.take_metrics()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (step + 1) / (_WARMUP * options.steps))
        alignment.before_step(optimizer)
        optimizer.step()
        metrics |= alignment.after_step(optimizer)
        losses.append(loss)
        if step >= options.steps // 2:
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value
    return {name: value / (options.steps - options.steps // 2) for name, value in sums.items()}, losses


def backward(
    model: LabModel,
    gradients: DomainGradients,
    tokens: Tensor,
    trace: int,
    alignment: Alignment,
    term: IsomerConsistency | None = None,
) -> float:
    """Add the gradients of the weighted domain losses, a penalty and a term to the buffers; returns the mean loss."""
    K, rows, _ = tokens.shape
    groups = len(gradients.flat)
    copies = grouped(model, groups)
    penalised = isinstance(alignment, Penalised)
    inputs = tokens[..., :-1].reshape(groups, K * rows // groups, -1)
    logits, states = model(copies, inputs, last=inputs.shape[-1] if penalised else trace)
    losses = _token_losses(logits[..., -trace:, :], tokens, trace)
    counts = torch.full((K,), float(trace * rows))
    raised = torch.zeros(K)
    if term is not None and not term.is_neutral:
        raised = _parts(term, logits, states, tokens, trace).mean(1)
    loss = (alignment.domain_weights(counts) * (losses.sum(1) + counts * raised)).sum()
    if isinstance(alignment, Penalised):
        loss = loss + _penalty(alignment, states[0], copies["head"][0], tokens, trace)
    of_weights = _gradients(loss, copies)
    for name, gradient in model.of_trained(of_weights).items():
        gradients.views[name].add_(gradient)
    for name, dense in gradients.dense.items():
        dense.add_(of_weights[name])
    gradients.losses += losses.detach().double().mean(1) + raised.detach()
    return float(losses.detach().mean())


def _token_losses(logits: Tensor, tokens: Tensor, trace: int) -> Tensor:
    """(K, rows * trace) cross-entropy of the traces."""
    losses = F.cross_entropy(logits.flatten(0, -2), tokens[..., -trace:].flatten(), reduction="none")
    return losses.view(len(tokens), -1)


def _parts(term: IsomerConsistency, logits: Tensor, states: Tensor, tokens: Tensor, trace: int) -> Tensor:
    """(K, rows) what the term adds to every sequence; row j of all surfaces is one set, its last token the answer."""
    K, rows, _ = tokens.shape
    seen = SetMembers(
        states=states[..., -trace, :].flatten(0, 1),
        sets=torch.arange(rows).repeat(K),
        domains=torch.arange(K).repeat_interleave(rows),
        logits=logits[..., -1, :].flatten(0, 1),
        answers=tokens[..., -1].flatten(),
        rows=torch.arange(K * rows),
    )
    return term.parts(seen).view(K, rows)


def _penalty(alignment: Penalised, states: Tensor, head: Tensor, tokens: Tensor, trace: int) -> Tensor:
    """sum_i c_i . s_i over the sequences of the step, whose gradient is that of the penalty.

    The step is one batch, so its statistics are those of the one forward (K * rows, T, d). Unlike a LoRA student's,
    the head is trained, and the penalty reaches it.
    """
    K, rows, length = tokens.shape
    # As in the trainer: the positions that predict the trace, or those of the prompt.
    looked_at = slice(length - 1 - trace, None) if alignment.looks_at == "completion" else slice(length - trace)
    following = tokens.flatten(0, 1)[:, 1:][:, looked_at]
    seen = SeenTokens(
        hidden=states[:, looked_at].flatten(0, 1),
        targets=following.flatten(),
        rows=torch.arange(K * rows).repeat_interleave(following.shape[1]),
        weights=torch.ones(K * rows),
        head=lambda hidden: F.linear(hidden, head),
        head_weight=head,
    )
    s = alignment.statistics(seen)
    domains = torch.arange(K).repeat_interleave(rows)
    c = alignment.pull(s.detach().double(), domains, torch.full((K * rows,), trace), K)
    return (c.to(s) * s).sum()


def _gradient_of(model: LabModel, tokens: Tensor, trace: int, domain: int) -> Tensor:
    """dL_k (P,) of one domain at the weights as they stand now, for alignments that move them within a step."""
    copies = grouped(model, 1)
    mine = tokens[domain : domain + 1]
    with torch.enable_grad():
        loss = _token_losses(model(copies, mine[..., :-1], last=trace)[0], mine, trace).mean()
    return torch.cat([gradient.flatten() for gradient in model.of_trained(_gradients(loss, copies)).values()])


def _gradients(loss: Tensor, copies: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the copies that want one."""
    leaves = {name: W for name, W in copies.items() if W.requires_grad}
    return dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()]), strict=True))


def _optimizer(model: LabModel, options: TrainOptions) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if options.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=options.lr, momentum=0.9)
    decay = 0.1 if options.optimizer == "adamw" else 0.0
    return torch.optim.AdamW(trained, lr=options.lr, weight_decay=decay)
