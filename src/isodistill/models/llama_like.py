"""Which models the layers written out for Llama fit: those of training and those of decoding."""

from __future__ import annotations

from transformers import PreTrainedModel

__all__ = ["why_not_llama_like"]

_CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def why_not_llama_like(model: PreTrainedModel) -> str | None:
    """Why a model (without a peft wrapper) computes otherwise than Llama does; None when it does not."""
    config = model.config
    if type(model).__name__ not in _CLASSES:
        return f"{type(model).__name__} is not one of {', '.join(_CLASSES)}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    if config.rope_parameters["rope_type"] not in _STATIC_ROPE:
        return f"its rotary embedding of type {config.rope_parameters['rope_type']} changes with the length"
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if sliding or (config.model_type == "mistral" and config.sliding_window is not None):
        return "it has sliding-window attention"
    return None
