"""The student as lm-evaluation-harness asks it: log-likelihoods by one plain forward per text, and whole tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill.errors import UserError
from isodistill.harness.robustness import robustness

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install isodistill[lm-eval]")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from isodistill.harness.student import HarnessStudent

Ask = Callable[..., list[Any]]


@pytest.fixture
def student(tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> HarnessStudent:
    return HarnessStudent(tiny_model, tokenizer, batch_size=2)


def asked(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


def log_q(student: HarnessStudent, ids: list[int]) -> torch.Tensor:
    """log q (T - 1, V) of every token after the first, by one forward without padding."""
    with torch.no_grad():
        return torch.log_softmax(student.model(torch.tensor([ids])).logits[0, :-1].double(), -1)


def test_loglikelihoods_are_sums_over_the_continuation(student: HarnessStudent) -> None:
    pairs = [("6 x 4 = 24. The answer", " is 24."), ("", "yes"), ("The law says no. ", "No"), ("a", " b c d e f g")]
    found = student.loglikelihood(asked("loglikelihood", *pairs))
    eos = student.tokenizer.eos_token_id
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        bare = context.rstrip()
        before = student.tokenizer(bare)["input_ids"] if bare else [eos]
        whole = student.tokenizer(context + continuation)["input_ids"] if bare else [eos] + student.tokenizer(
            continuation
        )["input_ids"]  # fmt: skip
        assert whole[: len(before)] == before
        values = log_q(student, whole)[len(before) - 1 :]
        targets = torch.tensor(whole[len(before) :])
        assert value == pytest.approx(float(values.gather(1, targets[:, None]).sum()), rel=1e-5)
        assert greedy == bool((values.argmax(-1) == targets).all())


def test_what_greedy_decoding_gives_is_called_greedy(student: HarnessStudent) -> None:
    (text,) = student.generate_until(asked("generate_until", ("6 x 4?", {"until": [], "max_gen_toks": 3})))
    tokens = student.generations["6 x 4?"].tokens
    ids = student.tokenizer("6 x 4?")["input_ids"]
    for _ in range(3):
        ids.append(int(student.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert ids[-len(tokens) :] == tokens
    assert text == student.tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_text_longer_than_the_context_is_scored_token_by_token_once(student: HarnessStudent) -> None:
    student.context = 8
    text = "The clerk files six briefs, and the doctor reads four of them before noon."
    (found,) = student.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    ids = student.tokenizer(text)["input_ids"]
    assert len(ids) > 16
    whole, total, done = [student.tokenizer.eos_token_id, *ids], 0.0, 0
    while done < len(ids):
        n = min(8, len(ids) - done)
        # The last n tokens up to here, with what the context still holds before them.
        window = whole[max(done + n - 8, 0) : done + n + 1]
        values = log_q(student, window)[-n:]
        total += float(values.gather(1, torch.tensor(window[-n:])[:, None]).sum())
        done += n
    assert found == pytest.approx(total, rel=1e-5)


def test_what_is_too_long_loses_its_beginning_and_is_told(
    student: HarnessStudent, caplog: pytest.LogCaptureFixture
) -> None:
    student.context = 6
    context = "one two three four five six seven eight"
    short = student.tokenizer.decode((student.tokenizer(context + " nine")["input_ids"])[-7:])
    n = len(student.tokenizer(context + " nine")["input_ids"]) - len(student.tokenizer(context)["input_ids"])
    (found,) = student.loglikelihood(asked("loglikelihood", (context, " nine")))
    ids = student.tokenizer(short)["input_ids"]
    values = log_q(student, ids)[-n:]
    assert found[0] == pytest.approx(float(values.gather(1, torch.tensor(ids[-n:])[:, None]).sum()), rel=1e-5)
    assert "1 requests are longer than the student's context" in caplog.text
    with pytest.raises(UserError, match="A continuation has"):
        student.loglikelihood(asked("loglikelihood", ("a", context + context)))
    with pytest.raises(UserError, match="A task asks for 256 new tokens"):
        student.generate_until(asked("generate_until", ("a", {})))


def test_answers_end_where_the_task_says_and_repeats_draw_anew(student: HarnessStudent) -> None:
    greedy = {"max_gen_toks": 12}
    (whole,) = student.generate_until(asked("generate_until", ("6 x 4?", greedy)))
    cut = whole[2:4]
    (ended,) = student.generate_until(asked("generate_until", ("6 x 4?", greedy | {"until": cut})))
    assert ended == whole[: whole.index(cut)]
    sampled = {"max_gen_toks": 12, "do_sample": True, "temperature": 3.0}
    texts = student.generate_until(asked("generate_until", *[("6 x 4?", sampled)] * 4))
    assert len(set(texts)) > 1
    unsampled = {"max_gen_toks": 12, "temperature": 3.0, "do_sample": False}
    assert student.generate_until(asked("generate_until", ("6 x 4?", unsampled))) == [whole]
    with pytest.raises(UserError, match="A task asks for num_beams, top_p"):
        student.generate_until(asked("generate_until", ("a", {"num_beams": 4, "top_p": 0.9})))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two tasks on local rows: three sets in two domains, asked openly and by options."""
    rows = [
        {
            "id": f"{s}/{domain}", "set_id": f"s{s}", "domain": domain, "prompt": f"In {domain}, {s} + 1?",
            "answer": str(s + 1), "answer_type": "number", "options": ["no", str(s + 1), "yes"], "gold": 1,
        }
        for s in range(3)
        for domain in ("law", "medicine")
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    common = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\ntest_split: test\n"
    )
    (tmp_path / "open.yaml").write_text(
        f"task: open_sums\n{common}output_type: generate_until\n"
        'doc_to_text: "{{prompt}}"\ndoc_to_target: "{{answer}}"\n'
        "generation_kwargs: {until: [], max_gen_toks: 4}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
        encoding="utf-8",
    )
    (tmp_path / "options.yaml").write_text(
        f"task: option_sums\n{common}output_type: multiple_choice\n"
        'doc_to_text: "{{prompt}}"\ndoc_to_choice: options\ndoc_to_target: gold\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
        encoding="utf-8",
    )
    return tmp_path


def test_tasks_of_the_harness_run_on_local_data_and_our_metrics_on_its_samples(
    student: HarnessStudent, tasks: Path
) -> None:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = simple_evaluate(
        student, tasks=["open_sums", "option_sums"], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    samples = results["samples"]["option_sums"]
    by_hand = {}
    for sample in samples:
        prompt, options = sample["doc"]["prompt"], sample["doc"]["options"]
        values = [value for value, _ in student.loglikelihood(asked("l", *[(prompt, f" {o}") for o in options]))]
        by_hand[sample["doc"]["id"]] = values.index(max(values)) == 1
    told = robustness(samples, metric="acc")
    assert told["n_items"] == 6
    assert told["n_sets"] == 3
    for domain in ("law", "medicine"):
        right = [value for name, value in by_hand.items() if name.endswith(domain)]
        assert told["acc_by_domain"][domain] == pytest.approx(sum(right) / 3)
    assert results["results"]["option_sums"]["acc,none"] == pytest.approx(told["acc_macro"])
    everywhere = sum(by_hand[f"{s}/law"] and by_hand[f"{s}/medicine"] for s in range(3)) / 3
    assert told["all_correct"] == pytest.approx(everywhere)
    opened = robustness(results["samples"]["open_sums"], metric="exact_match", generations=student.generations)
    assert opened["acc_macro"] == pytest.approx(results["results"]["open_sums"]["exact_match,none"])
    assert opened["tokens_median"] > 0


def test_chat_messages_become_the_text_that_was_trained(student: HarnessStudent) -> None:
    messages = [{"role": "user", "content": "6 x 4?"}]
    assert student.apply_chat_template(messages) == "<|user|>6 x 4?<|end|><|assistant|>"
    assert student.chat_template() == student.tokenizer.chat_template
    assert "/" not in student.tokenizer_name
