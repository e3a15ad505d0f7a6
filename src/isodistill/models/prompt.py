"""A soft prompt through an encoder, as in P-Tuning (arXiv 2103.10385), that stands before every text and beside LoRA.

    P = Linear(ReLU(Linear(ReLU(Linear(E)))))        E (n_virt, d) learned, all layers d wide; P (n_virt, d)
    inputs of the first layer: [P ; emb(ids)]

peft cannot stack a prompt and LoRA in one model, so the prompt comes in through the embedding: ids from n_vocab on are
virtual, id n_vocab + j means row j of P, and texts begin with all of them. So positions, masks, padding on either side
and caches need no second thought, and the head, which knows n_vocab tokens, can never answer with one. The encoder is
peft's MLP; what is saved is P in peft's own P-Tuning format, which ``PeftModel.from_pretrained`` reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, PromptEncoderConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from isodistill.errors import UserError

__all__ = [
    "PROMPT",
    "WEIGHTS",
    "PromptEncoder",
    "PromptedEmbedding",
    "add_prompt",
    "save_prompt",
    "virtual_ids",
    "with_prompt",
]

PROMPT = "prompt"
"""The folder inside a saved student that holds its prompt."""
WEIGHTS = "model"
"""The folder inside a saved student that holds all its weights, where all were trained."""
_FILE = "adapter_model.safetensors"
_NAME = "prompt_embeddings"


class PromptEncoder(nn.Module):
    """P (n_virt, d) of the virtual tokens; see the module."""

    def __init__(self, n_virt: int, d: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_virt, d)
        self.mlp_head = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))

    def forward(self) -> Tensor:
        """P, in fp32 whatever the autocast."""
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            return cast(Tensor, self.mlp_head(self.embedding.weight))


class _SavedPrompt(nn.Module):
    """P as it was saved."""

    def __init__(self, P: Tensor) -> None:
        super().__init__()
        self.register_buffer("P", P)

    def forward(self) -> Tensor:
        return cast(Tensor, self.P)


class PromptedEmbedding(nn.Module):
    """The embedding of a model and, from id n_vocab on, the virtual tokens."""

    def __init__(self, embedding: nn.Embedding, encoder: PromptEncoder | _SavedPrompt) -> None:
        super().__init__()
        self.plain, self.encoder = embedding, encoder

    @property
    def weight(self) -> Tensor:
        """That of the plain embedding, to which a tied head belongs."""
        return self.plain.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(..., d) of ids (...)."""
        n_vocab = self.plain.num_embeddings
        virtual = ids >= n_vocab
        P = self.encoder()[(ids - n_vocab).clamp(min=0)].to(self.plain.weight.dtype)
        return torch.where(virtual[..., None], P, self.plain(ids.clamp(max=n_vocab - 1)))


def add_prompt(model: PeftModel, n_virt: int, seed: int) -> PromptEncoder:
    """Give a student a fresh prompt, drawn from ``seed``; its head stays as it is, tied or not."""
    causal = cast(PreTrainedModel, model.get_base_model())
    embedding = cast(nn.Embedding, causal.get_input_embeddings())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = PromptEncoder(n_virt, embedding.embedding_dim).to(embedding.weight.device)
    causal.set_input_embeddings(PromptedEmbedding(embedding, encoder))
    return encoder


def virtual_ids(model: nn.Module, n_virt: int) -> list[int]:
    """The ids of the virtual tokens, which texts begin with."""
    embedding = cast(Any, model).get_input_embeddings()
    n_vocab = (embedding.plain if isinstance(embedding, PromptedEmbedding) else embedding).num_embeddings
    return list(range(n_vocab, n_vocab + n_virt))


def save_prompt(folder: Path, encoder: PromptEncoder, model: PreTrainedModel) -> None:
    """Write P as a P-Tuning adapter of peft."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        P = encoder().cpu().contiguous()
    save_file({_NAME: P}, folder / _FILE)
    config = model.config.get_text_config()
    PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(P),
        token_dim=P.shape[1],
        num_transformer_submodules=1,
        num_attention_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        encoder_hidden_size=P.shape[1],
        base_model_name_or_path=model.config.name_or_path or None,
        inference_mode=True,
    ).save_pretrained(str(folder))


def with_prompt(model: PreTrainedModel, folder: Path) -> list[int]:
    """Put the rows of a saved P behind the embedding of a model for inference; the head keeps its own weights.

    Returns:
        The ids to put before every prompt.

    Raises:
        UserError: the folder cannot be read, or P is of another width.
    """
    try:
        P = load_file(folder / _FILE)[_NAME]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder} holds no prompt that can be read: {error}. Train the student again.") from error
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    if P.shape[1] != embedding.embedding_dim:
        raise UserError(f"The prompt in {folder} is {P.shape[1]} wide and the model {embedding.embedding_dim}.")
    ids = virtual_ids(model, len(P))
    if type(embedding) is not nn.Embedding:  # such as Gemma's, which scales what it looks up, and P is not to be scaled
        model.set_input_embeddings(PromptedEmbedding(embedding, _SavedPrompt(P.to(embedding.weight.device))))
        return ids
    longer = nn.Embedding(embedding.num_embeddings + len(P), embedding.embedding_dim, device="meta")
    longer.weight = nn.Parameter(torch.cat([embedding.weight.detach(), P.to(embedding.weight)]), requires_grad=False)
    model.set_input_embeddings(longer)
    return ids
