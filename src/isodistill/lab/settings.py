"""What one run of the laboratory is made of; the one place for its names and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from isodistill.errors import UserError

__all__ = ["LabSettings", "TaskOptions", "TrainOptions"]


@dataclass(frozen=True)
class TaskOptions:
    """The task; see `isodistill.lab.task`.

    Attributes:
        domains: K, surfaces that are trained.
        cue: conflict (one set of tokens, another meaning on every surface) or private (own tokens on every surface).
        rho: probability that a training row's cue tells its answer.
        words: words of each surface; the more, the longer it takes to recognise a surface.
        operations: kinds of the second operation: 1 (a subtraction) or 2, so that the logic is learned later.
        train_problems: distinct training problems; 0 takes all that are not kept for tests.
        test_problems: problems of the tests.
        valid_problems: problems kept from training to select by; 0 keeps none.
        without: a surface among the K that is left out of training; -1 leaves none out.
        sets: a step tells the same problems on all its surfaces (isomer sets) instead of other problems on each.
    """

    domains: int = 8
    cue: str = "conflict"
    rho: float = 1.0
    words: int = 40
    operations: int = 1
    train_problems: int = 0
    test_problems: int = 200
    valid_problems: int = 0
    without: int = -1
    sets: bool = False

    def __post_init__(self) -> None:
        if self.domains < 2:
            raise UserError(f"task.domains is {self.domains}; it must be at least 2.")
        if self.cue not in ("conflict", "private"):
            raise UserError(f"task.cue is {self.cue!r}; choose one of conflict, private.")
        if not 0 <= self.rho <= 1:
            raise UserError(f"task.rho is {self.rho}; it is a probability, 0 to 1.")
        if self.words < 1:
            raise UserError(f"task.words is {self.words}; it must be at least 1.")
        if self.operations not in (1, 2):
            raise UserError(f"task.operations is {self.operations}; it must be 1 or 2.")
        if self.train_problems < 0:
            raise UserError(f"task.train_problems is {self.train_problems}; it must be at least 0 (all).")
        if self.test_problems < 2:
            raise UserError(f"task.test_problems is {self.test_problems}; it must be at least 2.")
        if self.valid_problems < 0:
            raise UserError(f"task.valid_problems is {self.valid_problems}; it must be at least 0 (none).")
        if not -1 <= self.without < self.domains:
            raise UserError(
                f"task.without is {self.without}; it is a surface, 0 to {self.domains - 1}, or -1 for none."
            )


@dataclass(frozen=True)
class TrainOptions:
    """The training.

    Attributes:
        steps: optimizer steps.
        rows: rows of every domain in a step.
        lr: learning rate, constant after a linear warm-up over the first 5 % of the steps.
        optimizer: adam, adamw (weight decay 0.1) or sgd (momentum 0.9).
        width: of the transformer.
        layers: of the transformer.
        warm: steps of ERM on all weights that come before, with random cues and the defaults of lr and optimizer.
        lora: rank of LoRA on the matrices of the blocks, which alone are trained then; 0 trains all weights.
    """

    steps: int = 600
    rows: int = 8
    lr: float = 3e-3
    optimizer: str = "adam"
    width: int = 96
    layers: int = 2
    warm: int = 0
    lora: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "adamw", "sgd"):
            raise UserError(f"train.optimizer is {self.optimizer!r}; choose one of adam, adamw, sgd.")
        for name, value in (("steps", self.steps), ("rows", self.rows), ("layers", self.layers)):
            if value < 1:
                raise UserError(f"train.{name} is {value}; it must be at least 1.")
        for name, value in (("warm", self.warm), ("lora", self.lora)):
            if value < 0:
                raise UserError(f"train.{name} is {value}; it must be at least 0 (none).")
        if self.width < 8 or self.width % 8:
            raise UserError(f"train.width is {self.width}; it must be a multiple of 8.")
        if self.lr <= 0:
            raise UserError(f"train.lr is {self.lr:g}; it must be above 0.")


@dataclass(frozen=True)
class LabSettings:
    """One run.

    Attributes:
        method: preset, as in a recipe: erm, iga, ...
        alignment: options of the method, as in a recipe.
        term: likewise.
        task: the task.
        train: the training.
        seed: of the task, the student, the order of the problems and the tests.
    """

    method: str = "iga"
    alignment: dict[str, Any] | None = None
    term: dict[str, Any] | None = None
    task: TaskOptions = field(default_factory=TaskOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    seed: int = 0
