"""Flex-KD against learned projectors and other choices of dimensions, in small models trained from scratch.

    python studies/flexkd.py [--data FOLDER]

For each task and seed a teacher is trained, then students of 1/8 to 1 of its width under every method, all from the
same start on the same batches. A finished student is a line of docs/results/flexkd-runs.jsonl and is not made again;
docs/results/flexkd.json and the tables of docs/results/flexkd.md are made from these lines.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from flexkd_report import report
from flexkd_tasks import make_task
from torch import Tensor
from torch.nn import functional as F

from isodistill.data.files import append_log, read_log
from isodistill.numerics.divergences import divergence
from isodistill.terms import CKA, FeatureTerm, FlexKD, Projector
from isodistill.terms.scoring import DimensionScores, hidden_gradient, top_dimensions

LOG = Path("docs/results/flexkd-runs.jsonl")
TASKS = ("summaries", "topics", "instructions")
CORE = ("sft", "kd", "projector", "cka", "mse_first", "flexkd", "flexkd_kd")
CONTROLS = ("random", "lowest", "variance", "standardised_mse")
WIDTHS = ("sft", "kd", "projector", "cka", "mse_first", "flexkd")
SHARES = (4, 8, 2, 1)
"""Teacher widths over student widths: the first with all methods and controls, the others with those of ``WIDTHS``."""
BATCH = 32
REMOVED = (0.125, 0.25, 0.5, 0.75)


def main() -> None:
    """Train what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="Flex-KD and its rivals in small models.")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of data, teacher and students")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=None, help="some tasks alone")
    parser.add_argument("--data", type=Path, help="folder of the real data sets; without it no instructions")
    given = parser.parse_args()
    given.tasks = given.tasks or [name for name in TASKS if name != "instructions" or given.data]
    if "instructions" in given.tasks and not given.data:
        parser.error("the task instructions needs --data, the folder of the real data sets")
    torch.set_num_threads(1)
    done = {(r["task"], r["seed"], r["method"], r["share"]) for r in read_log(LOG)}
    for name in given.tasks:
        if given.seeds and (name, 0, "memory", SHARES[0]) not in done:
            append_log(LOG, memory_of_steps(name, given.data))
        if given.seeds and (name, 0, "scoring", SHARES[0]) not in done:
            append_log(LOG, cost_of_scoring(name, given.data))
    for share in SHARES:
        for name in given.tasks:
            for seed in given.seeds:
                methods = CORE + CONTROLS if share == SHARES[0] else WIDTHS
                missing = [m for m in methods if (name, seed, m, share) not in done]
                if missing or (name, seed, "teacher", 1) not in done:
                    one_teacher(given.data, name, seed, share, missing, (name, seed, "teacher", 1) in done)
                    done.add((name, seed, "teacher", 1))
                    report(read_log(LOG))
    report(read_log(LOG))


def one_teacher(data: Path | None, name: str, seed: int, share: int, methods: list[str], known: bool) -> None:
    """A teacher, made anew from its seed, and the students that it has to have."""
    task = make_task(name, seed, data)
    teacher = trained(task, task.width, seed, task.teacher_steps, task.many)
    scores = scored(task, teacher)
    if not known:
        append_log(LOG, about_teacher(task, teacher, scores, name, seed))
    for method in methods:
        term, kd = term_of(method)
        width = task.width // share
        if term is not None:
            term.setup([(width, task.width)], seed)
        if isinstance(term, FlexKD):
            term.choose([scores])
        began, r = time.process_time(), []
        student = trained(task, width, seed + 100, task.steps, task.train, teacher, term, kd, r)
        seconds = (time.process_time() - began) / task.steps
        record = {"task": name, "seed": seed, "method": method, "share": share, "metric": task.metric}
        numbers = {"value": round(task.judge(student), 6), "seconds_per_step": round(seconds, 6)}
        extra = 0 if term is None or term.learner is None else term.learner.size
        overlap = term.take_metrics().get("overlap_with_top_0") if isinstance(term, FlexKD) else None
        append_log(LOG, record | numbers | {"extra_parameters": extra, "overlap": overlap, "r": r})
        print(name, seed, method, share, numbers, flush=True)


def term_of(method: str) -> tuple[FeatureTerm | None, float]:
    """The term of a method, all with b = 1, and its factor of logit distillation at temperature 2."""
    if method in ("sft", "kd"):
        return None, 0.5 * (method == "kd")
    if method in ("projector", "cka"):
        return (Projector() if method == "projector" else CKA()), 0.0
    options: dict[str, Any] = {
        "mse_first": {"select": "first", "loss_form": "mse"},
        "standardised_mse": {"loss_form": "standardised_mse"},
        "flexkd": {},
        "flexkd_kd": {},
    }.get(method, {"select": method})
    return FlexKD(**options), 0.5 * (method == "flexkd_kd")


def trained(
    task: Any,
    width: int,
    seed: int,
    steps: int,
    rows: list[Any],
    teacher: Any = None,
    term: FeatureTerm | None = None,
    kd: float = 0.0,
    r: list[float] | None = None,
) -> Any:
    """A model trained from scratch: AdamW 3e-3, cosine to 0, batches in an order of the seed.

    ``r``: takes the mean correlation of Flex-KD's columns on held-out rows, before and after.
    """
    torch.manual_seed(seed)
    model = task.model(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if isinstance(term, FlexKD) and r is not None:
        r.append(correlation(task, model, teacher, term))
    for step, batch in enumerate(batches(task, rows, seed, steps)):
        loss = loss_of(task, model, teacher, batch, term, kd, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if term is not None:
            term.step()
    if isinstance(term, FlexKD) and r is not None:
        r.append(correlation(task, model, teacher, term))
    return model.eval()


def loss_of(
    task: Any, model: Any, teacher: Any, batch: dict[str, Tensor], term: FeatureTerm | None, kd: float, step: int
) -> Tensor:
    """The task's loss, the term and the logits' loss."""
    seen = task.see(model, batch)
    loss = F.cross_entropy(seen.logits, seen.targets)
    if term is not None or kd:
        with torch.no_grad():
            known = task.see(teacher, batch)
        if term is not None:
            loss = loss + term.b * term.loss(0, seen.features, known.features, step)
        if kd:
            p, q = (F.log_softmax(z / 2.0, 1) for z in (known.logits, seen.logits))
            loss = loss + kd * 4.0 * divergence("fkl", p, q).mean()
    return loss


def memory_of_steps(name: str, data: Path | None) -> dict[str, Any]:
    """Bytes that a step of every method holds at d_S / d_T = 1/4 and seed 0.

    Tensors kept for the backward, each storage once, the student's parameters among them; the teacher's parameters; and
    the parameters of the term with their gradients and both moments of AdamW.
    """
    task = make_task(name, 0, data)
    torch.manual_seed(0)
    teacher, student = task.model(task.width).eval(), task.model(task.width // SHARES[0])
    batch, found = task.batch(task.train[:BATCH]), {}
    scores = scored(task, teacher)
    for method in CORE + CONTROLS:
        term, kd = term_of(method)
        if term is not None:
            term.setup([(task.width // SHARES[0], task.width)], 0)
        if isinstance(term, FlexKD):
            term.choose([scores])
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of(task, student, teacher, batch, term, kd, 0)
        asks = term is not None or kd > 0
        beside = 4 * sum(p.numel() for p in teacher.parameters()) if asks else 0
        own = 0 if term is None or term.learner is None else 16 * term.learner.size
        found[method] = sum(kept.values()) + beside + own
        del loss
    return {"task": name, "seed": 0, "method": "memory", "share": SHARES[0], "bytes": found}


def cost_of_scoring(name: str, data: Path | None) -> dict[str, Any]:
    """Processor seconds of the scoring pass at seed 0, the median of five; the cost does not hang on the weights."""
    task = make_task(name, 0, data)
    torch.manual_seed(0)
    teacher, taken = task.model(task.width).eval(), []
    for _ in range(5):
        began = time.process_time()
        scored(task, teacher)
        taken.append(time.process_time() - began)
    return {"task": name, "seed": 0, "method": "scoring", "share": SHARES[0], "seconds": round(sorted(taken)[2], 6)}


def batches(task: Any, rows: list[Any], seed: int, steps: int) -> Iterator[dict[str, Tensor]]:
    """Epochs of shuffled rows, the same for all methods of a seed."""
    rng, waiting = random.Random(f"batches {seed}"), []
    for _ in range(steps):
        if len(waiting) < BATCH:
            waiting = rng.sample(rows, len(rows))
        yield task.batch([waiting.pop() for _ in range(BATCH)])


def scored(task: Any, teacher: Any) -> DimensionScores:
    """The teacher's dimensions on up to 512 training rows of the student."""
    scores = DimensionScores("abs", task.width)
    rows = task.train[:512]
    for i, start in enumerate(range(0, len(rows), BATCH)):
        batch = task.batch(rows[start : start + BATCH])
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels") if key in batch}
        g, h = hidden_gradient(teacher, inputs)
        scores.add(task.pooled(g, batch), task.pooled(h, batch), i % 2)
    return scores


@torch.no_grad()
def correlation(task: Any, student: Any, teacher: Any, term: FlexKD) -> float:
    """Mean r of the paired columns on test rows."""
    batch = task.batch(task.test[:256])
    term.loss(0, task.see(student, batch).features, task.see(teacher, batch).features, 0)
    return round(term.take_metrics()["r_0"], 6)


def about_teacher(task: Any, teacher: Any, scores: DimensionScores, name: str, seed: int) -> dict[str, Any]:
    """Its own result, what is left of it without its top or bottom dimensions, and the planted-subspace check."""
    order = scores.scores().argsort(descending=True, stable=True)
    curve = {
        f"{side} {share}": round(task.judge(teacher, order[:n] if side == "top" else order[len(order) - n :]), 6)
        for share in REMOVED
        for n in [round(share * len(order))]
        for side in ("top", "bottom")
    }
    whole = round(task.judge(teacher, torch.empty(0, dtype=torch.long)), 6)
    planted = None
    if name != "topics":  # BERT's pooler mixes all dimensions before its head
        kept = sorted(random.Random(f"planted {seed}").sample(range(task.width), task.width // 8))
        with torch.no_grad():
            ignored = torch.ones(task.width).index_fill(0, torch.tensor(kept), 0.0).bool()
            plain = teacher.lm_head.weight.detach().clone()
            teacher.lm_head.weight[:, ignored] = 0.0
            planted = top_dimensions(scored(task, teacher).scores(), len(kept)).tolist() == kept
            teacher.lm_head.weight.copy_(plain)
    return {
        "task": name, "seed": seed, "method": "teacher", "share": 1, "metric": task.metric,
        "value": round(task.judge(teacher), 6), "whole": whole, "curve": curve, "planted": planted,
        "halves_agree": round(scores.agreement(task.width // 4), 6),
    }  # fmt: skip


if __name__ == "__main__":
    main()
