"""Ctrl-C while answering: the block in the making is finished and logged, and the rest follows at the next start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isodistill.data.rows import Row
from isodistill.evaluation.answer import Provenance, answer_rows, read_representations
from isodistill.evaluation.generate import Generation
from isodistill.evaluation.records import PredictionLog

PROVENANCE = Provenance("run", "iga", "f", 0, 0, 3, "after")
ROWS = [
    Row(id=f"r{i}", set_id=None, domain=None, prompt=f"Add {i} and 1.", answer=str(i + 1), answer_type="number")
    for i in range(10)
]


class Echo:
    """Answers every prompt with its length; ``press`` is called in the middle of the second block."""

    context = 512
    gives_logits = False

    def __init__(self, press: Callable[[], None]) -> None:
        self.blocks, self._press = 0, press

    def generate(
        self, tokenizer: Any, prompts: Sequence[Sequence[int]], *, on_done: Callable[[int, Generation], None], **_: Any
    ) -> list[Generation]:
        self.blocks += 1
        answers = []
        for i, prompt in enumerate(prompts):
            answers.append(
                Generation(
                    [1], f"The answer is {len(prompt)}.", "eos", np.ones(2, np.float32) * len(prompt), np.zeros((1, 0))
                )
            )
            on_done(i, answers[-1])
            if self.blocks == 2 and i == 1:
                self._press()
        return answers


def ask(press: Callable[[], None], log: PredictionLog, tokenizer: Any) -> Echo:
    backend = Echo(press)
    answer_rows(backend, tokenizer, ROWS, log, PROVENANCE, split="id", max_new_tokens=9, batch_size=1)
    return backend


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def twice() -> None:
    ctrl_c()
    ctrl_c()


def test_ctrl_c_finishes_the_block_and_the_same_command_goes_on(tmp_path: Path, tokenizer: Any) -> None:
    whole = PredictionLog(tmp_path / "whole" / "predictions.jsonl")
    ask(lambda: None, whole, tokenizer)
    stopped = PredictionLog(tmp_path / "stopped" / "predictions.jsonl")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="every answer is kept"):
        ask(ctrl_c, stopped, tokenizer)
    assert signal.getsignal(signal.SIGINT) is before
    assert [r.item_id for r in stopped.read()] == [row.id for row in ROWS[:8]]
    assert ask(lambda: None, stopped, tokenizer).blocks == 1
    assert stopped.path.read_bytes() == whole.path.read_bytes()
    assert list(read_representations(tmp_path / "stopped", "after")) == [row.id for row in ROWS]


def test_a_second_ctrl_c_stops_at_once_and_keeps_whole_blocks(tmp_path: Path, tokenizer: Any) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    with pytest.raises(KeyboardInterrupt, match="at once"):
        ask(twice, log, tokenizer)
    assert [r.item_id for r in log.read()] == [row.id for row in ROWS[:4]]


def test_ctrl_c_in_the_last_block_leaves_nothing_to_do(tmp_path: Path, tokenizer: Any) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    backend = Echo(ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        answer_rows(backend, tokenizer, ROWS[:8], log, PROVENANCE, split="id", max_new_tokens=9, batch_size=1)
    assert len(log.read()) == 8
