"""The scoring pass against closed forms and loops: five families, three kinds of heads, planted dimensions, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from isodistill.errors import UserError
from isodistill.models.frozen import FrozenLinear
from isodistill.objectives import StudentOutput
from isodistill.terms.scoring import (
    DimensionScores,
    fingerprint,
    head_gradient,
    hidden_gradient,
    load_scores,
    save_scores,
    top_dimensions,
)

V, D, C = 30, 16, 3
_SMALL = {
    "bert": {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "gpt2": {"n_embd": D, "n_layer": 2, "n_head": 2},
    "opt": {
        "hidden_size": D, "word_embed_proj_dim": D, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24,
    },
    "llama": {"hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    "bart": {
        "d_model": D, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 2,
    },
}  # fmt: skip
_CLASSES = {
    "bert": ("BertConfig", "BertForSequenceClassification"),
    "gpt2": ("GPT2Config", "GPT2ForSequenceClassification"),
    "opt": ("OPTConfig", "OPTForCausalLM"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "bart": ("BartConfig", "BartForConditionalGeneration"),
}


def tiny(family: str, model_class: str | None = None) -> PreTrainedModel:
    config, model = _CLASSES[family]
    settings = {"vocab_size": V, "num_labels": C, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    made: PreTrainedModel = getattr(transformers, model_class or model)(
        getattr(transformers, config)(**settings, **_SMALL[family])
    )
    return made.eval()


def batch_for(model: PreTrainedModel, classes: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, V, (4, 9), generator=generator)
    ids[:, 8] = 2
    ids[1, 6:] = torch.tensor([2, 0, 0])
    mask = (ids != 0).long()
    labels = torch.randint(0, C, (4,), generator=generator) if classes else torch.where(mask == 1, ids, -100)
    if not classes:
        labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_closed_form_of_a_linear_head_is_autograd(family: str) -> None:
    model = tiny(family, {"gpt2": "GPT2LMHeadModel"}.get(family))
    batch = batch_for(model, classes=False)
    g, h = hidden_gradient(model, batch)
    shifted = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    valid = shifted != -100
    head = model.get_output_embeddings()
    out = StudentOutput(h[valid], FrozenLinear(head.weight, head.bias, torch.float32))
    torch.testing.assert_close(head_gradient(out, shifted[valid]), g[valid], rtol=1e-4, atol=1e-6)
    assert not g[~valid].any()  # the head is position-wise: prompts and padding have no gradient
    U, p = head.weight.detach(), torch.softmax(h[valid] @ head.weight.detach().T, 1)
    expected = (F.one_hot(shifted[valid], V) - p) @ U  # U' (e_y - p)
    torch.testing.assert_close(g[valid], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bert", None), ("gpt2", None), ("bart", "BartForSequenceClassification"), ("llama", None), ("opt", None),
        ("bart", None),
    ],
)  # fmt: skip
def test_every_head_against_finite_differences(family: str, name: str | None) -> None:
    """Moves one entry of the last hidden state, inside the model, and watches log p of the labels."""
    model = tiny(family, name).double()
    classes = "SequenceClassification" in type(model).__name__
    batch = batch_for(model, classes)
    g, h = hidden_gradient(model, batch)
    b, t = [int(i) for i in g.abs().sum(-1).nonzero()[0]]  # a position that the head reads
    seq2seq = model.config.is_encoder_decoder and not classes

    def log_likelihood(shift: float) -> float:
        body = model.base_model
        last = {"bert": "encoder", "opt": "decoder"}.get(family)
        last = getattr(body, last) if last else body

        def move(module: nn.Module, args: Any, out: Any) -> Any:
            out.last_hidden_state = out.last_hidden_state.clone()
            out.last_hidden_state[b, t, 5] += shift
            return out

        hook = last.register_forward_hook(move)
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        with torch.no_grad():
            logits = model(**inputs, **({"labels": batch["labels"]} if seq2seq else {})).logits
        hook.remove()
        log_p, labels = logits.log_softmax(-1), batch["labels"]
        total = 0.0
        for row in range(len(labels)):
            if classes:
                total += float(log_p[row, labels[row]])
                continue
            for position, label in enumerate(labels[row].tolist()):
                if label != -100:
                    total += float(log_p[row, position if seq2seq else position - 1, label])
        return total

    slope = (log_likelihood(1e-5) - log_likelihood(-1e-5)) / 2e-5
    assert float(g[b, t, 5]) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert h.shape == g.shape


@pytest.mark.parametrize("how", ["abs", "squared", "grad_x_input", "signed_sum"])
def test_scores_are_those_of_a_loop_over_examples_whatever_the_batches(how: str) -> None:
    generator = torch.Generator().manual_seed(2)
    g, h = (torch.randn(40, D, generator=generator) for _ in range(2))
    expected = np.zeros(D)
    for gi, hi in zip(g.double().numpy(), h.double().numpy(), strict=True):
        expected += {"abs": abs(gi), "squared": gi**2, "grad_x_input": abs(gi * hi), "signed_sum": gi}[how]
    for sizes in ([40], [1] * 40, [13, 27]):
        scores = DimensionScores(how, D)
        for i, (a, b) in enumerate(zip(g.split(sizes), h.split(sizes), strict=True)):
            scores.add(a, b, i % 2)
        np.testing.assert_allclose(scores.scores(), abs(expected), rtol=1e-12)
        np.testing.assert_allclose(scores.variance(), h.double().numpy().var(0), rtol=1e-9)


def test_the_choice_is_numpys_stable_one() -> None:
    scores = torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0, 2.0, 0.0])
    for d in range(1, 8):
        expected = np.argsort(-scores.numpy(), kind="stable")[:d]
        assert top_dimensions(scores, d, "score").tolist() == expected.tolist()
        assert top_dimensions(scores, d).tolist() == sorted(expected.tolist())


def test_a_head_that_ignores_all_but_k_dimensions_has_exactly_those_chosen() -> None:
    model = tiny("llama")
    planted = [2, 3, 7, 11, 15]
    with torch.no_grad():
        keep = torch.zeros(D)
        keep[planted] = 1.0
        model.lm_head.weight.mul_(keep)
    g, h = hidden_gradient(model, batch_for(model, classes=False))
    scores = DimensionScores("abs", D)
    scores.add(g.flatten(0, 1), h.flatten(0, 1), 0)
    assert top_dimensions(scores.scores(), 5).tolist() == planted
    assert not scores.scores()[[i for i in range(D) if i not in planted]].any()


def test_earlier_layers_are_those_of_the_model_and_flags_stay_as_they_were() -> None:
    model = tiny("llama").requires_grad_(False)
    batch = batch_for(model, classes=False)
    states = model(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True).hidden_states
    for layer in (1, 2):
        g, h = hidden_gradient(model, batch, layer)
        torch.testing.assert_close(h, states[layer])
        assert bool(g.any())
    assert not any(p.requires_grad for p in model.parameters())


class Int8Head(nn.Module):
    """A head stored in 8 bits, as quantised teachers have it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("packed", (linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, h: Tensor) -> Tensor:
        return h @ (self.packed.float() * self.scale).T


def test_a_quantised_head_is_scored_with_the_weights_it_computes_with() -> None:
    model = tiny("llama")
    head = Int8Head(model.lm_head)
    h, y = torch.randn(11, D, generator=torch.Generator().manual_seed(3)), torch.arange(11)
    U = head.packed.float() * head.scale
    expected = (F.one_hot(y, V) - torch.softmax(h @ U.T, 1)) @ U
    torch.testing.assert_close(head_gradient(StudentOutput(h, head), y), expected, rtol=1e-4, atol=1e-6)


def test_values_that_are_not_finite_are_refused() -> None:
    g = torch.zeros(3, D)
    with pytest.raises(UserError, match="not finite"):
        DimensionScores("abs", D).add(g, g.index_fill(1, torch.tensor([2]), torch.nan), 0)
    with pytest.raises(ValueError, match="choose one of"):
        DimensionScores("absolute", D)


def test_scores_on_disk_are_found_by_teacher_and_data_alone(tmp_path: Path) -> None:
    model = tiny("llama")
    key = fingerprint(model, "rows")
    assert key == fingerprint(tiny("llama"), "rows") != fingerprint(model, "other rows")
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    assert fingerprint(model, "rows") != key
    scores = DimensionScores("abs", D)
    scores.add(torch.randn(5, D), torch.randn(5, D), 1)
    path = tmp_path / "flexkd" / "scores.safetensors"
    save_scores(path, key, [scores])
    again = [DimensionScores("abs", D)]
    assert load_scores(path, key, again)
    assert torch.equal(again[0].halves, scores.halves)
    assert torch.equal(again[0].moments, scores.moments)
    assert not load_scores(path, "another key", again)
    path.write_bytes(path.read_bytes()[:50])
    assert not load_scores(path, key, again)
    assert not load_scores(tmp_path / "none", key, again)
