"""Body and head called apart, for models that do more than one product behind their body."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
)

from isodistill.models.hidden import body_states, logits_of

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA_LIKE = SIZES | {"intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = [
    LlamaConfig(**LLAMA_LIKE),
    Gemma2Config(**LLAMA_LIKE, final_logit_softcapping=0.05),
    GraniteConfig(**LLAMA_LIKE, logits_scaling=7.0),
    GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0),
    OPTConfig(**SIZES, ffn_dim=16, word_embed_proj_dim=8, max_position_embeddings=600),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_the_head_apart_gives_the_logits_of_the_whole_model(config: PretrainedConfig) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(60, (2, 300))
    mask = torch.ones_like(ids)
    mask[1, 200:] = 0
    states = body_states(model, ids, mask)
    pieces = list(logits_of(model, states[mask.bool()]))
    assert [len(piece) for piece in pieces] == [256, 244]
    whole = model(input_ids=ids, attention_mask=mask).logits.detach()
    torch.testing.assert_close(torch.cat(pieces), whole[mask.bool()])
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, whole)  # nothing was left behind
