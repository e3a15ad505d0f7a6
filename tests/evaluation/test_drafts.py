"""Guessed tokens: what is guessed, and that a greedy answer stays what it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from isodistill.evaluation import drafts, llama
from isodistill.evaluation.drafts import Drafts
from isodistill.evaluation.generate import generate
from isodistill.evaluation.llama import LlamaDecoder

SONG = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]


def test_a_guess_follows_what_was_seen_twice_and_no_longer() -> None:
    table = Drafts()
    table.learn(SONG, len(SONG))
    assert table.guess(SONG[:6], 4) == []
    table.learn(SONG[:9], 9)
    assert table.guess([99, *SONG[:6]], 9) == [17, 18, 19]
    assert table.guess(SONG[:6], 2) == [17, 18]
    assert table.guess(SONG[:6], 0) == []
    assert table.guess(SONG[1:6], 4) == []


def test_another_continuation_takes_its_place_only_when_seen_as_often() -> None:
    table = Drafts()
    for song in (SONG[:7], SONG[:7], [*SONG[:6], 30]):
        table.learn(song, 1)
    assert table.guess(SONG[:6], 4) == []
    table.learn([*SONG[:6], 30], 1)
    assert table.guess(SONG[:6], 4) == [30]


def tiny(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=12, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    model.generation_config.pad_token_id = 0
    return model


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("context", [1, 2, 4])
def test_right_and_wrong_guesses_leave_the_answers_as_they_are(
    batch_size: int, context: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve tokens and short contexts, so that many guesses are made and many are wrong."""
    model, stops = tiny(3), [5, 7]
    prompts = [[1 + i % 3, 2 + i % 5, 3][: 1 + i % 3] for i in range(20)]
    monkeypatch.setattr(drafts, "_CONTEXT", 99)
    expected = generate(model, tokenizer, prompts, max_new_tokens=40, stop_ids=stops, batch_size=batch_size)
    lengths: list[int] = []
    undone: list[int] = []
    step, undo = LlamaDecoder.step, LlamaDecoder.undo
    monkeypatch.setattr(LlamaDecoder, "step", lambda d, runs: (lengths.extend(map(len, runs)), step(d, runs))[1])
    monkeypatch.setattr(LlamaDecoder, "undo", lambda d, counts: (undone.extend(counts), undo(d, counts))[1])
    monkeypatch.setattr(drafts, "_CONTEXT", context)
    answers = generate(model, tokenizer, prompts, max_new_tokens=40, stop_ids=stops, batch_size=batch_size)
    assert [(a.tokens, a.finish) for a in answers] == [(e.tokens, e.finish) for e in expected]
    guessed, wrong = sum(lengths) - len(lengths), sum(undone)
    assert 0 < wrong < guessed


def test_every_position_of_a_run_has_the_logits_of_a_plain_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "_BLOCK", 4)
    model = tiny(1)
    rows, runs = [[1, 2, 3], [1, 2, 4, 5, 6], [1, 2, 7]], [[8, 9, 10], [3], [4, 4]]
    with torch.no_grad():
        decoder = LlamaDecoder(model, slots=3, prefix=[1, 2])
        decoder.prefill(rows)
        logits = decoder.step(runs)
        plain = [model(torch.tensor([row + run])).logits[0, len(row) :] for row, run in zip(rows, runs, strict=True)]
        torch.testing.assert_close(logits, torch.cat(plain), atol=1e-4, rtol=1e-5)
        decoder.undo([2, 0, 1])
        rows = [[1, 2, 3, 8], [1, 2, 4, 5, 6, 3], [1, 2, 7, 4]]
        logits = decoder.step([[5], [6], [7]])
        plain = [model(torch.tensor([[*row, t]])).logits[0, -1:] for row, t in zip(rows, (5, 6, 7), strict=True)]
        torch.testing.assert_close(logits, torch.cat(plain), atol=1e-4, rtol=1e-5)
