"""The soft prompt: peft's encoder and format, virtual ids against inputs_embeds, generation, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptEncoderConfig, get_peft_model
from peft.tuners import PromptEncoder as PeftEncoder
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill.errors import UserError
from isodistill.evaluation.backends import LocalBackend
from isodistill.models.load import add_lora
from isodistill.models.prompt import PromptEncoder, add_prompt, save_prompt, virtual_ids, with_prompt

N = 5


@pytest.fixture
def student(tiny_model: LlamaForCausalLM) -> PeftModel:
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return add_lora(copy.deepcopy(tiny_model), lora, seed=0)


def test_the_encoder_is_pefts() -> None:
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=N, token_dim=32, num_transformer_submodules=1, encoder_hidden_size=32
    )
    theirs, ours = PeftEncoder(config), PromptEncoder(N, 32)
    theirs.load_state_dict(ours.state_dict())  # the same names, too
    torch.testing.assert_close(ours(), theirs(torch.arange(N)), rtol=0, atol=0)


def test_virtual_ids_are_the_prompt_before_the_embeddings(student: PeftModel) -> None:
    encoder = add_prompt(student, N, seed=1)
    causal = student.get_base_model()
    ids = torch.tensor([[7, 8, 9, 10], [11, 12, 13, 14]])
    virtual = torch.tensor(virtual_ids(causal, N)).expand(2, -1)
    plain = causal.model.embed_tokens.plain
    written = torch.cat([encoder().expand(2, -1, -1), plain(ids)], 1)
    found = student(input_ids=torch.cat([virtual, ids], 1)).logits
    torch.testing.assert_close(found, student(inputs_embeds=written).logits, rtol=0, atol=0)
    assert found.shape[-1] == plain.num_embeddings  # no virtual token can be answered
    found.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert plain.weight.grad is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(student: PeftModel, side: str) -> None:
    add_prompt(student, N, seed=1)
    ids = torch.tensor([[*virtual_ids(student.get_base_model(), N), 7, 8, 9]])
    padding, mask = torch.zeros(1, 4, dtype=torch.long), torch.ones_like(ids)
    order = (lambda a, b: [a, b]) if side == "left" else (lambda a, b: [b, a])
    padded = torch.cat(order(padding, ids), 1)
    kept = torch.cat(order(padding, mask), 1)
    positions = (kept.cumsum(1) - 1).clamp(min=0)
    found = student(input_ids=padded, attention_mask=kept, position_ids=positions).logits[kept.bool()]
    torch.testing.assert_close(found, student(input_ids=ids).logits[0], rtol=1e-4, atol=1e-5)


def test_a_saved_prompt_loads_in_peft_and_answers_alike(
    student: PeftModel, tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    encoder = add_prompt(student, N, seed=1)
    save_prompt(tmp_path, encoder, student.get_base_model())
    theirs = PeftModel.from_pretrained(copy.deepcopy(tiny_model), tmp_path).eval()
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    expected = ids
    for _ in range(8):  # without a cache, whose positions peft's generate loses track of under a prompt
        expected = torch.cat([expected, theirs(input_ids=expected).logits[:, -1:].argmax(-1)], 1)
    model = copy.deepcopy(tiny_model).eval()
    before = with_prompt(model, tmp_path)
    backend = LocalBackend(model, before)
    (answer, other) = backend.generate(tokenizer, [ids[0].tolist(), [20, 21]], max_new_tokens=8, batch_size=2)
    tokens = expected[0, ids.shape[1] :].tolist()
    end = tokenizer.eos_token_id
    assert answer.tokens == (tokens[: tokens.index(end)] if end in tokens else tokens)
    assert len(answer.tokens) <= 8
    assert len(other.tokens) <= 8
    assert max(answer.tokens + other.tokens) < len(tokenizer)
    assert backend.context == model.config.max_position_embeddings - N
    with torch.no_grad():  # logits too, token by token
        torch.testing.assert_close(
            theirs(input_ids=ids).logits[:, N:],
            student(input_ids=torch.tensor([[*before, *ids[0].tolist()]])).logits[:, N:],
        )


def test_a_prompt_is_not_scaled_where_a_model_scales_its_embedding(tmp_path: Path) -> None:
    """Gemma multiplies what it looks up by sqrt(d)."""
    config = Gemma3TextConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).eval()
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trained = add_lora(copy.deepcopy(model), lora, seed=0).eval()
    save_prompt(tmp_path, add_prompt(trained, N, seed=1), trained.get_base_model())
    ids = torch.tensor([[*with_prompt(model, tmp_path), 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, trained(input_ids=ids).logits)


def test_a_tied_head_stays_tied_and_is_not_longer(tiny_model: LlamaForCausalLM) -> None:
    config = copy.deepcopy(tiny_model.config)
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config)
    tied = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    add_prompt(tied, N, seed=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape[0] == config.vocab_size


def test_a_prompt_of_another_width_or_a_damaged_one_is_refused(tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    save_prompt(tmp_path, PromptEncoder(N, 16), tiny_model)
    with pytest.raises(UserError, match="16 wide and the model 32"):
        with_prompt(tiny_model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="no prompt that can be read"):
        with_prompt(tiny_model, tmp_path)
