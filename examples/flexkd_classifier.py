"""Flex-KD for a classifier: a BERT-like teacher of width 64 and students of width 16, trained here from scratch.

    python examples/flexkd_classifier.py runs/flexkd-classifier [--steps 300]

The task: which of four topics has most words in a list. Each student sees the same rows in the same order from the same
start; the last line compares fine-tuning alone, a learned projector, and Flex-KD beside logit distillation.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from isodistill.terms import FlexKD, Projector
from isodistill.training.feature_trainer import FeatureTrainer


def main() -> None:
    """Train the teacher, then a student in three ways."""
    parser = argparse.ArgumentParser(description="Feature distillation of a classifier.")
    parser.add_argument("out", type=Path, help="folder of the trainings")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of 32 rows, for each model")
    given = parser.parse_args()
    train, test = rows(4096, 0), rows(1000, 1)
    teacher = model(64)
    Trainer(teacher, arguments(given.out / "teacher", given.steps), train_dataset=train).train()
    print(f"teacher: {accuracy(teacher, test):.3f}")
    results = {}
    for name, term, kd in (("sft", None, 0.0), ("projector", Projector(), 0.0), ("flexkd", FlexKD(examples=512), 0.5)):
        student = model(16)
        args = arguments(given.out / name, given.steps)
        FeatureTrainer(student, args, train, teacher, term, kd=kd).train()
        results[name] = accuracy(student, test)
    print("students: " + ", ".join(f"{name} {value:.3f}" for name, value in results.items()))


def rows(n: int, seed: int) -> list[dict[str, Any]]:
    """A list of 12 words of 4 topics, with a first token that the classifier reads."""
    rng, made = random.Random(seed), []
    while len(made) < n:
        topics = rng.choices(range(4), k=12)
        counts = sorted(topics.count(topic) for topic in range(4))
        if counts[-1] > counts[-2]:  # one topic has most
            words = [1 + 8 * topic + rng.randrange(8) for topic in topics]
            made.append({"input_ids": [0, *words], "labels": max(range(4), key=topics.count)})
    return made


def model(width: int) -> BertForSequenceClassification:
    """Two layers, drawn from one seed."""
    set_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=33, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * width,
            max_position_embeddings=16, num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def arguments(folder: Path, steps: int) -> TrainingArguments:
    """AdamW with 3e-3 and a cosine, on the processor."""
    return TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=32, learning_rate=3e-3,
        lr_scheduler_type="cosine", logging_steps=100, save_strategy="no", report_to="none", use_cpu=True,
    )  # fmt: skip


@torch.no_grad()
def accuracy(classifier: BertForSequenceClassification, test: list[dict[str, Any]]) -> float:
    """Share of the test rows that are classified rightly."""
    ids, labels = (torch.tensor([row[name] for row in test]) for name in ("input_ids", "labels"))
    return float((classifier.eval()(ids).logits.argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
