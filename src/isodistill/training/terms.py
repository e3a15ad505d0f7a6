"""From the term of a recipe to its place in a training."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from isodistill.terms import PRADA, FeatureTerm, IsomerConsistency, Term
from isodistill.training.adversary import Adversary
from isodistill.training.config import DistillConfig
from isodistill.training.feature_term import FeatureStep
from isodistill.training.rows import AnyRows, plain_rows
from isodistill.training.set_term import SetTerm
from isodistill.training.step_term import StepTerm

__all__ = ["open_term"]


def open_term(
    trainer: Any,
    term: Term | None,
    model: PeftModel,
    target: AnyRows | None,
    args: DistillConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> StepTerm:
    """The term as the training step asks it, before the rows are encoded; ``prada`` gives the student its prompt.

    Args:
        trainer: the ``DistillTrainer``, not yet made.
        term: None, or one that is neutral, adds nothing.
        model: the student.
        target: rows whose prompts alone are read, for ``prada``.
        args: of the training.
        tokenizer: of the student.
    """
    if isinstance(term, PRADA) and not term.is_neutral:
        rows = plain_rows(target, args.max_refused, None)[0] if target else []
        return Adversary(trainer, term, model, rows, args, tokenizer)
    if isinstance(term, FeatureTerm) and not term.is_neutral:
        return FeatureStep(trainer, args, term)
    if isinstance(term, IsomerConsistency) and not term.is_neutral:
        return SetTerm(trainer, args, term)
    return StepTerm(trainer, args)
