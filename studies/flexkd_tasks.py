"""Three small tasks of studies/flexkd.py: a wider teacher and narrower students of one family, trained from scratch.

``topics``: which topic has most words in a list of 24 (a BERT-like classifier, accuracy). ``summaries``: the same kind
of list, told in order of the topics' counts (a Llama-like model, ROUGE-L of greedy answers). ``instructions``: rows of
Self-Instruct, the teacher's with two language models' answers beside the human ones (the same model and measure).
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from isodistill.data.collate import collate
from isodistill.data.encode import Encoded, encode_prompt, encode_rows
from isodistill.data.rows import NO_DOMAIN, Row
from isodistill.evaluation.generate import generate
from isodistill.models.tiny import make_tiny_student
from isodistill.training.forward import trained_tokens

__all__ = ["Texts", "Topics", "make_task"]

TOPICS = {
    "food": "bread rice soup cake egg tea salt corn", "tools": "saw drill nail rope axe clamp file glue",
    "sky": "moon star cloud sun comet rain wind snow", "farm": "cow barn hay goat plough hen seed field",
    "ship": "sail mast deck anchor hull oar keel port", "music": "drum flute song harp note choir bass horn",
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """One batch through a model: features (N, d) of its last layer, logits (N, V) and targets (N,)."""

    features: Tensor
    logits: Tensor
    targets: Tensor


class Topics:
    """Classification; see the module."""

    metric, width, teacher_steps, steps = "accuracy", 64, 500, 500

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"topics {seed}")
        self.train, self.test, self.many = ([self._row(rng) for _ in range(n)] for n in (2048, 2000, 16000))

    def _row(self, rng: random.Random) -> tuple[list[int], int]:
        label = rng.randrange(4)
        weights = [1.0 + 0.8 * (topic == label) for topic in range(4)]
        while True:  # half of the words are of no topic; the label has most
            topics = rng.choices(range(4), weights, k=12)
            counts = Counter(topics)
            if all(counts[label] > counts[other] for other in range(4) if other != label):
                words = [1 + 8 * topic + rng.randrange(8) for topic in topics] + [
                    33 + rng.randrange(30) for _ in range(12)
                ]
                rng.shuffle(words)
                return [0, *words], label

    def model(self, width: int) -> BertForSequenceClassification:
        """A classifier of 2 layers."""
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=64, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, num_labels=4,
                intermediate_size=2 * width, max_position_embeddings=32, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )  # fmt: skip

    def batch(self, rows: Sequence[tuple[list[int], int]]) -> dict[str, Tensor]:
        """Token ids and labels."""
        ids = torch.tensor([ids for ids, _ in rows])
        return {"input_ids": ids, "labels": torch.tensor([label for _, label in rows])}

    def see(self, model: Any, batch: dict[str, Tensor]) -> Seen:
        """Features at the pooled position, the first."""
        out = model.bert(batch["input_ids"])
        return Seen(out.last_hidden_state[:, 0], model.classifier(out.pooler_output), batch["labels"])

    def pooled(self, g: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The rows of g (B, T, d) that are features."""
        return g[:, 0]

    @torch.no_grad()
    def judge(self, model: Any, removed: Tensor | None = None) -> float:
        """Accuracy; with ``removed`` dimensions of the last hidden state set to their mean."""
        batch = self.batch(self.test)
        h = model.bert(batch["input_ids"]).last_hidden_state[:, 0]
        h = _without(h, removed)
        pooled = torch.tanh(model.bert.pooler.dense(h))
        return float((model.classifier(pooled).argmax(1) == batch["labels"]).float().mean())


class Texts:
    """Prompts and completions.

    Args:
        test: rows to judge on.
        train: rows that students learn from.
        many: rows that the teacher learns from.
    """

    metric, width, teacher_steps, steps, longest = "rouge_l", 64, 700, 250, 24

    def __init__(self, test: list[Row], train: list[Row], many: list[Row]) -> None:
        self.tokenizer = make_tiny_student([f"{row.prompt}\n{row.completion}" for row in many], 0).tokenizer
        self.test_rows = test
        self.test, self.train, self.many = (
            encode_rows(part, self.tokenizer, 512, max_refused=1.0)[0] for part in (test, train, many)
        )

    def model(self, width: int) -> LlamaForCausalLM:
        """A language model of 2 layers."""
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None,
                eos_token_id=self.tokenizer.eos_token_id, pad_token_id=self.tokenizer.pad_token_id,
            )
        )  # fmt: skip

    def batch(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """A padded batch."""
        return collate(rows, [NO_DOMAIN], self.tokenizer.pad_token_id)

    def see(self, model: Any, batch: dict[str, Tensor]) -> Seen:
        """Features at the positions that predict a trained token."""
        tokens, positions = trained_tokens(batch)
        out = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        h = out.last_hidden_state.flatten(0, 1)[positions]
        return Seen(h, model.lm_head(h), tokens.targets)

    def pooled(self, g: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The rows of g (B, T, d) that are features."""
        return g.flatten(0, 1)[trained_tokens(batch)[1]]

    @torch.no_grad()
    def judge(self, model: Any, removed: Tensor | None = None) -> float:
        """ROUGE-L of greedy answers; with ``removed`` as in ``Topics``, the mean log-likelihood of a gold token."""
        if removed is None:
            prompts = [encode_prompt(row, self.tokenizer, 512) for row in self.test_rows]
            answers = generate(model, self.tokenizer, prompts, max_new_tokens=self.longest)
            pairs = zip(answers, self.test_rows, strict=True)
            return sum(rouge_l(answer.text, row.completion or "") for answer, row in pairs) / len(answers)
        total, n = 0.0, 0
        for start in range(0, len(self.test), 32):
            seen = self.see(model, self.batch(self.test[start : start + 32]))
            logits = model.lm_head(_without(seen.features, removed))
            total -= float(F.cross_entropy(logits, seen.targets, reduction="sum"))
            n += len(seen.targets)
        return total / n


def make_task(name: str, seed: int, data: Path | None = None) -> Topics | Texts:
    """A task with the data of one seed; ``instructions`` reads a file of the folder ``data``."""
    if name == "topics":
        return Topics(seed)
    if name == "summaries":
        rng = random.Random(f"summaries {seed}")
        rows = [_summary(rng, i) for i in range(1300)]
        return Texts(rows[:100], rows[100:], rows[100:])
    assert data is not None
    task = Texts(*_instructions(data / "instruct" / "self_instruct", seed))
    task.longest = 48
    return task


def _instructions(folder: Path, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Short rows of Self-Instruct: 60 to judge on, the others with human answers, and these with models' answers."""
    items = []
    for name in ("seed", "user_oriented"):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            items += [json.loads(line) for line in file]
    human, written = [], []
    for item in items:
        asked = f"{item['instruction']}\n{item['input']}".strip()
        answers = [item["output"], *(item.get("responses") or {}).values()]
        short = [text for text in answers if text.strip() and len(f"{asked} {text}".split()) <= 60]
        made = [Row(id=f"{item['id']}/{i}", prompt=asked, completion=text) for i, text in enumerate(short)]
        if made and short[0] == item["output"]:
            human.append(made[0])
            written.append(made)
    order = random.Random(f"instructions {seed}").sample(range(len(human)), len(human))
    test, train = order[:60], order[60:]
    return [human[i] for i in test], [human[i] for i in train], [row for i in train for row in written[i]]


def _summary(rng: random.Random, number: int) -> Row:
    first, second, third = rng.sample(sorted(TOPICS), 3)
    words = [rng.choice(TOPICS[t].split()) for t, n in ((first, 8), (second, 5), (third, 2)) for _ in range(n)]
    rng.shuffle(words)
    completion = f"mostly about {first} , then about {second} , a little about {third}"
    return Row(id=str(number), prompt=" ".join(words), completion=completion)


def rouge_l(found: str, gold: str) -> float:
    """F1 of the longest common subsequence of words."""
    a, b = found.split(), gold.split()
    lengths = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, start=1):
            before, lengths[j] = lengths[j], before + 1 if word == other else max(lengths[j], lengths[j - 1])
    return 2 * lengths[-1] / (len(a) + len(b)) if a and b else 0.0


def _without(h: Tensor, removed: Tensor | None) -> Tensor:
    if removed is not None and len(removed):
        h = h.clone()
        h[:, removed] = h[:, removed].mean(0)
    return h
