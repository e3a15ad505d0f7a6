"""What the student is taught on each token."""

from __future__ import annotations

from collections.abc import Callable

from isodistill.objectives.base import Objective, StudentOutput, TeacherOutput, TopK, TrainedTokens
from isodistill.objectives.ce import CrossEntropy
from isodistill.objectives.distillation import JSD, Distillation, ForwardKL, ReverseKL, Skew
from isodistill.objectives.vcrd import VCRD, token_delta, validity_weight

__all__ = [
    "JSD",
    "OBJECTIVES",
    "VCRD",
    "CrossEntropy",
    "Distillation",
    "ForwardKL",
    "Objective",
    "ReverseKL",
    "Skew",
    "StudentOutput",
    "TeacherOutput",
    "TopK",
    "TrainedTokens",
    "token_delta",
    "validity_weight",
]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "ce": CrossEntropy,
    "fkl": ForwardKL,
    "rkl": ReverseKL,
    "jsd": JSD,
    "skew": Skew,
    "vcrd": VCRD,
}
