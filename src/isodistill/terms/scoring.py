"""Which dimensions of a teacher's hidden state matter for its task: the scoring pass of Flex-KD (arXiv 2507.10155).

    J = sum over valid tokens of log p_T(y_t | prefix)        g = dJ/dh  (N, d_T),  h the teacher's hidden state
    score_i = sum_n abs(g_ni)                                 in fp64; a plain sum, so it adds up over shards

For a linear head z = U h + c the gradient is g_t = U' (e_y - p), and no autograd through the teacher is needed. Where
another layer than the last is looked at, or the head is no linear map of it (BERT's pooler), ``hidden_gradient`` asks
autograd; attention then mixes positions, and g is the gradient of the log-likelihood of the whole sequence. Absolute
values per token are the method's "aggregated gradient magnitudes" as we read it; the other aggregations are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill.data.encode import IGNORE_INDEX
from isodistill.errors import UserError
from isodistill.models.frozen import FrozenLinear
from isodistill.models.hidden import watched_states
from isodistill.objectives import StudentOutput

__all__ = [
    "AGGREGATIONS", "DimensionScores", "fingerprint", "head_gradient", "hidden_gradient", "load_scores",
    "save_scores", "top_dimensions",
]  # fmt: skip

AGGREGATIONS = ("abs", "squared", "grad_x_input", "signed_sum")
_CHUNK = 256


def head_gradient(teacher: StudentOutput, targets: Tensor) -> Tensor:
    """g (N, d) of hidden states (N, d) before their head: closed form for a frozen linear head, else through the head.

    A head of quantised weights is asked through its own forward, so g is that of the weights it computes with.
    """
    parts = []
    for h, y in zip(teacher.hidden.detach().split(_CHUNK), targets.split(_CHUNK), strict=True):
        if isinstance(teacher.head, FrozenLinear):
            dz = -torch.softmax(teacher.head.forward(h.to(teacher.head.dtype)).float(), 1)
            dz.scatter_add_(1, y[:, None], torch.ones_like(dz[:, :1]))
            parts.append(teacher.head.backward(dz.to(teacher.head.dtype)).float())
        else:
            with torch.enable_grad():
                leaf = h.requires_grad_()
                J = -F.cross_entropy(teacher.head(leaf).float(), y, reduction="sum")
            parts.append(torch.autograd.grad(J, leaf)[0])
    return torch.cat(parts)


def hidden_gradient(model: nn.Module, batch: Mapping[str, Tensor], layer: int = -1) -> tuple[Tensor, Tensor]:
    """g and h (B, T, d) of one layer, for any head of transformers: classification, causal LM, encoder-decoder.

    Args:
        model: with a body (``base_model``) that returns ``last_hidden_state``; of an encoder-decoder, the decoder's.
        batch: what the model takes, with ``labels``: (B,) classes, or (B, T) tokens, -100 on what is not valid.
            A causal LM predicts labels one to the left, as everywhere in transformers; an encoder-decoder in place.
        layer: 1 to L counts layers, -1 is the last one after the final norm.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    encoder_decoder = bool(cast(Any, model).config.is_encoder_decoder)
    if encoder_decoder and labels.dim() == 2:
        inputs["labels"] = labels  # from which the model makes the decoder's inputs
    flags = {p: p.requires_grad for p in model.parameters()}
    training = model.training
    try:
        # Only J's dependence on h is asked for; with all parameters frozen there would be no graph to ask.
        for p in flags:
            p.requires_grad_(p.is_floating_point())
        with torch.enable_grad(), watched_states(model, [layer]) as found:
            logits = model.eval()(**inputs, output_hidden_states=layer != -1).logits
            if labels.dim() == 2 and not encoder_decoder:
                logits, labels = logits[:, :-1], labels[:, 1:]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            J = -F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
            g = torch.autograd.grad(J, found[layer])[0]
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
        model.train(training)
    return g, found[layer].detach()


@dataclass
class DimensionScores:
    """Sums over tokens of one teacher layer, in fp64; the two halves of the examples are kept apart.

    Attributes:
        how: one of ``AGGREGATIONS``.
        d: d_T.
        halves: (2, d) aggregated gradients of either half.
        moments: (3, d): tokens, sum of h and sum of h^2, for the variance.
    """

    how: str
    d: int
    halves: Tensor = field(init=False)
    moments: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if self.how not in AGGREGATIONS:
            raise ValueError(f"score is {self.how!r}; choose one of {', '.join(AGGREGATIONS)}")
        self.halves = torch.zeros(2, self.d, dtype=torch.float64)
        self.moments = torch.zeros(3, self.d, dtype=torch.float64)

    def add(self, g: Tensor, h: Tensor, half: int) -> None:
        """Take in the gradients and hidden states (N, d) of some tokens.

        Raises:
            UserError: they are not finite, so every score would be NaN.
        """
        g, h = g.double().cpu(), h.double().cpu()
        if not bool(torch.isfinite(g).all() & torch.isfinite(h).all()):
            raise UserError(
                "The teacher's hidden states or their gradients are not finite on the training rows, so its dimensions "
                "cannot be scored. Load the teacher in fp32 (train.bf16: false), or take another one."
            )
        values = {"abs": g.abs(), "squared": g.square(), "grad_x_input": (g * h).abs(), "signed_sum": g}
        self.halves[half] += values[self.how].sum(0)
        self.moments += torch.stack([torch.full_like(self.moments[0], len(h)), h.sum(0), h.square().sum(0)])

    def scores(self) -> Tensor:
        """(d,) over all tokens."""
        total = self.halves.sum(0)
        return total.abs() if self.how == "signed_sum" else total

    def variance(self) -> Tensor:
        """(d,) of the hidden states, population."""
        n, total, squares = self.moments.unbind()
        return squares / n - (total / n).square()

    def agreement(self, d_S: int) -> float:
        """Share of the chosen dimensions that both halves of the examples choose alone."""
        one, other = (set(top_dimensions(half.abs(), d_S).tolist()) for half in self.halves)
        return len(one & other) / d_S


def top_dimensions(scores: Tensor, d_S: int, order: str = "ascending") -> Tensor:
    """idx (d_S,) int64 of the largest scores (d_T,); of equal ones the lower index. ``order`` score: the best first."""
    best = torch.argsort(scores, descending=True, stable=True)[:d_S]
    return best if order == "score" else best.sort().values


def fingerprint(model: nn.Module, what: str) -> str:
    """SHA-256 of all weights and buffers of a model and of ``what`` else decides its scores."""
    digest = hashlib.sha256(what.encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_scores(path: Path, key: str, scores: list[DimensionScores]) -> None:
    """One file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{i}/{name}": getattr(one, name) for i, one in enumerate(scores) for name in ("halves", "moments")}
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, metadata={"key": key})
    unfinished.replace(path)


def load_scores(path: Path, key: str, scores: list[DimensionScores]) -> bool:
    """Fill ``scores`` from a file; False where there is none of this key, or it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata()["key"] != key:
                return False
            for i, one in enumerate(scores):
                one.halves, one.moments = file.get_tensor(f"{i}/halves"), file.get_tensor(f"{i}/moments")
    except (OSError, SafetensorError):
        return False
    return True
