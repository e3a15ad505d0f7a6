"""PRADA inside training: the prompt before every text, target questions beside every micro-batch, domain means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from isodistill.alignment import Alignment, Penalised
from isodistill.data.collate import collate
from isodistill.data.encode import IGNORE_INDEX, Encoded, encode_prompt
from isodistill.data.rows import NO_DOMAIN, Row, RowError
from isodistill.errors import UserError
from isodistill.models.prompt import PROMPT, WEIGHTS, PromptEncoder, add_prompt, save_prompt, virtual_ids
from isodistill.objectives import VCRD, StudentOutput
from isodistill.terms import PRADA
from isodistill.training.config import DistillConfig
from isodistill.training.rising_loss import RisingLoss
from isodistill.training.step_term import StepTerm

__all__ = ["Adversary"]


class Adversary(StepTerm):
    """The student's prompt, and what the classifier sees of every optimizer step.

    Args:
        trainer: the ``DistillTrainer``.
        term: the options.
        model: the student; gets its prompt, and what is not trained is frozen.
        target: rows whose prompts alone are read.
        args: of the training.
        tokenizer: of the student.

    Raises:
        UserError: a question of the target is longer than ``max_length``, or not taken by the chat template.
    """

    def __init__(
        self,
        trainer: Any,
        term: PRADA,
        model: PeftModel,
        target: Sequence[Row],
        args: DistillConfig,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__(trainer, args)
        self.term, self.model, self.tokenizer = term, model, tokenizer
        self._rows = list(target)
        self._asked = [_prompt_ids(row, tokenizer, args.max_length) for row in self._rows]
        self.encoder: PromptEncoder | None = None
        self._virtual: list[int] = []
        self._n_vocab = virtual_ids(model.get_base_model(), 1)[0]
        if term.adapt in ("prompt", "full"):
            for name, p in model.named_parameters():
                p.requires_grad_(term.adapt == "full" and "lora_" not in name)
        if term.has_prompt:
            self.encoder = add_prompt(model, term.n_virt, args.seed)
            self._virtual = virtual_ids(model.get_base_model(), term.n_virt)

    @property
    def active(self) -> bool:
        """There is an adversary; without one the prompt is trained alone."""
        return self.term.lam > 0

    @property
    def looks_ahead(self) -> bool:
        """The rows of every domain are counted."""
        return self.active

    @property
    def more_rows(self) -> bool:
        """Those of the target."""
        return self.active

    def obstacles(
        self, alignment: Alignment, encoded: Sequence[Encoded], student: nn.Module, teacher: object
    ) -> list[str]:
        """See ``StepTerm``."""
        name, found = type(alignment).__name__, []
        if alignment.needs_recompute:
            found.append(f"{name} makes the losses again at moved parameters; with prada take erm or erm_pooled")
        if self.active and alignment.needs_domain_gradients:
            found.append(
                f"{name} keeps the gradients of the training domains apart, and that of prada's target questions "
                "belongs to none of them; take erm or erm_pooled"
            )
        if self.active and isinstance(alignment, Penalised):
            found.append(f"{name} has a penalty of its own on whole sequences; with prada take erm or erm_pooled")
        if self._virtual and self.args.guard is not None:
            found.append("a guard hands an adapter to the next stage, and no prompt of prada; set adapt to lora")
        if self.active and self.args.shard_base:
            found.append("prada's target rows are seen domain by domain, not equally often everywhere; no shard_base")
        objective = self.trainer.objective
        if self._virtual and isinstance(objective, VCRD) and objective.step_settings is not None:
            found.append("the next steps of vcrd would be proposed without prada's prompt; set adapt to lora")
        if self._virtual and teacher is not None:
            found.append("the teacher does not know the virtual tokens of prada's prompt; set adapt to lora")
        if self.active and self.term.control != "source" and not self._rows:
            found.append(
                "prada needs questions of a target: set target (in Python target_dataset) to rows, of which only "
                "prompts are read; lam: 0 trains the prompt without"
            )
        return found

    def prompted(self, encoded: list[Encoded]) -> list[Encoded]:
        """Rows that begin with the virtual tokens, which are not trained on.

        Raises:
            UserError: they are longer than what the student reads.
        """
        n = len(self._virtual)
        longest = max(len(ids) for ids in [*(row.input_ids for row in encoded), *self._asked])
        context = getattr(self.model.get_base_model().config, "max_position_embeddings", longest + n)
        if longest + n > context:
            shorter = f"Set train.max_length to {context - n}, or" if n < context // 2 else "Set"
            raise UserError(
                f"The longest row has {longest} tokens and the prompt {n} virtual ones: together more than the "
                f"{context} that the student reads. {shorter} term.n_virt lower."
            )
        return [
            replace(row, input_ids=self._virtual + row.input_ids, labels=[IGNORE_INDEX] * n + row.labels)
            for row in encoded
        ]

    def setup(self, total_steps: int) -> None:
        """Domains of the classifier, the stream of target questions, the classifier.

        Raises:
            UserError: there is one domain only, or the target's questions are the source's.
        """
        source: Sequence[Encoded] = self.trainer.train_dataset
        asked = [[t for t, label in zip(e.input_ids, e.labels, strict=True) if label == IGNORE_INDEX] for e in source]
        target = [
            _question(row.id, _named(row.domain, "target"), self._virtual + ids)
            for row, ids in zip(self._rows, self._asked, strict=True)
        ]
        if self.term.control == "source":
            target = [_question(e.row_id, "target", ids) for e, ids in zip(source, asked, strict=True)]
        elif self.active:
            _require_another({tuple(row.input_ids) for row in target}, {tuple(ids) for ids in asked})
        sources = [_named(domain, "source") for domain in self.trainer.domains]
        self.domains = list(dict.fromkeys([*sources, *sorted({row.domain for row in target})]))
        if self.active and len(self.domains) < 2:
            raise UserError(
                f"Source and target are one domain ({self.domains[0]}), so no classifier can tell them apart. Give the "
                "target rows a `domain` of their own."
            )
        self._of_source = [self.domains.index(name) for name in sources]
        self._target = target
        d = self.model.get_base_model().get_output_embeddings().in_features
        self.term.setup(d, len(self.domains), total_steps, self.args.seed)
        if self.active:
            self.trainer.add_callback(RisingLoss(self.term.lam))

    def begin(self, batches: Sequence[Mapping[str, Tensor]], counts: Tensor) -> None:
        """Draw the target questions of a step, and count the rows of every domain over micro-batches and processes.

        The draw depends on step, micro-batch and process alone, and the same rows per step are drawn however it is
        split; so a resumed run draws on.
        """
        if not self.active:
            return
        args, n = self.args, self.args.per_device_train_batch_size
        first = self.trainer.state.global_step * args.gradient_accumulation_steps
        self._targets = [
            self._drawn(((first + i) * args.world_size + args.process_index) * n, n) for i in range(len(batches))
        ]
        rows = torch.zeros(len(self.domains), dtype=torch.float64, device=args.device)
        self._sides = []
        for batch, target in zip(batches, self._targets, strict=True):
            of_source = torch.tensor(self._of_source, device=args.device)[batch["domain_index"].to(args.device)]
            for side, domains in ((batch, of_source), (target, target["domain_index"])):
                labels = self.term.labels(domains.to(args.device), _texts(side))
                rows += torch.bincount(labels, minlength=len(self.domains))
                self._sides.append(labels)
        if args.world_size > 1:
            dist.all_reduce(rows)
        self._counts = rows

    def _drawn(self, start: int, n: int) -> dict[str, Tensor]:
        """Questions ``start`` to ``start + n`` of an endless stream of shuffled epochs."""
        total, seed = len(self._target), self.args.seed
        rows = []
        for place in range(start, start + n):
            epoch, i = divmod(place, total)
            order = torch.randperm(total, generator=torch.Generator().manual_seed(seed * 7919 + epoch))
            rows.append(self._target[int(order[i])])
        batch = collate(rows, self.domains, self.tokenizer.pad_token_id)
        return cast("dict[str, Tensor]", self.trainer._prepare_inputs(batch))

    def forward(self, batch: Mapping[str, Tensor], positions: Tensor) -> tuple[StudentOutput, Tensor | float]:
        """The student at its trained positions, and the part of the next micro-batch of the step in lam_p L_d."""
        if not self.active:
            return super().forward(batch, positions)
        target, (ours, theirs) = self._targets.pop(0), (self._sides.pop(0), self._sides.pop(0))
        n, asked = len(positions), self._question(batch)
        out = self.trainer.student(batch, torch.cat([positions, asked]))
        there = self._question(target)
        seen = self.trainer.student(target, there)
        q = torch.cat([_means(out.hidden[n:], asked, batch), _means(seen.hidden, there, target)])
        loss = self.term.loss(q, torch.cat([ours, theirs]), self._counts, self.trainer.state.global_step)
        return StudentOutput(out.hidden[:n], out.head), loss

    def _question(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Flat positions of question tokens: neither trained, nor padding, nor virtual."""
        asked = batch["attention_mask"].bool() & (batch["labels"] == IGNORE_INDEX)
        return (asked & (batch["input_ids"] < self._n_vocab)).flatten().nonzero().squeeze(1)

    def group(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the prompt a learning rate of its own, under the same schedule."""
        if self.encoder is None:
            return
        own = set(self.encoder.parameters())
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p not in own]
        prompt = {"params": list(self.encoder.parameters()), "lr": self.term.prompt_learning_rate, "weight_decay": 0.0}
        optimizer.add_param_group(prompt)

    def step(self) -> dict[str, float]:
        """See ``StepTerm``."""
        if not self.active:
            return {}
        self.term.step()
        return {f"prada/{name}": value for name, value in self.term.take_metrics().items()}

    def _trained(self) -> dict[str, nn.Parameter]:
        """What is trained beside LoRA."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and "lora_" not in n}

    def state_dict(self) -> dict[str, Tensor]:
        """The classifier, the prompt encoder, and with ``full`` all weights."""
        weights = {f"weights/{name}": p.detach() for name, p in self._trained().items()}
        return weights | self.term.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state back."""
        with torch.no_grad():
            for name, p in self._trained().items():
                p.copy_(state[f"weights/{name}"])
        self.term.load_state_dict({n: value for n, value in state.items() if not n.startswith("weights/")})

    def save(self, folder: Path) -> None:
        """The prompt and, with ``full``, all weights into the student's folder; the classifier beside the run."""
        causal = cast(Any, self.model.get_base_model())
        if self.encoder is not None:
            save_prompt(folder / PROMPT, self.encoder, causal)
        if self.term.adapt == "full":
            prompted = next(n for n, m in causal.named_modules() if m is causal.get_input_embeddings())
            plain = {
                n.replace(".base_layer", "").replace(f"{prompted}.plain.", f"{prompted}."): p
                for n, p in causal.state_dict().items()
                if "lora_" not in n and not n.startswith(f"{prompted}.encoder.")
            }
            causal.save_pretrained(folder / WEIGHTS, state_dict=plain)
        if self.active and self.term.learner is not None:
            beside = Path(self.args.output_dir) / "prada"
            beside.mkdir(parents=True, exist_ok=True)
            names = {"domains": ", ".join(self.domains)}
            save_file(self.term.learner.module.state_dict(), beside / "classifier.safetensors", metadata=names)


def _prompt_ids(row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    try:
        return encode_prompt(row, tokenizer, max_length)
    except RowError as error:
        raise UserError(
            f"A question of the target cannot be asked: {error}. Leave it out, or raise max_length."
        ) from error


def _question(row_id: str, domain: str, ids: list[int]) -> Encoded:
    """A text without a trained token."""
    return Encoded(row_id, domain, None, ids, [IGNORE_INDEX] * len(ids), 1.0)


def _require_another(target: set[tuple[int, ...]], source: set[tuple[int, ...]]) -> None:
    if target <= source:
        raise UserError(
            f"Each of the {len(target)} questions of the target is one of the source, so there is nothing to adapt to. "
            "Give prada another target."
        )
    if source <= target:
        raise UserError(
            f"The target holds all {len(source)} questions that are learned from: the same question would be source "
            "and target. Leave them out of the target."
        )


def _named(domain: str | None, otherwise: str) -> str:
    return otherwise if domain in (None, NO_DOMAIN) else str(domain)


def _texts(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """The question of every row."""
    asked = batch["attention_mask"].bool() & (batch["labels"] == IGNORE_INDEX)
    return [row[kept].tolist() for row, kept in zip(batch["input_ids"], asked, strict=True)]


def _means(hidden: Tensor, positions: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """q (R, d) in fp32: the mean over the positions of every row."""
    rows = positions // batch["input_ids"].shape[1]
    n = torch.bincount(rows, minlength=len(batch["input_ids"])).clamp(min=1)
    sums = hidden.new_zeros(len(n), hidden.shape[1], dtype=torch.float32).index_add_(0, rows, hidden.float())
    return sums / n[:, None]
