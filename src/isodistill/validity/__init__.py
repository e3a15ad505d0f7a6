"""How valid a proposed step is: where steps end, who scores them, and what is kept of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeAlias

from isodistill.errors import UserError
from isodistill.validity.base import Action, Scorer
from isodistill.validity.judge import JudgeScorer
from isodistill.validity.likelihood import TeacherLikelihood
from isodistill.validity.reward import ProcessRewardModel, load_reward_model
from isodistill.validity.rollout import RolloutScorer
from isodistill.validity.rules import RuleScorer
from isodistill.validity.scoring import Scoring
from isodistill.validity.segment import segment, stops, text_ends, token_steps, written_ends

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "SCORERS",
    "Action",
    "JudgeScorer",
    "ProcessRewardModel",
    "RolloutScorer",
    "RuleScorer",
    "Scorer",
    "Scoring",
    "TeacherLikelihood",
    "make_scorer",
    "segment",
    "stops",
    "text_ends",
    "token_steps",
    "written_ends",
]

Reader: TypeAlias = "tuple[PreTrainedModel, PreTrainedTokenizerBase]"
"""A model with its tokenizer."""

SCORERS: dict[str, Callable[..., Scorer]] = {
    "likelihood": TeacherLikelihood,
    "rule": RuleScorer,
    "rollout": RolloutScorer,
    "reward": load_reward_model,
    "judge": JudgeScorer,
}


def make_scorer(options: Mapping[str, Any], teacher: Callable[[], Reader | None], base: Callable[[], Reader]) -> Scorer:
    """The scorer that ``steps.scorer`` of a recipe describes; a judge is made by the pipeline, which knows teachers.

    Args:
        options: its ``name`` and options; ``rollout`` also knows ``by``: who completes, the ``teacher`` (default) or
            the student's ``base``, as it was before training.
        teacher: gives the teacher as a whole model; None where there is none.
        base: gives the student's base model.

    Raises:
        UserError: an unknown name or option, a refused value, or a scorer that needs a teacher without one.
    """
    given = dict(options)
    name = str(given.pop("name"))
    if name not in SCORERS:
        near = get_close_matches(name, list(SCORERS), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"Unknown steps.scorer.name {name!r}.{hint} Known: {', '.join(SCORERS)}.")
    if name == "judge":
        raise UserError(
            "A judge asks a teacher: give DistillTrainer a JudgeScorer, or run the recipe by isodistill run."
        )
    readers: tuple[Any, ...] = ()
    if name in ("likelihood", "rollout"):
        by = given.pop("by", "teacher") if name == "rollout" else "teacher"
        if by not in ("teacher", "base"):
            raise UserError(f"steps.scorer.by is {by!r}; choose teacher or base.")
        reader = teacher() if by == "teacher" else base()
        if reader is None:
            raise UserError(f"The scorer {name} asks the teacher: set teacher (in Python teacher_model) to a model.")
        readers = reader
    known = list(inspect.signature(SCORERS[name]).parameters)[len(readers) :]
    for key in given:
        if key not in known and name != "reward":
            raise UserError(f"Unknown option steps.scorer.{key} of {name}. Known: {', '.join(known) or 'none'}.")
    try:
        return SCORERS[name](*readers, **given)
    except (TypeError, ValueError) as error:
        raise UserError(f"The scorer {name} refuses its options: {error}.") from error
