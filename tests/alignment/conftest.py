"""A peft model small enough for dense oracles."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def peft_model() -> Any:
    """One Llama block of width 16 with LoRA r 2 on every linear, B away from zero, vocabulary 64."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        lora = LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(LlamaForCausalLM(config), lora)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data = torch.randn(p.shape)
    return model
