"""Feature distillation under any head: where heads read, the loss written out, accumulation, resume, refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
)

from isodistill.errors import UserError
from isodistill.terms import CKA, PRADA, FeatureTerm, FlexKD, Projector
from isodistill.training.any_head import AnyHead
from isodistill.training.feature_trainer import FeatureTrainer

V, C = 30, 3
CLASSES = {
    "bert": ("BertConfig", "BertForSequenceClassification"),
    "gpt2": ("GPT2Config", "GPT2ForSequenceClassification"),
    "llama": ("LlamaConfig", "LlamaForSequenceClassification"),
    "bart": ("BartConfig", "BartForSequenceClassification"),
}
TOKENS = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "opt": ("OPTConfig", "OPTForCausalLM"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "bart": ("BartConfig", "BartForConditionalGeneration"),
}
FAMILIES = [(name, True) for name in CLASSES] + [(name, False) for name in TOKENS]


def built(family: str, classes: bool, width: int, **others: Any) -> PreTrainedModel:
    d = {"num_hidden_layers": 2, "num_attention_heads": 2}
    own: dict[str, Any] = {
        "bert": {"hidden_size": width, "intermediate_size": 24, "hidden_dropout_prob": 0.0,
                 "attention_probs_dropout_prob": 0.0} | d,
        "gpt2": {"n_embd": width, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "opt": {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 24, "dropout": 0.0} | d,
        "llama": {"hidden_size": width, "intermediate_size": 24} | d,
        "bart": {"d_model": width, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
                 "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "dropout": 0.0,
                 "decoder_start_token_id": 2},
    }[family]  # fmt: skip
    config, model = (CLASSES if classes else TOKENS)[family]
    settings = {"vocab_size": V, "num_labels": C, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **others}
    torch.manual_seed(width)
    made: PreTrainedModel = getattr(transformers, model)(getattr(transformers, config)(**settings, **own))
    return made


def rows(classes: bool, n: int = 12) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(n):
        ids = torch.randint(3, V, (4 + i % 4,), generator=generator).tolist()
        ids.append(2)
        labels: Any = i % C if classes else [-100, -100, *ids[2:]]
        made.append({"input_ids": ids, "labels": labels})
    return made


def collate(some: list[dict[str, Any]]) -> dict[str, Tensor]:
    width = max(len(row["input_ids"]) for row in some)
    padded = lambda values, fill: torch.tensor([v + [fill] * (width - len(v)) for v in values])  # noqa: E731
    labels = [row["labels"] for row in some]
    return {
        "input_ids": padded([row["input_ids"] for row in some], 0),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in some], 0),
        "labels": torch.tensor(labels) if isinstance(labels[0], int) else padded(labels, -100),
    }


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., FeatureTrainer]:
    def make(
        student: PreTrainedModel, teacher: PreTrainedModel, term: FeatureTerm | None, data: Any = None, **given: Any
    ) -> FeatureTrainer:
        names = ("kd", "temperature", "callbacks", "processing_class", "teacher_processing_class")
        own = {name: given.pop(name) for name in names if name in given}
        settings = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "report_to": "none",
                    "use_cpu": True, "logging_steps": 1, "save_steps": 1000, "disable_tqdm": True}  # fmt: skip
        args = TrainingArguments(output_dir=str(tmp_path / "run"), **settings | given)
        return FeatureTrainer(student, args, data, teacher, term, data_collator=collate, **own)

    return make


@pytest.mark.parametrize(("family", "classes"), FAMILIES)
def test_every_head_trains_and_the_last_features_are_what_its_head_reads(
    made: Callable[..., FeatureTrainer], family: str, classes: bool
) -> None:
    """The head applied to the features of the positions found gives the model's own logits."""
    student, teacher = built(family, classes, 8), built(family, classes, 16)
    start = copy.deepcopy(student.state_dict())
    trainer = made(student, teacher, FlexKD(examples=8), rows(classes), kd=0.5)
    batch = collate(rows(classes))
    seen = AnyHead(student.eval(), [-1], batch, "student").see(batch)
    heads = [m for name, m in student.named_modules() if name in ("score", "lm_head", "classification_head")]
    if heads:
        torch.testing.assert_close(heads[0](seen.features[-1]), seen.logits, rtol=1e-4, atol=1e-5)
    else:
        pooled = torch.tanh(student.bert.pooler.dense(seen.features[-1]))
        torch.testing.assert_close(student.classifier(pooled), seen.logits, rtol=1e-4, atol=1e-5)
    trainer.train()
    now = student.state_dict()
    assert set(now) == set(start)  # nothing was added to the student
    assert any(not torch.equal(now[name], value) for name, value in start.items())
    assert len(trainer.term.idx[0]) == 8
    assert trainer.state.log_history[0]["flexkd/r_0"] == pytest.approx(0, abs=1)


def test_the_loss_is_the_formula_written_out(made: Callable[..., FeatureTrainer]) -> None:
    student, teacher = built("bert", True, 8), built("bert", True, 16)
    trainer = made(student, teacher, FlexKD(b=3.0), rows(True, 4), kd=0.7, max_steps=1)
    batch = collate(rows(True, 4))
    teacher.eval()
    h = teacher.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    leaf = h[:, 0].detach().requires_grad_()
    logits = teacher.classifier(torch.tanh(teacher.bert.pooler.dense(leaf)))
    J = logits.log_softmax(1)[range(4), batch["labels"]].sum()
    score = torch.autograd.grad(J, leaf)[0].abs().sum(0)
    idx = sorted(sorted(range(16), key=lambda i: (-float(score[i]), i))[:8])
    student.train()
    F_S, F_T = student.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, 0], leaf[:, idx].detach()
    S, T = F_S - F_S.mean(0), F_T - F_T.mean(0)
    r = (S * T).sum(0) / (S.square().sum(0) * T.square().sum(0)).sqrt()
    own = student(batch["input_ids"], batch["attention_mask"]).logits
    p, q = (z.div(2.0).log_softmax(1) for z in (logits.detach(), own))
    kl = (p.exp() * (p - q)).sum(1).mean()
    expected = F.cross_entropy(own, batch["labels"]) + 3.0 * (1 - r).square().mean() + 0.7 * 4.0 * kl
    trainer._choose(trainer.term)
    torch.testing.assert_close(trainer.compute_loss(student, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [True, False])
def test_accumulation_changes_nothing_that_is_a_sum_over_targets(
    made: Callable[..., FeatureTrainer], classes: bool
) -> None:
    """The projector's loss, the task's and the logits' one are means over the targets of the step."""
    found = []
    for size, n in ((12, 1), (4, 3), (1, 12)):
        student, teacher = built("llama", classes, 8), built("llama", classes, 16)
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": n, "optim": "sgd"}
        trainer = made(student, teacher, Projector(), rows(classes), kd=0.5, max_steps=1, learning_rate=0.1, **settings)
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-4, atol=1e-5)


def test_b_0_is_training_without_the_term_bit_for_bit(made: Callable[..., FeatureTrainer]) -> None:
    found = []
    for term in (None, FlexKD(b=0.0)):
        student = built("bert", True, 8)
        made(student, built("bert", True, 16), term, rows(True)).train()
        found.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert torch.equal(*found)


def test_scores_are_made_once_for_teacher_and_rows(
    made: Callable[..., FeatureTrainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        made(built("gpt2", False, 8), built("gpt2", False, 16), FlexKD(examples=6), rows(False)).train()
    assert capsys.readouterr().out.count("teacher scored") == 1
    made(built("gpt2", False, 8), built("gpt2", False, 16), FlexKD(examples=6, refresh_every=1), rows(False)).train()
    assert len(list((tmp_path / "run" / "flexkd").glob("scores-*"))) == 2  # of the first rows, and of the next ones


@pytest.mark.parametrize("width", [8, 16, 24])
def test_pairs_of_layers_and_students_of_any_width(made: Callable[..., FeatureTrainer], width: int) -> None:
    student, teacher = built("bart", False, width), built("bart", False, 16)
    trainer = made(student, teacher, FlexKD(layers=[[1, 2], [-1, -1]], examples=8), rows(False))
    trainer.train()
    assert [len(idx) for idx in trainer.term.idx] == [min(width, 16)] * 2
    assert "flexkd/r_1" in trainer.state.log_history[0]


@pytest.mark.parametrize("term", [FlexKD, Projector])
def test_a_resumed_run_is_the_uninterrupted_one(
    made: Callable[..., FeatureTrainer], tmp_path: Path, term: Callable[[], FeatureTerm]
) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step == 2
            return control

    found = []
    for stops in ([], [Stop()]):
        student, teacher = built("bert", True, 8), built("bert", True, 16)
        made(student, teacher, term(), rows(True), callbacks=stops, max_steps=4, save_steps=2).train()
        if stops:
            student = built("bert", True, 8)
            resumed = made(student, teacher, term(), rows(True), max_steps=4, save_steps=2)
            checkpoint = tmp_path / "run" / "checkpoint-2"
            assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}
            resumed.train(resume_from_checkpoint=str(checkpoint))
        found.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert torch.equal(*found)


def test_the_saved_student_loads_in_plain_transformers(made: Callable[..., FeatureTrainer], tmp_path: Path) -> None:
    student = built("bert", True, 8)
    trainer = made(student, built("bert", True, 16), CKA(), rows(True))
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    batch = collate(rows(True))
    torch.testing.assert_close(loaded(**batch).logits, student.eval()(**batch).logits)
    assert set(load_file(tmp_path / "student" / "model.safetensors")) == set(student.state_dict())
    metrics = trainer.evaluate(rows(True))
    torch.testing.assert_close(torch.tensor(metrics["eval_loss"]), student(**batch).loss.detach(), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_distilled_is_refused_at_once(made: Callable[..., FeatureTrainer]) -> None:
    bert = lambda **given: built("bert", True, 8, **given)  # noqa: E731
    with pytest.raises(UserError, match=r"stats: step is for.*positions do not correspond"):
        made(bert(), built("bert", True, 16, vocab_size=V + 1), FlexKD(stats="step"), rows(True))
    for bad in ({"kd": math.nan}, {"kd": math.inf}, {"kd": -1.0}, {"temperature": math.inf}, {"temperature": 0.0}):
        with pytest.raises(UserError, match="must be finite numbers of at least 0, and above 0"):
            made(bert(), built("bert", True, 16), None, rows(True), **bad)
    with pytest.raises(UserError, match="set kd to 0"):
        made(bert(num_labels=2), built("bert", True, 16), None, rows(True), kd=1.0)
    with pytest.raises(UserError, match="layer 3 of the student, which has 2"):
        made(bert(), built("bert", True, 16), FlexKD(layers=[[-1, 3]]), rows(True))
    with pytest.raises(UserError, match="one of student and teacher is an encoder-decoder"):
        made(built("gpt2", False, 8), built("bart", False, 16), FlexKD(), rows(False))
    with pytest.raises(UserError, match="teacher is a NoneType"):
        made(bert(), None, FlexKD(), rows(True))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one object"):
        made(one := bert(), one, FlexKD(), rows(True))
    with pytest.raises(UserError, match="term is a PRADA"):
        made(bert(), built("bert", True, 16), PRADA(), rows(True))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"a class for its labels, and the teacher, GPT2LMHeadModel.* a classifier"):
        made(bert(), built("gpt2", False, 16), FlexKD(), rows(True))
    with pytest.raises(UserError, match=r"tokens for its labels, and the student, BertFor.* a language model"):
        made(bert(), built("gpt2", False, 16), FlexKD(), rows(False))
    with pytest.raises(UserError, match="no input_ids, only"):
        made(bert(), built("bert", True, 16), FlexKD(), [{"ids": [1, 2], "labels": 0}] * 3)
    with pytest.raises(UserError, match="There are 1 training rows"):
        made(bert(), built("bert", True, 16), FlexKD(), rows(True, 1))
    with pytest.raises(UserError, match="have no labels"):
        made(bert(), built("bert", True, 16), FlexKD(), [{"input_ids": [1, 2]}] * 3)
    with pytest.raises(UserError, match="no whole numbers"):
        made(bert(num_labels=1), built("bert", True, 16, num_labels=1), None, [{"input_ids": [1], "labels": 0.5}] * 3)
    with pytest.raises(UserError, match="without a length"):
        made(bert(), built("bert", True, 16), FlexKD(), iter(rows(True)))
    with pytest.raises(UserError, match="temperature 0"):
        made(bert(), built("bert", True, 16), None, rows(True), temperature=0.0)


@pytest.mark.parametrize(("family", "classes", "n"), [("bert", True, C), ("gpt2", False, V), ("bart", False, V)])
@pytest.mark.parametrize("row", [0, -1])  # in the first look, and in training
def test_labels_beyond_the_head_are_named(
    made: Callable[..., FeatureTrainer], family: str, classes: bool, n: int, row: int
) -> None:
    data = rows(classes)
    data[row]["labels"] = n if classes else [-100, -100, n, *data[row]["labels"][3:]]
    with pytest.raises(UserError, match=rf"has the label {n}, and the \w+, \w+, knows 0 to {n - 1}"):
        made(built(family, classes, 8), built(family, classes, 16), CKA(), data, max_steps=6).train()


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *words])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def test_a_vocabulary_with_more_padding_is_cut_before_the_softmax(made: Callable[..., FeatureTrainer]) -> None:
    """KL over the ids that both have, written out; under other tokenizers, or none, the pair is refused."""
    words = [f"w{i}" for i in range(V - 3)]
    student, teacher = built("gpt2", False, 8), built("gpt2", False, 16, vocab_size=V + 6)
    both = {"processing_class": tokenizer_of(words), "teacher_processing_class": tokenizer_of(words)}
    trainer = made(student, teacher, None, rows(False), kd=1.0, **both)
    batch = collate(rows(False))
    z_S, z_T = (
        model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits for model in (student, teacher)
    )
    valid = batch["labels"][:, 1:] != -100
    p, q = (z[:, :-1, :V][valid].div(2.0).log_softmax(1) for z in (z_T.detach(), z_S))
    expected = student(**batch).loss + 4.0 * (p.exp() * (p - q)).sum(1).mean()
    torch.testing.assert_close(trainer.compute_loss(student, batch), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="give both tokenizers"):
        made(student, teacher, None, rows(False), kd=1.0)
    other = both | {"teacher_processing_class": tokenizer_of(words[::-1])}
    with pytest.raises(UserError, match="have different tokenizers"):
        made(built("gpt2", False, 8), built("gpt2", False, 16), None, rows(False), **other)


@pytest.mark.parametrize("term", [FlexKD(examples=2), Projector(), CKA(), None], ids=lambda term: type(term).__name__)
def test_features_that_are_not_finite_stop_before_the_student_is_lost(
    made: Callable[..., FeatureTrainer], term: FeatureTerm | None
) -> None:
    """One token of the teacher is broken, in a row that neither the first look nor the scores may have seen."""
    data, teacher = rows(False), built("llama", False, 8)  # as wide as the student: no scores are made
    data[-1] = {"input_ids": [V - 1, 5, 6, 2], "labels": [-100, 5, 6, 2]}
    data = [row for row in data[:-1] if V - 1 not in row["input_ids"]] + data[-1:]
    with torch.no_grad():
        teacher.get_input_embeddings().weight[V - 1] = torch.nan
    student = built("llama", False, 8)
    with pytest.raises(UserError, match="loss is not finite in step"):
        made(student, teacher, term, data, kd=0.5 if term is None else 0.0, max_steps=6).train()
    assert all(bool(torch.isfinite(p).all()) for p in student.parameters())


def test_heads_that_are_not_known_and_losses_that_are_not_finite_are_named(
    made: Callable[..., FeatureTrainer],
) -> None:
    class Middle(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.mean(1)  # of all tokens

    student = built("bert", True, 8)
    student.bert.pooler = Middle()
    with pytest.raises(UserError, match="reads its feature neither at the first token"):
        made(student, built("bert", True, 16), FlexKD(), rows(True))
    teacher = built("gpt2", False, 16)
    with torch.no_grad():
        teacher.transformer.h[0].mlp.c_fc.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="loss of the teacher is not finite"):
        made(built("gpt2", False, 8), teacher, FlexKD(), rows(False))
    broken = built("bert", True, 16)
    with torch.no_grad():
        broken.bert.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(
        UserError, match="features of the teacher, or the gradient of its log-likelihood, are not finite"
    ):
        made(built("bert", True, 8), broken, FlexKD(), rows(True))
    torch.manual_seed(0)
    tagger = transformers.BertForTokenClassification(built("bert", True, 8, initializer_range=1.0).config)
    data = [row | {"labels": [i % C for i in row["input_ids"]]} for row in rows(False)]
    with pytest.raises(UserError, match="is not the cross-entropy of classes"):
        made(tagger, built("gpt2", False, 16), FlexKD(), data)
