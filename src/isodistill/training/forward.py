"""From token ids to the hidden states of the trained positions; nothing else ever reaches the LM head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from isodistill.errors import UserError
from isodistill.models.attention import plain_attention
from isodistill.models.frozen import FrozenLinear
from isodistill.models.llama import FusedDecoder, why_not_fused
from isodistill.models.lora import DomainGradients, half_bounds, row_bounds, segmented_lora
from isodistill.objectives import StudentOutput, TrainedTokens
from isodistill.training.config import DistillConfig

__all__ = ["Student", "open_student", "token_counts", "trained_tokens"]


def trained_tokens(batch: Mapping[str, Tensor]) -> tuple[TrainedTokens, Tensor]:
    """The trained tokens of a padded batch and the flat positions (N,) whose hidden states predict them.

    The logits at position t predict the token at t + 1, so ``labels`` (rows, T) are read one to the right.
    """
    shifted = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    positions = (shifted.flatten() != -100).nonzero().squeeze(1)
    rows = positions // shifted.shape[1]

    def of_targets(name: str) -> Tensor | None:
        """A column (rows, T) of the batch about each token, as (N,)."""
        return F.pad(batch[name][:, 1:], (0, 1)).flatten()[positions] if name in batch else None

    tokens = TrainedTokens(
        targets=shifted.flatten()[positions],
        rows=rows,
        domains=batch["domain_index"][rows],
        weights=batch["weights"][rows],
        deltas=of_targets("deltas"),
        strengths=of_targets("strengths"),
        sampled=batch["sampled"][rows] if "sampled" in batch else None,
    )
    return tokens, positions


def token_counts(batches: Sequence[Mapping[str, Tensor]], n_domains: int, first_turn: int) -> Tensor:
    """Trained tokens of the two halves of every domain, then tokens with prompts, (2 K + 1,) fp64, over micro-batches.

    The halves are those of ``half_bounds`` with turns ``first_turn``, ``first_turn + 1``, ...
    """
    totals = torch.zeros(2 * n_domains + 1, dtype=torch.float64)
    for turn, batch in enumerate(batches):
        tokens, _ = trained_tokens(batch)
        bounds = half_bounds(row_bounds(batch["domain_index"].tolist(), n_domains), first_turn + turn)
        halves = torch.bucketize(tokens.rows.cpu(), torch.tensor(bounds[1:-1]), right=True)
        totals[:-1] += torch.bincount(halves, minlength=2 * n_domains)
        totals[-1] += batch["attention_mask"].sum().cpu()
    return totals


class Student:
    """The decoder and the head of a causal LM (peft-wrapped or not), called apart.

    Args:
        model: the model; a plain decoder (``base_model_prefix``) followed by a linear head.
        dtype: dtype of the head's product.
        fused: computes the hidden states in place of the model's own decoder.
        layers: earlier layers whose states are given too; not with ``fused``.

    Raises:
        UserError: the head does more than one projection (soft-capping, scaling), so that calling it alone would
            compute something else.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, fused: FusedDecoder | None = None, layers: Sequence[int] = ()
    ) -> None:
        causal = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        self.decoder = cast(nn.Module, getattr(causal, causal.base_model_prefix))
        self.projection = cast(nn.Linear, causal.get_output_embeddings())
        self._require_plain_head(causal)
        self.fused, self.layers = fused, layers
        # A frozen plain head is packed once; a trained or adapted one must stay the module that autograd knows.
        self.head: Callable[[Tensor], Tensor] = self.projection
        if type(self.projection) is nn.Linear and not self.projection.weight.requires_grad:
            self.head = FrozenLinear(self.projection.weight, self.projection.bias, dtype)

    def __call__(self, batch: Mapping[str, Tensor], positions: Tensor) -> StudentOutput:
        """Hidden states (N, d) at flat positions of input_ids (rows, T), after the final norm, and the head."""
        if self.fused is not None:
            return StudentOutput(self.fused(batch, positions), self.head)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        out = self.decoder(**inputs, use_cache=False, output_hidden_states=bool(self.layers))
        layers = {layer: out.hidden_states[layer].flatten(0, 1)[positions] for layer in self.layers}
        return StudentOutput(out.last_hidden_state.flatten(0, 1)[positions], self.head, layers)

    @torch.no_grad()
    def _require_plain_head(self, causal: PreTrainedModel) -> None:
        training = causal.training
        causal.eval()
        ids = torch.arange(4, device=self.projection.weight.device).unsqueeze(0)
        whole = causal(input_ids=ids, use_cache=False).logits
        apart = self.projection(self.decoder(input_ids=ids, use_cache=False).last_hidden_state)
        causal.train(training)
        if not torch.allclose(whole.float(), apart.float(), rtol=1e-3, atol=1e-4):
            raise UserError(
                f"The head of {type(causal).__name__} does more than one linear projection (scaling or soft-capping of "
                "the logits); isodistill trains through the projection alone and would compute another loss. "
                "Use a model with a plain head."
            )


def open_student(
    model: PeftModel,
    gradients: DomainGradients,
    args: DistillConfig,
    segmented: bool,
    engine: ExitStack,
    layers: Sequence[int] = (),
) -> Student:
    """The student whose backward fills ``gradients``: fused layers where they can, autograd elsewhere, with the reason.

    Args:
        model: with its adapter.
        gradients: the buffers of the step.
        args: dtype, device, checkpointing.
        segmented: the K gradients come from one backward.
        engine: what is opened on the model is closed with it.
        layers: earlier layers whose states a term looks at.
    """
    causal = model.get_base_model()
    obstacle = why_not_fused(causal) if segmented else "gradients are taken domain by domain"
    if layers and obstacle is None:
        obstacle = "a term looks at earlier layers"
    if args.shard_base and obstacle is None:
        obstacle = "their frozen weights are gathered layer by layer"
    if obstacle is None:
        fused = FusedDecoder(model, gradients, args.compute_dtype, checkpoint=bool(args.gradient_checkpointing))
        return Student(model, args.compute_dtype, fused)
    if args.process_index == 0:
        print(f"layers run one by one through autograd, which is slower: {obstacle}", flush=True)
    if segmented:
        engine.enter_context(segmented_lora(model, gradients, args.compute_dtype))
    if args.use_cpu and args.bf16:
        engine.enter_context(plain_attention(causal))
    return Student(model, args.compute_dtype, layers=layers)
