"""What the student is taught on each token."""

from __future__ import annotations

from collections.abc import Callable

from isodistill.objectives.base import Objective, StudentOutput, TeacherOutput, TrainedTokens
from isodistill.objectives.ce import CrossEntropy
from isodistill.objectives.distillation import JSD, Distillation, ForwardKL, ReverseKL, Skew
from isodistill.objectives.multitask import LabelMultitask
from isodistill.objectives.steps import StepSettings
from isodistill.objectives.vcrd import VCRD, token_delta, validity_weight

__all__ = [
    "JSD",
    "OBJECTIVES",
    "VCRD",
    "CrossEntropy",
    "Distillation",
    "ForwardKL",
    "LabelMultitask",
    "Objective",
    "ReverseKL",
    "Skew",
    "StepSettings",
    "StudentOutput",
    "TeacherOutput",
    "TrainedTokens",
    "token_delta",
    "validity_weight",
]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "ce": CrossEntropy,
    "label_multitask": LabelMultitask,
    "fkl": ForwardKL,
    "rkl": ReverseKL,
    "jsd": JSD,
    "skew": Skew,
    "vcrd": VCRD,
}
