"""What a training starts from: the base with a new adapter, or the student of the stage before."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from isodistill.models.load import add_lora
from isodistill.recipe import Recipe
from isodistill.training.slots import fill_guard

__all__ = ["start_of"]


def start_of(
    recipe: Recipe, base: PreTrainedModel, lora: LoraConfig, earlier: Path | None
) -> tuple[PreTrainedModel | PeftModel, LoraConfig | None]:
    """The model to train, and the adapter that it still needs.

    Args:
        recipe: of the run, or of one stage.
        base: the student's base.
        lora: settings of a new adapter.
        earlier: folder of the stage before; None in the first one.
    """
    if earlier is None:
        return base, lora
    if not fill_guard(recipe.guard)[0].fresh_adapter:
        return PeftModel.from_pretrained(base, earlier / "student", is_trainable=True), None
    student = PeftModel.from_pretrained(base, earlier / "student")
    n_stages = student.peft_config["default"].r // lora.r
    # Another seed in every stage: from the same one, A would begin in the subspace of the earlier A.
    return add_lora(student.merge_and_unload(), lora, recipe.seed + n_stages), None
