"""ang-DEN on streams of MNIST and of small digits: nodes by angle, l2 and chance at equal growth, and rivals.

    python studies/drift.py --data FOLDER

Every run is a line of docs/results/drift-runs.jsonl and is not run again; the records of docs/results/drift.json and a
section of docs/results/drift.md are made from it. ``--runs 0`` only writes these.
"""

from __future__ import annotations

import argparse
import base64
import copy
import functools
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drift_page
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isodistill.continual import AngularDEN, DenOptions, GrowingMLP, SplitRule
from isodistill.data.files import append_log, read_log
from isodistill.evaluation.accuracy_matrix import average_accuracy, backward_transfer, forgetting

NAME, RESULTS = "drift.py", Path("docs/results")
HIDDEN, TASKS, SEEDS, CLASSES = [64, 64], 10, (0, 1, 2), 10
N_TRAIN, STEPS, BATCH, LR = 1000, 250, 64, 1e-3
LABELS = {
    "angular": "ang-DEN, top tenth by angle",
    "l2": "DEN, top tenth by l2",
    "random_nodes": "DEN, a random tenth",
    "angular_den": "ang-DEN as it comes: expansion, then at most 10 a layer above 0.1 pi",
    "l2_den": "DEN as it comes: expansion, then at most 10 a layer above l2 0.05",
    "no_split": "DEN without splits",
    "ewc": "EWC, lam 100, per-sample Fisher",
    "si": "SI, c 0.1, xi 0.1",
    "lwf": "LwF, alpha 1, T 2",
    "l2_penalty": "l2 penalty, lam 1",
    "none": "fine-tuning",
    "joint": "joint training (all data)",
}
METRICS = ("acc", "bwt", "forgetting", "growth")
RIVALS = ("l2", "random_nodes", "none")

Task = tuple[Tensor, Tensor, Tensor, Tensor]
Run = dict[str, Any]


def main() -> None:
    """Run what is missing, then write the records and the table."""
    parser = argparse.ArgumentParser(description="ang-DEN and rivals on streams made of MNIST.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    log = RESULTS / "drift-runs.jsonl"
    runs = read_log(log)
    done = {(run["setting"], run["method"], run["seed"]) for run in runs}
    planned = [(setting, method, seed) for setting in SETTINGS for seed in SEEDS for method in LABELS]
    missing = [run for run in planned if run not in done]
    for setting, method, seed in missing[: given.runs]:
        _, read, make = SETTINGS[setting]
        R, growth = METHODS[method](make(read(given.data), seed), seed)
        numbers = {"acc": average_accuracy(R), "bwt": backward_transfer(R), "forgetting": forgetting(R)}
        run = {"setting": setting, "method": method, "seed": seed, **numbers, "growth": growth, "R": R}
        append_log(log, run)
        runs.append(run)
        print(f"{setting}, {method}, seed {seed}: ACC {run['acc']:.3f}, growth {growth:.2f}", flush=True)
    records = collect(runs)
    drift_page.write(RESULTS, NAME, records, table(records))


@functools.cache
def read_images(data: Path) -> Task:
    """Training and test pixels (N, 784) and digits (N,)."""
    found: list[Tensor] = []
    folder = data / "continual" / "mnist_binary"
    for split in ("train", "test"):
        with gzip.open(folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        bits = np.stack([np.unpackbits(np.frombuffer(base64.b64decode(r["bits"]), np.uint8)) for r in rows])
        found += [torch.from_numpy(bits).float(), torch.tensor([int(r["label"]) for r in rows])]
    return found[0], found[1], found[2], found[3]


@functools.cache
def read_digits(data: Path) -> Task:
    """The digits of scikit-learn, as they lie in a set of images with captions: pixels (N, 64) in 0 to 1."""
    found: list[Tensor] = []
    for split in ("train", "test"):
        with gzip.open(data / "pairs" / "digits_captions" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        found += [torch.tensor([r["image"] for r in rows]).float() / 16, torch.tensor([int(r["label"]) for r in rows])]
    return found[0], found[1], found[2], found[3]


def permuted(images: Task, seed: int) -> list[Task]:
    """Ten tasks, each with its own order of the pixels and its own training rows; the seed draws both."""
    x, y, x_test, y_test = images
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for _ in range(TASKS):
        rows = torch.randperm(len(x), generator=generator)[:N_TRAIN]
        pixels = torch.randperm(x.shape[1], generator=generator)
        tasks.append((x[rows][:, pixels], y[rows], x_test[:, pixels], y_test))
    return tasks


def rotated(images: Task, seed: int) -> list[Task]:
    """Ten tasks, the images turned by 0 to 162 degrees; the seed draws the order of the angles and the rows."""
    x, y, x_test, y_test = images
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for turn in torch.randperm(TASKS, generator=generator).tolist():
        rows = torch.randperm(len(x), generator=generator)[:N_TRAIN]
        tasks.append((turned(x[rows], 18 * turn), y[rows], turned(x_test, 18 * turn), y_test))
    return tasks


def turned(x: Tensor, degrees: float) -> Tensor:
    """Images (N, 784) turned about their middle, the nearest pixel taken."""
    a = math.radians(degrees)
    matrix = torch.tensor([[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]])
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), [len(x), 1, 28, 28], align_corners=False)
    return F.grid_sample(x.view(-1, 1, 28, 28), grid, mode="nearest", align_corners=False).flatten(1)


def split(images: Task, seed: int) -> list[Task]:
    """Five tasks of two digits each; the seed draws the pairs, their order and the rows."""
    generator = torch.Generator().manual_seed(seed)
    return two_digits(images, torch.randperm(10, generator=generator).view(5, 2), generator)


def split_twice(images: Task, seed: int) -> list[Task]:
    """Ten tasks of two digits, each digit in two of them: neighbours in a circle that the seed draws, in any order."""
    generator = torch.Generator().manual_seed(seed)
    circle = torch.randperm(10, generator=generator)
    pairs = torch.stack([circle, circle.roll(-1)], 1)
    return two_digits(images, pairs[torch.randperm(10, generator=generator)], generator)


def two_digits(images: Task, pairs: Tensor, generator: torch.Generator) -> list[Task]:
    """A task for each pair (n, 2) of digits: which of the two is it?"""
    x, y, x_test, y_test = images
    tasks = []
    for one, other in pairs.tolist():
        mine, asked = ((digits == one) | (digits == other) for digits in (y, y_test))
        rows = mine.nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)[:N_TRAIN]]
        tasks.append((x[rows], (y[rows] == other).long(), x_test[asked], (y_test[asked] == other).long()))
    return tasks


SETTINGS: dict[str, tuple[str, Callable[[Path], Task], Callable[[Task, int], list[Task]]]] = {
    "permuted": ("permuted MNIST, 10 tasks of 1,000 rows, task-incremental", read_images, permuted),
    "rotated": ("rotated MNIST, 10 tasks of 1,000 rows, task-incremental", read_images, rotated),
    "split": ("split MNIST, 5 tasks of two digits and at most 1,000 rows, task-incremental", read_images, split),
    "split_twice": (
        "split MNIST, 10 tasks of two digits (each digit in two) and at most 1,000 rows, task-incremental",
        read_images,
        split_twice,
    ),
    "digits": ("split digits of scikit-learn, 5 tasks of two digits, task-incremental", read_digits, split),
    "digits_permuted": (
        "permuted digits of scikit-learn, 10 tasks of 1,000 rows, task-incremental",
        read_digits,
        permuted,
    ),
}
"""Setting -> label, what reads its images, and what makes its tasks from them and a seed."""


def den(rule: SplitRule, expand: int = 0) -> Callable[[list[Task], int], tuple[list[list[float]], float]]:
    """A run of DEN with a rule; ``expand`` units are added to each layer first where a task asks for more."""

    def run(tasks: list[Task], seed: int) -> tuple[list[list[float]], float]:
        options = DenOptions(rule=rule, steps=STEPS, head_steps=50, short_steps=25, batch=BATCH, lr=LR, expand=expand)
        learner, R, sizes = AngularDEN([tasks[0][0].shape[1], *HIDDEN], options, seed), [], []
        for i, (x, y, _, _) in enumerate(tasks):
            learner.learn(x, y, CLASSES)
            sizes.append(sum(W.numel() for W in learner.model.W))
            R.append([learner.accuracy(tasks[j][2], tasks[j][3], j) for j in range(i + 1)])
        return R, sizes[-1] / sizes[0]

    return run


def fixed(kind: str) -> Callable[[list[Task], int], tuple[list[list[float]], float]]:
    """A run of a network that does not grow: no penalty, EWC, SI or l2 on the body, LwF, or joint training."""

    def run(tasks: list[Task], seed: int) -> tuple[list[list[float]], float]:
        generator = torch.Generator().manual_seed(seed)
        model, R = GrowingMLP([tasks[0][0].shape[1], *HIDDEN], generator), []
        anchors: list[tuple[list[Tensor], list[Tensor]]] = []
        importance = [torch.zeros_like(p) for p in (*model.W, *model.b)]
        if kind == "joint":
            for _ in tasks:
                model.add_head(CLASSES, generator)
            fit(model, tasks, range(len(tasks)), anchors, generator)
            accuracies = [accuracy(model, task, j) for j, task in enumerate(tasks)]
            return [accuracies[: i + 1] for i in range(len(tasks))], 1.0
        for i, task in enumerate(tasks):
            model.add_head(CLASSES, generator)
            start = [p.detach().clone() for p in (*model.W, *model.b)]
            path = fit(model, tasks, [i], anchors, generator, kind)
            if kind == "si":  # xi and c are the authors'; one quadratic around the latest weights
                body = [*model.W, *model.b]
                moved = zip(importance, path, body, start, strict=True)
                importance = [(Om + w / ((p.detach() - p0) ** 2 + 0.1)).clamp(min=0) for Om, w, p, p0 in moved]
                anchors = [([2 * 0.1 * Om for Om in importance], [p.detach().clone() for p in body])]
            elif kind in ("ewc", "l2_penalty"):
                anchors.append(anchor(model, task, i, kind))
            R.append([accuracy(model, tasks[j], j) for j in range(i + 1)])
        return R, 1.0

    return run


def fit(
    model: GrowingMLP, tasks: list[Task], seen: Any, anchors: Any, generator: torch.Generator, kind: str = "none"
) -> list[Tensor]:
    """As many steps per task as DEN takes; the penalty is (1/2) sum F (W - W*)^2 over the anchors.

    Returns:
        For SI the path integral of every tensor of the body, else zeros.
    """
    body = [*model.W, *model.b]
    path = [torch.zeros_like(p) for p in body]
    old = copy.deepcopy(model) if kind == "lwf" else None
    trained = range(len(model.heads)) if kind == "lwf" else seen
    heads = [p for t in trained for p in (model.heads[t], model.head_biases[t])]
    optimizer = torch.optim.Adam([*body, *heads], lr=LR)
    order = torch.randperm((STEPS + 50) * len(seen), generator=generator) % len(seen)
    for t in (seen[int(k)] for k in order):
        x, y = tasks[t][:2]
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(x[rows], t), y[rows])
        if kind == "si":
            g, before = torch.autograd.grad(loss, body, retain_graph=True), [p.detach().clone() for p in body]
        if old is not None:
            loss = loss + sum(kept(model, old, x[rows], head) for head in range(t))
        for weights, star in anchors:
            loss = loss + sum((w * (p - o).square()).sum() for w, p, o in zip(weights, body, star, strict=True)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if kind == "si":
            with torch.no_grad():
                for w, g_p, p, p0 in zip(path, g, body, before, strict=True):
                    w -= g_p * (p - p0)
    return path


def kept(model: GrowingMLP, old: GrowingMLP, x: Tensor, head: int, T: float = 2.0) -> Tensor:
    """T^2 KL of an old head's answers: as they were before this task, against as they are."""
    with torch.no_grad():
        p = torch.softmax(old(x, head) / T, 1)
    return T**2 * F.kl_div(torch.log_softmax(model(x, head) / T, 1), p, reduction="batchmean")


def anchor(model: GrowingMLP, task: Task, t: int, kind: str) -> tuple[list[Tensor], list[Tensor]]:
    """The body as it stands, and how firmly each entry is held: lam F from 200 single rows, or 1."""
    body = [*model.W, *model.b]
    weights = [torch.ones_like(p) if kind == "l2_penalty" else torch.zeros_like(p) for p in body]
    for n in range(200 if kind == "ewc" else 0):
        loss = F.cross_entropy(model(task[0][n : n + 1], t), task[1][n : n + 1])
        for w, g in zip(weights, torch.autograd.grad(loss, body), strict=True):
            w += 100 / 200 * g.square()
    return weights, [p.detach().clone() for p in body]


@torch.no_grad()
def accuracy(model: GrowingMLP, task: Task, t: int) -> float:
    """Share of right answers on the test rows of a task."""
    return float((model(task[2], t).argmax(1) == task[3]).double().mean())


METHODS = {
    "angular": den(SplitRule(mode="quantile")),
    "l2": den(SplitRule(metric="l2", mode="quantile")),
    "random_nodes": den(SplitRule(metric="random", mode="quantile")),
    "angular_den": den(SplitRule(), expand=10),
    "l2_den": den(SplitRule(metric="l2", threshold=0.05), expand=10),
    "no_split": den(SplitRule(threshold=math.pi)),
    **{kind: fixed(kind) for kind in ("ewc", "si", "lwf", "l2_penalty", "none", "joint")},
}


def collect(runs: list[Run]) -> list[Run]:
    """One record per setting, method and metric; differences are paired by seed, and more is better."""
    found: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        found.setdefault((run["setting"], run["method"]), {})[run["seed"]] = run
    records = []
    for setting, (label, read, _) in SETTINGS.items():
        runs_here = {method: by_seed for (name, method), by_seed in found.items() if name == setting}
        n = 784 if read is read_images else 64
        command = f"python studies/{NAME} --data FOLDER"
        head = {"setting": label, "student": f"lab, MLP {n}-{'-'.join(map(str, HIDDEN))}", "command": command}
        for method in (m for m in LABELS if m in runs_here):
            records += [drift_page.record(runs_here, method, metric, RIVALS, head) for metric in METRICS]
    return records


def table(records: list[Run]) -> str:
    """A table for each setting, one row per method."""
    lines: list[str] = []
    for label, _, _ in SETTINGS.values():
        found = {(r["method"], r["metric"]): r for r in records if r["setting"] == label}
        if not found:
            continue
        lines += [
            "",
            f"#### {label[0].upper()}{label[1:]}",
            "",
            "| method | ACC | BWT | forgetting | growth | ACC above l2 by | ACC above fine-tuning by |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for method, name in LABELS.items():
            if (method, "acc") in found:
                apart = found[method, "acc"]["diff_to"]
                cells = [
                    *(drift_page.spread(found[method, m]) for m in METRICS),
                    *(drift_page.difference(apart.get(r)) for r in ("l2", "none")),
                ]
                lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


if __name__ == "__main__":
    main()
