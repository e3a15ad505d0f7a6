"""Generation against ``model.generate`` and plain forwards of tiny models made in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from isodistill.errors import UserError
from isodistill.evaluation import llama
from isodistill.evaluation.generate import Generation, generate, merged_copy
from isodistill.evaluation.llama import LlamaDecoder, why_not_llama

VOCAB, CONTEXT, STOPS = 64, 48, (2, 9)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}


def make(kind: str, seed: int = 1) -> PreTrainedModel:
    """A random fp32 model with weights large enough for answers that vary, ending at tokens 2 and 9."""
    torch.manual_seed(seed)
    model: PreTrainedModel = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
        "llama_biased_tied": lambda: LlamaForCausalLM(
            LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=16)
        ),
        "llama3_rope": lambda: LlamaForCausalLM(
            LlamaConfig(
                **SHAPE,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
            )
        ),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
        "mistral_sliding": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=CONTEXT)
        ),
    }[kind]()
    for name, parameter in model.named_parameters():
        is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
        parameter.data.uniform_(0.5, 1.5) if is_norm_weight else parameter.data.normal_(0, 0.3)
    model.generation_config.eos_token_id = list(STOPS)
    model.generation_config.pad_token_id = 0
    return model.eval()


LAYER_BY_LAYER = ["llama", "llama_biased_tied", "llama3_rope", "mistral", "qwen2"]
OWN_FORWARD = ["mistral_sliding", "gpt2"]


def word_tokenizer(eos: int) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{eos}", pad_token="w0")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(eos=2)


def mixed_prompts(n: int, shared: int = 3, longest: int = 20, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    prefix = [rng.randrange(10, VOCAB) for _ in range(shared)]
    return [prefix + [rng.randrange(10, VOCAB) for _ in range(rng.randrange(1, longest))] for _ in range(n)]


def by_transformers(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, stops: Sequence[int] = STOPS
) -> list[list[int]]:
    """What ``model.generate`` answers to a left-padded batch, up to the first stop token."""
    width = max(map(len, prompts))
    out = model.generate(
        input_ids=torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    answers = out[:, width:].tolist()
    ends = [next((i for i, token in enumerate(a) if token in stops), max_new_tokens) for a in answers]
    return [answer[:end] for answer, end in zip(answers, ends, strict=True)]


def tokens(answers: Sequence[Generation]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize("kind", LAYER_BY_LAYER + OWN_FORWARD)
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_greedy_answers_are_those_of_model_generate(kind: str, batch_size: int, tokenizer: Any) -> None:
    model, prompts = make(kind), mixed_prompts(23)
    expected = by_transformers(model, prompts, 15)
    answers = generate(model, tokenizer, prompts, max_new_tokens=15, batch_size=batch_size)
    assert tokens(answers) == expected
    assert len({len(answer) for answer in expected}) > 2, "answers must end at different lengths"
    assert [a.finish for a in answers] == ["length" if len(e) == 15 else "eos" for e in expected]
    assert [a.text for a in answers] == [tokenizer.decode(e, skip_special_tokens=True) for e in expected]


@pytest.mark.parametrize("kind", LAYER_BY_LAYER + OWN_FORWARD)
def test_which_models_run_layer_by_layer(kind: str) -> None:
    assert (why_not_llama(make(kind)) is None) == (kind in LAYER_BY_LAYER)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("lengths", [[1], [1, 1], [1, 9], [CONTEXT - 15, 1, 7], [CONTEXT - 15] * 3])
def test_prompts_of_one_token_and_at_the_context_limit(kind: str, lengths: list[int], tokenizer: Any) -> None:
    model, rng = make(kind), random.Random(1)
    prompts = [[rng.randrange(10, VOCAB) for _ in range(n)] for n in lengths]
    assert tokens(generate(model, tokenizer, prompts, max_new_tokens=15)) == by_transformers(model, prompts, 15)


def test_equal_prompts_and_a_prompt_that_is_the_beginning_of_another(tokenizer: Any) -> None:
    model = make("llama")
    prompts = [[11, 12, 13], [11, 12, 13], [11, 12], [11, 12, 13, 14, 15]]
    assert tokens(generate(model, tokenizer, prompts, max_new_tokens=9)) == by_transformers(model, prompts, 9)


def test_prompts_longer_than_a_chunk(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "_CHUNK", 4)
    model, prompts = make("llama"), mixed_prompts(7)
    assert tokens(generate(model, tokenizer, prompts, max_new_tokens=15)) == by_transformers(model, prompts, 15)


@pytest.mark.parametrize("block", [1, 5])
def test_a_cache_that_grows_and_shrinks(block: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "_BLOCK", block)
    model = make("llama")
    model.generation_config.eos_token_id = None
    prompts = [[11] + [13] * 30, [11, 12], [11, 14, 15], [11, 16], [11, 17]]
    full = [by_transformers(model, [p], 15, stops=[])[0] for p in prompts]
    # Short rows end early and are replaced while the long one runs on.
    stops = sorted({token for answer in full[1:] for token in answer} - set(full[0]))
    ends = [next((i for i, token in enumerate(answer) if token in stops), 15) for answer in full]
    assert ends[0] == 15
    assert max(ends[1:]) < 15
    answers = generate(model, tokenizer, prompts, max_new_tokens=15, batch_size=2, stop_ids=stops)
    assert tokens(answers) == [answer[:end] for answer, end in zip(full, ends, strict=True)]


@pytest.mark.parametrize("packed", [True, False])
def test_logits_of_every_step_are_those_of_a_plain_forward(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        monkeypatch.setattr(llama, "_can_pack", lambda weight: False)
    model, prompts = make("llama"), mixed_prompts(5)
    rows = [list(p) for p in prompts]
    with torch.no_grad():
        decoder = LlamaDecoder(model, slots=5, prefix=prompts[0][:3])
        logits, _ = decoder.prefill(rows)
        for step in range(12):
            expected = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)
            if step == 6:
                decoder.keep([0, 4, 2])
                rows = [rows[0], rows[4], rows[2]]
            for row in rows:
                row.append(10 + len(row))
            logits = decoder.step([[row[-1]] for row in rows])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_answer_that_ends_at_its_first_token(kind: str, tokenizer: Any) -> None:
    model, prompts = make(kind), mixed_prompts(6)
    first = [a[0] for a in tokens(generate(model, tokenizer, prompts, max_new_tokens=1, stop_ids=[]))]
    answers = generate(model, tokenizer, prompts, max_new_tokens=8, stop_ids=first[:1], batch_size=2)
    assert answers[0].tokens == []
    assert answers[0].text == ""
    assert answers[0].finish == "eos"
    everywhere = generate(model, tokenizer, prompts, max_new_tokens=8, stop_ids=first, batch_size=2)
    assert [a.finish for a in everywhere] == ["eos"] * 6
    assert tokens(everywhere) == [[]] * 6


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_stop_string_ends_an_answer_across_the_borders_of_tokens(kind: str, batch_size: int, tokenizer: Any) -> None:
    model, prompts = make(kind), mixed_prompts(8)
    full = generate(model, tokenizer, prompts, max_new_tokens=15, stop_ids=[])
    middle = full[3].text[len(full[3].text) // 2 :][:5]
    assert " " in middle, "the text must cross a border"
    stops = [middle, full[5].text.split()[1] + " "]
    answers = generate(
        model, tokenizer, prompts, max_new_tokens=15, stop_ids=[], stop_strings=stops, batch_size=batch_size
    )
    for answer, whole in zip(answers, full, strict=True):
        ends = [whole.text.find(stop) for stop in stops if stop in whole.text]
        assert answer.text == (whole.text[: min(ends)] if ends else whole.text)
        assert answer.finish == ("eos" if ends else "length")
        assert answer.tokens == whole.tokens[: len(answer.tokens)]
        assert not ends or not any(stop in tokenizer.decode(answer.tokens[:-1]) for stop in stops)
    assert {answer.finish for answer in answers} == {"eos", "length"}


@pytest.mark.parametrize("stops", [[""], "text"])
def test_stop_strings_that_are_refused(stops: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="stop_strings"):
        generate(make("llama"), tokenizer, [[11]], max_new_tokens=2, stop_strings=stops)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_all_rows_finish_at_once(kind: str, tokenizer: Any) -> None:
    answers = generate(make(kind), tokenizer, mixed_prompts(9), max_new_tokens=4, stop_ids=[], batch_size=3)
    assert [(len(a.tokens), a.finish) for a in answers] == [(4, "length")] * 9


def test_stop_tokens_come_from_the_generation_config_and_the_tokenizer(tokenizer: Any) -> None:
    model, prompts = make("llama"), mixed_prompts(4)
    model.generation_config.eos_token_id = None
    full = tokens(generate(model, tokenizer, prompts, max_new_tokens=15, stop_ids=[]))[0]
    assert len(set(full[:6])) > 2, "the two stop tokens must differ"
    early, late = full[0], next(token for token in full if token != full[0])
    assert generate(model, word_tokenizer(late), prompts, max_new_tokens=15)[0].tokens == full[: full.index(late)]
    model.generation_config.eos_token_id = early
    assert generate(model, word_tokenizer(late), prompts, max_new_tokens=15)[0].tokens == []
    model.generation_config.eos_token_id = [late, VOCAB - 1]
    assert generate(model, tokenizer, prompts, max_new_tokens=15)[0].tokens == full[: full.index(late)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_no_dropout_while_generating(kind: str, tokenizer: Any) -> None:
    model, prompts = make(kind), mixed_prompts(9)
    expected = tokens(generate(model, tokenizer, prompts, max_new_tokens=15))
    assert tokens(generate(model.train(), tokenizer, prompts, max_new_tokens=15)) == expected


def test_on_done_is_called_once_for_every_prompt_with_what_is_returned(tokenizer: Any) -> None:
    seen: list[tuple[int, Generation]] = []
    answers = generate(
        make("llama"),
        tokenizer,
        mixed_prompts(23),
        max_new_tokens=15,
        batch_size=4,
        on_done=lambda index, answer: seen.append((index, answer)),
    )
    assert sorted(index for index, _ in seen) == list(range(23))
    assert all(answers[index] is answer for index, answer in seen)
    assert [index for index, _ in seen] != list(range(23)), "delivered as they finish, not at the end"


def test_an_interrupt_leaves_the_finished_answers_delivered_and_the_mode_as_it_was(tokenizer: Any) -> None:
    model, prompts = make("llama").train(), mixed_prompts(23)
    model.lm_head.eval()
    delivered: dict[int, list[int]] = {}

    def stop_after_five(index: int, answer: Generation) -> None:
        delivered[index] = answer.tokens
        if len(delivered) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, tokenizer, prompts, max_new_tokens=15, batch_size=4, on_done=stop_after_five)
    assert len(delivered) == 5
    assert model.training
    assert not model.lm_head.training
    expected = by_transformers(model.eval(), prompts, 15)
    assert all(expected[index] == answer for index, answer in delivered.items())


@pytest.mark.parametrize("kind", LAYER_BY_LAYER + OWN_FORWARD)
def test_hidden_is_the_last_prompt_token_after_the_final_norm(kind: str, tokenizer: Any) -> None:
    model, prompts = make(kind), mixed_prompts(11)
    answers = generate(model, tokenizer, prompts, max_new_tokens=3, batch_size=4)
    for prompt, answer in zip(prompts, answers, strict=True):
        out = model(torch.tensor([prompt]), output_hidden_states=True)
        assert answer.hidden is not None
        assert answer.hidden.dtype == np.float32
        np.testing.assert_allclose(answer.hidden, out.hidden_states[-1][0, -1].detach(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_seed_gives_its_answer_whatever_is_in_the_batch(kind: str, tokenizer: Any) -> None:
    model, prompts, seeds = make(kind), mixed_prompts(12), list(range(100, 112))

    def sample(chosen: Sequence[int], batch_size: int) -> list[list[int]]:
        return tokens(
            generate(
                model,
                tokenizer,
                [prompts[i] for i in chosen],
                max_new_tokens=15,
                batch_size=batch_size,
                temperature=1.5,
                seeds=[seeds[i] for i in chosen],
            )
        )

    together = sample(range(12), 64)
    assert sample(range(12), 3) == together
    assert sample([7], 1) == [together[7]]
    seeds[7] = 0
    changed = sample(range(12), 64)
    assert [i for i in range(12) if changed[i] != together[i]] == [7]


def test_samples_follow_the_softmax_at_the_temperature(tokenizer: Any) -> None:
    model, prompt, n, temperature = make("llama"), [11, 12, 13], 4000, 2.0
    answers = generate(
        model, tokenizer, [prompt] * n, max_new_tokens=1, stop_ids=[], temperature=temperature, seeds=range(n)
    )
    counts = np.bincount([a.tokens[0] for a in answers], minlength=VOCAB)
    p = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].detach().double() / temperature, -1).numpy()
    assert np.all(np.abs(counts / n - p) < 5 * np.sqrt(p * (1 - p) / n) + 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_copy_has_the_logits_of_the_adapter_and_leaves_the_model_alone(dtype: torch.dtype) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    adapted = get_peft_model(make("llama"), config).train()
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    merged = merged_copy(adapted, dtype)
    ids = torch.tensor([mixed_prompts(1)[0]])
    base = adapted.get_base_model().model.layers[0].self_attn.q_proj
    expected = base.base_layer.weight + 2.0 * base.lora_B["default"].weight @ base.lora_A["default"].weight
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight, expected.to(dtype), atol=1e-6, rtol=1e-2)
    assert merged.dtype == dtype
    assert not merged.training
    assert adapted.training
    assert why_not_llama(merged) is None
    if dtype == torch.float32:
        torch.testing.assert_close(merged(ids).logits, adapted.eval()(ids).logits, atol=1e-4, rtol=1e-5)
    after = adapted.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_unmerged_adapter_generates_what_its_merged_copy_does(tokenizer: Any) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(make("llama"), config)
    prompts = mixed_prompts(9)
    plain = generate(make("llama"), tokenizer, prompts, max_new_tokens=9)
    answers = generate(adapted, tokenizer, prompts, max_new_tokens=9)
    assert tokens(answers) == tokens(
        generate(merged_copy(adapted, torch.float32), tokenizer, prompts, max_new_tokens=9)
    )
    assert tokens(answers) != tokens(plain)


def test_bf16_answers_agree_with_model_generate_up_to_rounding(tokenizer: Any) -> None:
    model, prompts = make("llama").to(torch.bfloat16), mixed_prompts(40)
    expected = by_transformers(model, prompts, 1)
    answers = generate(model, tokenizer, prompts, max_new_tokens=1)
    assert sum(a == e for a, e in zip(tokens(answers), expected, strict=True)) >= 36


def test_no_prompts_no_answers(tokenizer: Any) -> None:
    assert generate(make("llama"), tokenizer, [], max_new_tokens=4) == []


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[11] * 40, [11] * 41], {"max_new_tokens": 8}, "Prompt 1 has 41 tokens"),
        ([[11], []], {"max_new_tokens": 8}, "Prompt 1 is empty"),
        ([[11]], {"max_new_tokens": 0}, "max_new_tokens"),
        ([[11]], {"max_new_tokens": 8, "batch_size": 0}, "batch_size"),
        ([[11]], {"max_new_tokens": 8, "temperature": -1.0}, "temperature"),
        ([[11], [12]], {"max_new_tokens": 8, "temperature": 1.0}, "2 prompts and no seeds"),
        ([[11], [12]], {"max_new_tokens": 8, "temperature": 1.0, "seeds": [1]}, "2 prompts and 1 seeds"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(
    prompts: list[list[int]], settings: dict[str, Any], message: str, tokenizer: Any
) -> None:
    with pytest.raises(UserError, match=message):
        generate(make("llama"), tokenizer, prompts, **settings)


def test_an_encoder_decoder_is_refused(tokenizer: Any) -> None:
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(UserError, match="decoder-only"):
        generate(model, tokenizer, [[11]], max_new_tokens=2)


def test_the_reason_for_the_slow_way_is_logged(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="isodistill"):
        generate(make("mistral_sliding"), tokenizer, [[11]], max_new_tokens=1)
    assert "sliding-window" in caplog.text


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_follows_an_answer_is_read_behind_it_and_changes_no_other(
    kind: str, temperature: float, tokenizer: Any
) -> None:
    model, prompts, cue, watch = make(kind), mixed_prompts(11), [5, 60, 7], [3, 40]
    settings: dict[str, Any] = {
        "max_new_tokens": 8, "batch_size": 4, "watch": watch, "temperature": temperature, "seeds": list(range(11)),
    }  # fmt: skip
    plain = generate(model, tokenizer, prompts, **settings)
    answers = generate(model, tokenizer, prompts, follow=lambda i, a: cue if i % 3 else [], **settings)
    assert tokens(answers) == tokens(plain)
    assert {a.finish for a in answers if a.followed is not None} == {"eos", "length"}
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert (answer.followed is not None) == bool(i % 3)
        if answer.followed is not None:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer.tokens + cue])).logits[0, -1, watch]
            assert answer.followed == pytest.approx(logits.numpy(), abs=1e-4)
