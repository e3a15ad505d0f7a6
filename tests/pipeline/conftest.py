"""Small recipes, a finished run to start from, and a spy on the steps that are done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from isodistill.pipeline import run_recipe
from isodistill.pipeline.stamps import Stamps
from isodistill.recipe import Recipe, parse_recipe

COMMAND = "isodistill run recipe.yaml"
SETTINGS: dict[str, Any] = {
    "student": "tiny",
    "isomers": {"n_sets": 20, "families": ["rates"], "domains": ["law", "medicine"]},
    "split": {"held_out_domains": ["sports"], "valid": 0.0, "test": 0.3},
    "lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    "train": {"steps": 3, "sets_per_batch": 2, "save_steps": 2, "logging_steps": 1, "learning_rate": 0.01,
              "use_cpu": True, "bf16": False},
    "evaluate": {"max_new_tokens": 6, "max_sets": 4},
}  # fmt: skip


def recipe_of(overrides: list[str] | None = None, **keys: Any) -> Recipe:
    """The small recipe with some of its groups replaced."""
    return parse_recipe(SETTINGS | keys, overrides or [])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of IGA with its baseline; read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_recipe(recipe_of(), folder, COMMAND)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def steps_done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that were really done, with ``baseline/`` before those of the baseline."""
    done: list[str] = []
    step = Stamps.step

    def spied(self: Stamps, name: str, inputs: str, **actions: Callable[[], None]) -> bool:
        was_done = step(self, name, inputs, **actions)
        if was_done:
            done.append(f"baseline/{name}" if self.path.parent.name == "baseline" else name)
        return was_done

    monkeypatch.setattr(Stamps, "step", spied)
    return done


@pytest.fixture
def student_folder(tmp_path: Path, tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A student as users keep theirs: a folder of ``save_pretrained``, its tokenizer with a chat template."""
    folder = tmp_path / "student"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write dicts as JSON lines."""

    def write(rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def sums(n_sets: int, domains: tuple[str, ...] = ("law", "medicine")) -> list[dict[str, Any]]:
    """Isomer sets of additions as they stand in a user's file, without ids."""
    return [
        {
            "prompt": f"In {domain}, add {s + 2} and {s + 3}.", "domain": domain, "set_id": f"s{s}",
            "completion": f"{s + 2} + {s + 3} = {2 * s + 5}. The answer is {2 * s + 5}.",
            "answer": str(2 * s + 5), "answer_type": "number",
        }
        for s in range(n_sets)
        for domain in domains
    ]  # fmt: skip


def words_tokenizer(words: list[str], longest: int) -> PreTrainedTokenizerFast:
    """A token for each word, an end after the last."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words, "[END]"])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing("$A [END]", special_tokens=[("[END]", vocabulary["[END]"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]", model_max_length=longest
    )


@pytest.fixture(scope="session")
def tiny_text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT with random weights that knows left0 to left11 and right0 to right11, 12 tokens at most."""
    folder = tmp_path_factory.mktemp("text-encoder")
    tokenizer = words_tokenizer([f"{kind}{i}" for kind in ("left", "right") for i in range(12)], longest=12)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CLIP with random weights: images of 8 x 8 in patches of 4, captions of 8 tokens at most."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = words_tokenizer(["red", "green", "blue", "top", "bottom", "and", "a"], longest=8)
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(tokenizer), "max_position_embeddings": 8,
                     "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0},
        vision_config={**small, "image_size": 8, "patch_size": 4},
        projection_dim=24,
        initializer_factor=4.0,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder
