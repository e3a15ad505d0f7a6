"""PRADA inside training: lam 0 is P-Tuning, accumulation, garbage, resume, what is saved, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptEncoderConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.training.rising_loss import RisingLoss

N = 4


def target_rows(n: int = 7, domain: str = "cooking") -> list[Row]:
    return [
        Row(id=f"t{i}", prompt=f"In {domain}, {i} cooks bake {i + 2} cakes. How many?", domain=domain) for i in range(n)
    ]


@pytest.fixture
def prada(make_trainer: Any) -> Callable[..., DistillTrainer]:
    """Trainers with PRADA's options, and target questions."""

    def make(options: dict[str, Any] | None = None, target: Any = None, **settings: Any) -> DistillTrainer:
        term = {"name": "prada", "n_virt": N, "width": 8, "dropout": 0.0, "learning_rate": 1e-2} | (options or {})
        common = {"method": "prada", "term": term, "max_steps": 2, "max_grad_norm": 1e9}
        given = {"target_dataset": target_rows() if target is None else target}
        trainer: DistillTrainer = make_trainer(**common | given | settings)
        return trainer

    return make


def gradients(trainer: DistillTrainer) -> list[dict[str, torch.Tensor]]:
    """Of every step: what the optimizer gets, and the classifier's."""
    seen: list[dict[str, torch.Tensor]] = []

    def grab(optimizer: Any, args: Any, kwargs: Any) -> None:
        mine = {n: p.grad.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        if seen_by_classifier:
            mine |= {f"D/{i}": grad for i, grad in enumerate(seen_by_classifier.pop())}
        seen.append(mine)

    seen_by_classifier: list[list[torch.Tensor]] = []
    step = trainer.term.term.step

    def watch() -> None:
        learner = trainer.term.term.learner
        seen_by_classifier.append([p.grad.detach().clone() for p in learner.module.parameters() if p.grad is not None])
        step()

    trainer.term.term.step = watch  # type: ignore[method-assign]
    trainer.create_optimizer().register_step_pre_hook(grab)
    trainer.train()
    return seen


def close(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert set(a) == set(b)
        for name, value in b.items():
            torch.testing.assert_close(a[name], value, rtol=1e-3, atol=1e-5)


def trained(trainer: DistillTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def test_lam_0_with_the_prompt_alone_is_pefts_p_tuning(
    prada: Callable[..., DistillTrainer], tiny_model: LlamaForCausalLM
) -> None:
    """Five steps against peft's own prompt encoder, transformers' own loss and a loop of our own."""
    options = {"lam": 0.0, "adapt": "prompt", "prompt_learning_rate": 1e-3}
    settings = {"max_steps": 5, "optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0, "sets_per_batch": 8}
    trainer = prada(options, start_away_from_zero=False, **settings)
    encoder = trainer.term.encoder
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=N, token_dim=32, num_transformer_submodules=1,
        num_attention_heads=4, num_layers=2, encoder_hidden_size=32,
    )  # fmt: skip
    theirs = get_peft_model(copy.deepcopy(tiny_model), config)
    theirs.prompt_encoder["default"].load_state_dict(encoder.state_dict())
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=1e-3)
    batch = trainer.data_collator(trainer.train_dataset)  # one batch holds all rows, in some order
    ids, mask, labels = (batch[name][:, N:] for name in ("input_ids", "attention_mask", "labels"))
    for _ in range(5):
        optimizer.zero_grad()
        theirs(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
    trainer.train()
    assert set(trained(trainer)) == {n for n, _ in trainer.model.named_parameters() if ".encoder." in n}
    for name, value in theirs.prompt_encoder["default"].state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("control", ["none", "source", "frozen", "shuffled"])
def test_gradients_are_those_of_the_formula_written_out(
    prada: Callable[..., DistillTrainer], rows: list[Row], control: str
) -> None:
    """dL_y - lam dL_d and + lam dL_d by two autograd calls, a row at a time through transformers' own decoder."""
    lam, n = 0.7, len(rows)  # as many questions of the target, so a step sees each once
    still = {"learning_rate": 1e-12}  # D moves before it can be looked at
    options = {"lam": lam, "schedule": "constant", "control": control} | still
    trainer = prada(options, target=target_rows(n), sets_per_batch=8, max_steps=1, rows=rows)
    assert trainer.args.per_device_train_batch_size == n
    base, of_target = trainer.model.get_base_model(), trainer.term._asked
    head, embedding = base.lm_head, base.get_input_embeddings()

    names = ["law", "mathematics", "medicine", "target" if control == "source" else "cooking"]

    def told(domain: str, ids: list[int]) -> str:
        """What the classifier is told of a question: its domain, or one that a hash of its text draws."""
        if control != "shuffled":
            return domain
        drawn = hashlib.sha256(f"{trainer.args.seed} {trainer.term._virtual + ids}".encode()).hexdigest()
        return names[int(drawn, 16) % len(names)]

    def states(ids: list[int]) -> torch.Tensor:
        embedded = torch.cat([embedding.encoder(), embedding.plain(torch.tensor(ids))])
        return base.model(inputs_embeds=embedded[None]).last_hidden_state[0, N:]

    found = gradients(trainer)[0]  # the learning rate's warm-up starts at 0, so nothing has moved
    D = trainer.term.term.learner.module
    assert trainer.state.global_step == 1
    likelihood, tokens, seen = torch.zeros(()), 0, []
    for row in trainer.train_dataset:
        ids, labels = row.input_ids[N:], torch.tensor(row.labels[N:])
        asked, h = int((labels == -100).sum()), states(ids)
        likelihood = likelihood + head(h[asked - 1 : -1]).log_softmax(1)[range(len(ids) - asked), ids[asked:]].sum()
        tokens += len(ids) - asked
        seen.append((told(row.domain, ids[:asked]), h[:asked].mean(0)))
        if control == "source":
            seen.append(("target", states(ids[:asked]).mean(0)))
    if control != "source":
        seen += [(told("cooking", ids), states(ids).mean(0)) for ids in of_target]
    L_y, L_d = -likelihood / tokens, torch.zeros(())
    for k, name in enumerate(names):
        q = torch.stack([one for domain, one in seen if domain == name])
        L_d = L_d - D(q).log_softmax(1)[:, k].mean()
    th_f = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    g_y = torch.autograd.grad(L_y, list(th_f.values()), retain_graph=True)
    g_d = torch.autograd.grad(L_d, [*th_f.values(), *D.parameters()])
    expected = {name: a - lam * b for name, a, b in zip(th_f, g_y, g_d, strict=False)}
    if control != "frozen":
        expected |= {f"D/{i}": lam * g for i, g in enumerate(g_d[len(th_f) :])}
    close([{name: found[name] for name in expected}], [expected])
    assert max(float(g.abs().max()) for g in g_d) > 1e-3


def test_each_epoch_reads_every_question_of_the_target_once_in_another_order(
    prada: Callable[..., DistillTrainer],
) -> None:
    n = prada().args.per_device_train_batch_size
    trainer = prada(target=target_rows(2 * n), max_steps=6)
    read: list[tuple[int, ...]] = []
    begin = trainer.term.begin

    def watch(batches: Any, counts: Any) -> None:
        begin(batches, counts)
        for drawn in trainer.term._targets:
            read.extend(tuple(ids[ids > 0].tolist()) for ids in drawn["input_ids"] * drawn["attention_mask"])

    trainer.term.begin = watch
    trainer.train()
    epochs = [read[start : start + 2 * n] for start in range(0, 6 * n, 2 * n)]
    assert len(set(epochs[0])) == 2 * n
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_frozen_classifier_stays_as_it_was_drawn(prada: Callable[..., DistillTrainer]) -> None:
    start, end = [], []
    for steps in (1, 4):
        trainer = prada({"control": "frozen", "schedule": "constant"}, max_steps=steps)
        trainer.train()
        (start if steps == 1 else end).extend(trainer.term.term.learner.module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(start, end, strict=True))


def test_lam_0_without_prompt_is_sft_bit_for_bit(prada: Callable[..., DistillTrainer], make_trainer: Any) -> None:
    plain = make_trainer(method="erm_pooled", max_steps=3, max_grad_norm=1e9)
    plain.train()
    neutral = prada({"lam": 0.0, "adapt": "lora"}, max_steps=3)
    neutral.train()
    assert all(torch.equal(trained(neutral)[n], value) for n, value in trained(plain).items())


@pytest.mark.parametrize("adapt", ["prompt+lora", "prompt", "lora", "full"])
def test_what_is_trained(prada: Callable[..., DistillTrainer], adapt: str) -> None:
    trainer = prada({"adapt": adapt, "schedule": "constant"})
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, start[n])}
    kinds = {"prompt" if ".encoder." in n else "lora" if "lora_" in n else "base" for n in moved}
    expected = {"prompt+lora": {"prompt", "lora"}, "prompt": {"prompt"}, "lora": {"lora"}, "full": {"prompt", "base"}}
    assert kinds == expected[adapt]


def test_accumulation_changes_neither_loss(prada: Callable[..., DistillTrainer]) -> None:
    options = {"schedule": "constant"}
    whole = gradients(prada(options, sets_per_batch=8))
    for n in (2, 8):
        close(gradients(prada(options, sets_per_batch=8 // n, gradient_accumulation_steps=n)), whole)
    assert any(name.startswith("D/") for name in whole[0])


def test_the_adversary_reads_questions_alone(
    prada: Callable[..., DistillTrainer], rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other answers change the task's loss; the classifier's gradient stays, and so it does under more padding."""
    options = {"schedule": "constant"}
    of = lambda found: {n: v for n, v in found[0].items() if n.startswith("D/")}  # noqa: E731
    expected = gradients(prada(options, sets_per_batch=8, max_steps=1))
    others = [replace(row, completion=row.completion[::-1]) for row in rows]
    garbage = gradients(prada(options, sets_per_batch=8, max_steps=1, rows=others))
    close([of(garbage)], [of(expected)])
    from isodistill.training import trainer as module

    plain = module.collate

    def padded(encoded: Any, domains: Any, pad_id: int) -> Any:
        batch = plain(encoded, domains, pad_id)
        for name, value in (("input_ids", 7), ("attention_mask", 0), ("labels", -100)):
            batch[name] = torch.nn.functional.pad(batch[name], (0, 6), value=value)
        return batch

    monkeypatch.setattr(module, "collate", padded)
    close(gradients(prada(options, sets_per_batch=8, max_steps=1)), expected)


@pytest.mark.parametrize("adapt", ["prompt+lora", "full"])
def test_resume_is_bit_exact(prada: Callable[..., DistillTrainer], tmp_path: Path, adapt: str) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step == 3
            return control

    options = {"adapt": adapt, "dropout": 0.1}
    whole = prada(options, max_steps=5, save_steps=3, output_dir=str(tmp_path / "whole"))
    whole.train()
    first = prada(options, max_steps=5, save_steps=3)
    first.add_callback(Stop())
    first.train()
    second = prada(options, max_steps=5, save_steps=3)
    second.train(resume_from_checkpoint=True)
    assert all(torch.equal(trained(second)[n], value) for n, value in trained(whole).items())
    D = [dict(t.term.term.learner.module.state_dict()) for t in (whole, second)]
    assert all(torch.equal(D[1][n], value) for n, value in D[0].items())


def test_the_saved_student_holds_prompt_and_adapter_and_no_classifier(
    prada: Callable[..., DistillTrainer], tmp_path: Path, tiny_model: LlamaForCausalLM
) -> None:
    trainer = prada({"adapt": "prompt"}, start_away_from_zero=False)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    names = set(load_file(tmp_path / "student" / "adapter_model.safetensors"))
    assert all("lora_" in name for name in names)
    assert set(load_file(tmp_path / "student" / "prompt" / "adapter_model.safetensors")) == {"prompt_embeddings"}
    assert set(load_file(tmp_path / "run" / "prada" / "classifier.safetensors")) >= {"0.weight", "6.bias"}
    theirs = PeftModel.from_pretrained(copy.deepcopy(tiny_model), tmp_path / "student" / "prompt").eval()
    ids = torch.tensor([[7, 8, 9]])
    virtual = torch.arange(N) + tiny_model.config.vocab_size
    trainer.model.eval()
    with torch.no_grad():
        ours = trainer.model(input_ids=torch.cat([virtual[None], ids], 1)).logits
        torch.testing.assert_close(theirs(input_ids=ids).logits, ours, rtol=1e-4, atol=1e-5)


def test_a_student_trained_in_full_is_saved_in_full(prada: Callable[..., DistillTrainer], tmp_path: Path) -> None:
    trainer = prada({"adapt": "full"})
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student" / "model").eval()
    ids = torch.tensor([[7, 8, 9]])
    trainer.model.eval()
    with torch.no_grad(), trainer.model.disable_adapter():
        torch.testing.assert_close(loaded(ids).logits, trainer.model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def test_a_student_whose_embedding_has_another_name_is_saved_in_full(
    tokenizer: PreTrainedTokenizerFast, rows: list[Row], tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=4)
    term = {"name": "prada", "n_virt": N, "width": 8, "adapt": "full"}
    args = DistillConfig(
        output_dir=str(tmp_path / "run"), method="prada", term=term, max_steps=1, sets_per_batch=2, bf16=False,
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    trainer = DistillTrainer(
        GPT2LMHeadModel(config), args=args, train_dataset=rows, processing_class=tokenizer, peft_config=lora,
        target_dataset=target_rows(),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    saved = load_file(tmp_path / "student" / "model" / "model.safetensors")
    assert set(saved) == {n for n, _ in GPT2LMHeadModel(config).named_parameters()}
    trained = trainer.model.get_base_model().get_input_embeddings().plain.weight.detach()
    torch.testing.assert_close(saved["transformer.wte.weight"], trained, rtol=0, atol=0)


def test_features_of_the_target_that_are_not_finite_skip_the_step(
    prada: Callable[..., DistillTrainer], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the student nor the classifier moves, and it is told."""
    trainer = prada({"schedule": "constant"}, start_away_from_zero=False)
    seen = {token for row in trainer.train_dataset for token in row.input_ids}
    alone = {token for asked in trainer.term._asked for token in asked} - seen
    with torch.no_grad():
        trainer.model.get_base_model().get_input_embeddings().plain.weight[list(alone)] = torch.nan
    start = trained(trainer)
    trainer.train()
    assert "step 1 skipped: the gradient of" in capsys.readouterr().out
    assert all(torch.equal(trained(trainer)[n], value) for n, value in start.items())
    assert all(bool(torch.isfinite(p).all()) for p in trainer.term.term.learner.module.parameters())


def test_metrics_and_domains(prada: Callable[..., DistillTrainer], tmp_path: Path) -> None:
    trainer = prada(target=[*target_rows(3, "cooking"), *target_rows(3, "sports")])
    trainer.train()
    assert trainer.term.domains == ["law", "mathematics", "medicine", "cooking", "sports"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"prada/domain_accuracy", "prada/domain_loss", "prada/lam"} <= set(lines[1])
    assert [line["prada/lam"] for line in lines[:2]] == pytest.approx([0.0, 0.98661], abs=1e-4)


@pytest.mark.parametrize("control", ["frozen", "shuffled", "source"])
def test_controls_train(prada: Callable[..., DistillTrainer], control: str) -> None:
    trainer = prada({"control": control, "schedule": "constant"})
    trainer.train()
    assert trainer.state.global_step == 2


def test_what_is_refused(prada: Callable[..., DistillTrainer], rows: list[Row], tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="needs questions of a target"):
        prada(target=[])
    same = [replace(row, completion=None, domain="cooking", set_id=None) for row in rows]
    with pytest.raises(UserError, match="is one of the source"):
        prada(target=same).train()
    with pytest.raises(UserError, match="holds all 24 questions that are learned from"):
        prada(target=[*same, *target_rows(1)]).train()
    assert prada(target=[*same[:-1], *target_rows(1)]).train().global_step == 2
    one = [replace(row, domain=None, set_id=None) for row in rows]
    target = [replace(row, domain="source") for row in target_rows()]
    with pytest.raises(UserError, match="are one domain"):
        prada(rows=one, target=target).train()
    with pytest.raises(UserError, match=r"Set train.max_length to|n_virt lower"):
        prada({"n_virt": 500})
    with pytest.raises(UserError, match="question of the target cannot be asked"):
        prada(target=[replace(target_rows(1)[0], prompt="many words " * 400)])
    with pytest.raises(UserError, match="belongs to none of them"):
        prada(method="iga", alignment={"name": "iga"})
    with pytest.raises(UserError, match="penalty of its own"):
        prada(alignment={"name": "coral"})


def test_a_task_loss_that_rises_again_is_told_once(
    prada: Callable[..., DistillTrainer], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = prada({"lam": 0.5}, max_steps=1)
    trainer.train()
    state = trainer.state
    (watch,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, RisingLoss)]
    for loss in (2.0, 1.0, 0.4, 0.4, 0.4, 0.4, 0.41):
        watch.on_log(None, state, None, {"loss": loss})
    watch.on_log(None, state, None, {"eval_loss": 9.0})
    assert "lowest value" not in capsys.readouterr().out
    for _ in range(6):
        watch.on_log(None, state, None, {"loss": 2.0})
    assert capsys.readouterr().out.count("prada's lam 0.5 may be too large") == 1
    neutral = prada({"lam": 0.0}, max_steps=1)
    neutral.train()
    assert not any(isinstance(one, RisingLoss) for one in neutral.callback_handler.callbacks)
