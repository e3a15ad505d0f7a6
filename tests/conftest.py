"""Fixtures for all rooms: the real data, a tokenizer trained in memory and a student small enough for seconds."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from isodistill.errors import UserError
from isodistill.sandbox import run_tests

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = (
    "The clinic sees 4 patients an hour for 6 hours. 6 x 4 = 24. Then 5 leave, so 24 - 5 = 19. The answer is 19.",
    "A clerk files 12 briefs and the court returns 3 of them. How many briefs stay with the court? The answer is 9.",
    "If the sensor is red then the valve is open. The sensor is red. Is the valve open? The answer is yes.",
    "Anna stands left of Ben and Ben stands left of Carl. Who stands in the middle? A) Anna B) Ben C) Carl",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: each training ends with a full collection, which would walk all of it again."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_worker() -> None:
    """Parallel test processes share the cores, so each one computes on one thread."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets, or a skip that says where it was looked for."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ISODISTILL_DATA", beside))
    if not (folder / "README.md").is_file():
        pytest.skip(f"no real data: set ISODISTILL_DATA to the data folder (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def sandbox() -> None:
    """A skip where this machine allows no sandbox; what else goes wrong with one is a failure."""
    try:
        run_tests("def one(): return 1", "assert one() == 1")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def load_study() -> Iterator[Callable[[str], ModuleType]]:
    """Name of a file in ``studies`` -> its module, with those that it imports beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "studies"))
        yield importlib.import_module


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with pad, eos and a chat template; every text can be encoded and decoded back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture
def tiny_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A seeded Llama with 2 layers of width 32 in float32, for the vocabulary of ``tokenizer``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(torch.float32)
