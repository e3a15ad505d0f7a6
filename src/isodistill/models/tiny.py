"""A student made on the spot: random weights and a tokenizer trained on the run's own texts, for smoke runs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill.models.load import Student

__all__ = ["TINY", "make_tiny_student"]

TINY = "tiny"
_END = "<|end|>"
_SPREAD = 0.3


def make_tiny_student(texts: Iterable[str], seed: int) -> Student:
    """A Llama of 2 layers and width 128 (about 0.6 M parameters) that has learned nothing yet.

    Args:
        texts: what the byte-level BPE tokenizer (at most 800 tokens) is trained on.
        seed: of the weights.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=[_END, "<|pad|>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=_END, pad_token="<|pad|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        # Both stay frozen under LoRA: with the usual 0.02 no hidden state could ever make a sharp prediction.
        for weight in (model.lm_head.weight, model.model.embed_tokens.weight):
            weight.data.normal_(0.0, _SPREAD)
    return Student(model, tokenizer, "tiny, made on the spot")
