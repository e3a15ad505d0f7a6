"""Scorers against what can be worked out otherwise: hand-made sums, whole forwards, models that always say the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaForTokenClassification

from isodistill.data.encode import encode_prompt
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.teachers.base import Answer
from isodistill.validity import (
    Action,
    JudgeScorer,
    ProcessRewardModel,
    RolloutScorer,
    RuleScorer,
    Scoring,
    TeacherLikelihood,
    make_scorer,
)
from isodistill.validity.reward import load_reward_model
from isodistill.validity.rollout import answered

ROW = Row(id="a", prompt="6 patients an hour for 4 hours. How many?", answer="24", answer_type="number")


def action(
    step: str, *, prefix: str = "", reference: str = "6 x 4 = 24.", ends: bool = False, row: Row = ROW
) -> Action:
    return Action(row, prefix, step, reference, ends)


def test_rules_by_hand() -> None:
    steps = ["6 x 4 = 24.", "6 x 4 = 25.", "There are 24.", "6 x 4 = 24 and 24 - 5 = 18.", "1/3 = 0.33"]
    assert RuleScorer().score([action(step) for step in steps]) == [1.0, 0.0, 0.5, 0.0, 1.0]


def test_likelihood_is_that_of_the_whole_forward(tiny_model: LlamaForCausalLM, tokenizer: Any) -> None:
    prefix = "Hours matter."
    asked = [action(s, prefix=prefix, reference=" 6 x 4 = 24.") for s in (" 6 x 4 = 24.", " Then 5 leave, so", " B")]
    found = TeacherLikelihood(tiny_model, tokenizer, batch_size=2).score(asked)

    def mean_log_p(step: str) -> float:
        before = encode_prompt(ROW, tokenizer, 512) + tokenizer(prefix, add_special_tokens=False)["input_ids"]
        own = tokenizer(step, add_special_tokens=False)["input_ids"]
        logits = tiny_model(input_ids=torch.tensor([before + own])).logits[0].detach().double()
        log_p = F.log_softmax(logits, 1)
        return float(sum(log_p[len(before) + i - 1, token] for i, token in enumerate(own))) / len(own)

    best = mean_log_p(" 6 x 4 = 24.")
    assert found[0] == 1.0
    for value, a in zip(found, asked, strict=True):
        assert value == pytest.approx(math.exp(min(0, mean_log_p(a.step) - best)), rel=1e-4)


def test_only_the_tokens_of_steps_reach_the_head_and_never_all_at_once(
    tiny_model: LlamaForCausalLM, tokenizer: Any
) -> None:
    sizes: list[int] = []
    tiny_model.lm_head.register_forward_hook(lambda module, args, out: sizes.append(out.shape[:-1].numel()))
    steps = ["1 " * 150, "2 " * 120]
    TeacherLikelihood(tiny_model, tokenizer).score([action(step) for step in steps])
    scored = [len(tokenizer(step, add_special_tokens=False)["input_ids"]) for step in (*steps, "6 x 4 = 24.")]
    assert max(sizes) <= 256
    assert sum(sizes) == sum(scored) > 256


def test_a_text_longer_than_the_teacher_reads_is_an_error(tiny_model: LlamaForCausalLM, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="longer than the teacher reads"):
        TeacherLikelihood(tiny_model, tokenizer).score([action("1 " * 600)])


def test_rollouts_count_the_completions_that_a_verdict_takes(tiny_model: LlamaForCausalLM, tokenizer: Any) -> None:
    seen: list[str] = []

    def verdict(row: Row, text: str) -> float:
        seen.append(text)
        return float(len(seen) % 2)

    scorer = RolloutScorer(tiny_model, tokenizer, verdict, n=4, max_tokens=5)
    assert scorer.score([action("6 x 4 = 24.", prefix="So ")]) == [0.5]
    assert len(set(seen)) > 1  # drawn, not greedy
    assert all(text.startswith("So 6 x 4 = 24.") for text in seen)
    first = list(seen)
    seen.clear()
    scorer.score([action("another"), action("6 x 4 = 24.", prefix="So ")])
    assert seen[4:] == first  # whatever is scored beside it


def test_a_step_that_leaves_no_room_for_completions_fails_alone(tiny_model: LlamaForCausalLM, tokenizer: Any) -> None:
    scoring = Scoring(RolloutScorer(tiny_model, tokenizer, _always, n=1, max_tokens=4), None, max_failed=1.0)
    assert scoring([action("6 x 4 = 24."), action("1 " * 600)]) == [1.0, None]
    assert "leaves no room for completions of 4, of 512" in scoring.first_failure


@pytest.mark.usefixtures("sandbox")
def test_code_and_instructions_are_worth_the_share_that_holds() -> None:
    tests = "assert plus(1) == 2\nassert plus(2) == 3\nassert plus(3) == 5\n"
    code = Row(id="c", prompt="Add one.", answer=tests, answer_type="code")
    program = "```python\ndef plus(x):\n    return x + 1\n```"
    assert answered(code, program) == pytest.approx(2 / 3)
    assert answered(code, program.replace("+ 1", "+")) == 0.0
    kinds = [{"id": "punctuation:no_comma"}, {"id": "startend:quotation"}]
    asked = Row(id="i", prompt="?", answer=json.dumps(kinds), answer_type="instructions")
    assert [answered(asked, text) for text in ('"yes"', "yes", "yes, yes", "")] == [1.0, 0.5, 0.0, 0.0]


def test_a_step_that_ends_the_trace_is_judged_as_it_is(tiny_model: LlamaForCausalLM, tokenizer: Any) -> None:
    scorer = RolloutScorer(tiny_model, tokenizer)
    ends = [action(f" The answer is {n}.", prefix="6 x 4 = 24.", ends=True) for n in (24, 25)]
    assert scorer.score(ends) == [1.0, 0.0]
    with pytest.raises(ValueError, match="no answer"):
        scorer.score([action("x", ends=True, row=Row(id="b", prompt="?"))])


@pytest.mark.parametrize("kind", [LlamaForTokenClassification, LlamaForSequenceClassification])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_a_reward_model_is_read_at_the_end_of_the_step(tokenizer: Any, kind: Any, classes: int) -> None:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=classes, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = kind(config).eval()
    asked = [action("6 x 4 = 24."), action("So 9 of them.", prefix="Well, ")]
    found = ProcessRewardModel(model, tokenizer, positive=0, marker=" ok").score(asked)
    for value, a in zip(found, asked, strict=True):
        ids = torch.tensor([tokenizer(f"{ROW.prompt}\n{a.prefix}{a.step} ok")["input_ids"]])
        logits = model(input_ids=ids).logits.detach()
        logits = logits[0, -1] if logits.dim() == 3 else logits[0]
        expected = torch.sigmoid(logits[0]) if classes == 1 else torch.softmax(logits, 0)[0]
        assert value == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(ValueError, match="longer than the reward model reads"):
        ProcessRewardModel(model, tokenizer).score([action("1 " * 80)])


def test_a_causal_reward_model_says_a_word_for_right(
    tiny_model: LlamaForCausalLM, tokenizer: Any, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = {"name": "reward", "source": str(tmp_path), "kind": "causal", "good": "a", "bad": "b", "marker": " ok"}
    asked = [action("6 x 4 = 24."), action("So 9 of them.", prefix="Well, ")]
    found = make_scorer(options, lambda: None, lambda: (tiny_model, tokenizer)).score(asked)
    a, b = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in "ab")
    for value, one in zip(found, asked, strict=True):
        ids = torch.tensor([tokenizer(f"{ROW.prompt}\n{one.prefix}{one.step} ok")["input_ids"]])
        p = torch.softmax(tiny_model(input_ids=ids).logits[0, -1].detach().double(), 0)
        assert value == pytest.approx(float(p[a] / (p[a] + p[b])), abs=1e-5)
    with pytest.raises(UserError, match="one token each, and '\\+\\+\\+' is 3"):
        load_reward_model(str(tmp_path), "causal", good="+++")


class Marker:
    """A teacher that answers with what the step says."""

    name = "marker"

    def answer(self, messages: Any, sampling: Any) -> Answer:
        step = messages[-1]["content"].split("Proposed next step:\n")[1].split("\n")[0]
        return Answer((step,), ("stop",))


def test_a_judge_gives_a_mark_or_no_number() -> None:
    replies = ["10", "Mark: 7/10.", "0", "perhaps", "I say 105", "3.5", "-3", "I rate step 2 as 7"]
    found = JudgeScorer(Marker(), workers=2).score([action(reply) for reply in replies])
    assert found[:3] == [1.0, 0.7, 0.0]
    assert all(math.isnan(v) for v in found[3:])
    replies = ["7.5/10", "2.5 out of 10", "Step 2: 7/10", "Steps 1 to 3 hold: 9 out of 10"]
    assert JudgeScorer(Marker()).score([action(reply) for reply in replies]) == [0.75, 0.25, 0.7, 0.9]


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_a_model_without_that_head_is_no_reward_model(
    kind: Any, tiny_model: LlamaForCausalLM, tokenizer: Any, tmp_path: Path
) -> None:
    """transformers would draw the head at random, and every training would see other scores."""
    tiny_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"is no {kind} classifier: it has no weights for score"):
        load_reward_model(str(tmp_path), kind)


def test_rollouts_by_another_verdict_are_other_scores(tiny_model: LlamaForCausalLM, tokenizer: Any) -> None:
    never, always = (RolloutScorer(tiny_model, tokenizer, verdict) for verdict in (_never, _always))
    assert never.name != always.name


def _never(row: Row, text: str) -> float:
    return 0.0


def _always(row: Row, text: str) -> float:
    return 1.0


def test_scorers_by_name(tiny_model: LlamaForCausalLM, tokenizer: Any) -> None:
    reader = tiny_model, tokenizer
    made = make_scorer({"name": "rollout", "by": "base", "n": 2}, lambda: None, lambda: reader)
    assert made.name.startswith("rollout/2/")
    for options, said in (
        ({"name": "rulez"}, "Did you mean 'rule'"),
        ({"name": "rule", "n": 3}, "Unknown option steps.scorer.n"),
        ({"name": "likelihood"}, "asks the teacher"),
        ({"name": "rollout", "by": "me"}, "choose teacher or base"),
        ({"name": "judge"}, "JudgeScorer"),
        ({"name": "reward", "source": "nowhere/at/all", "kind": "tokens"}, "one of token, sequence, causal"),
        ({"name": "reward", "source": "./missing", "kind": "token"}, "could not be loaded"),
    ):
        with pytest.raises(UserError, match=said):
            make_scorer(options, lambda: None, lambda: reader)
