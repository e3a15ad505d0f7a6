"""Feature distillation of classifiers, causal LMs and encoder-decoders: a Trainer of transformers beside a teacher.

    L = L_task + b L_feature + kd T^2 KL(p_T || p_S)          p at temperature T, by classes, or by valid tokens over
                                                              the ids that both vocabularies have

``DistillTrainer`` is for LoRA students of causal LMs on traces, with domains; this one trains whatever parameters of
the student require a gradient, on rows of token ids. Cost: the teacher's forward, and the scoring pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from isodistill.errors import UserError
from isodistill.numerics.divergences import divergence
from isodistill.teachers.vocabulary import common_vocabulary
from isodistill.terms import FeatureTerm, FlexKD
from isodistill.terms.scoring import DimensionScores
from isodistill.training.any_head import AnyHead, Seen
from isodistill.training.checkpoint import load_rng, load_state, save_rng, save_state
from isodistill.training.scoring import scored

__all__ = ["FeatureTrainer"]

_LOOKED_AT = 4


class FeatureTrainer(Trainer):
    """Train a student with any head beside a frozen teacher with the same kind of head.

    Called as transformers' Trainer is::

        trainer = FeatureTrainer(student, args, train_dataset=rows, data_collator=collator, teacher_model=teacher,
                                 term=FlexKD(), kd=0.5)
        trainer.train()

    Every row (token) of an optimizer step counts alike in the task's loss and the logits' one, however it is split into
    micro-batches; L_feature of a micro-batch counts by its rows. Evaluation reports the task's loss. Where Flex-KD
    chooses among dimensions, their scores lie in ``flexkd/`` of the output folder under a hash of teacher and rows.
    Checkpoints are safetensors and JSON; they resume bit for bit.

    Args:
        model: the student.
        args: as in transformers; one process.
        train_dataset: rows with ``labels``: a class, or tokens with -100 on what is not valid.
        teacher_model: with the same kind of head, for the same tokenizer; frozen and never saved.
        term: ``FlexKD``, ``Projector`` or ``CKA``; None leaves features alone.
        kd: factor of the logits' loss. Default 0.
        temperature: of the logits' loss. Default 2.
        teacher_processing_class: the teacher's tokenizer, to be compared with ``processing_class``; with both given
            the vocabularies may be padded to different sizes.
        **others: as in transformers.

    Raises:
        UserError: student, teacher, rows and options do not fit together; everything that is missing is listed at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Any,
        teacher_model: PreTrainedModel,
        term: FeatureTerm | None = None,
        *,
        kd: float = 0.0,
        temperature: float = 2.0,
        processing_class: PreTrainedTokenizerBase | None = None,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
        **others: Any,
    ) -> None:
        _require_models(model, teacher_model, term)
        _require_rows(train_dataset)
        self.term, self.kd, self.temperature = (None if term is None or term.is_neutral else term), kd, temperature
        pairs = [] if self.term is None else self.term.layers
        found = _obstacles(model, teacher_model, pairs, self.term, kd, temperature)
        sizes = model.config.vocab_size, teacher_model.config.vocab_size
        found += _tokenizer_obstacle(processing_class, teacher_processing_class, *sizes)
        self._n_common = min(sizes)
        if args.world_size > 1:
            found.append("it runs in one process; DistillTrainer runs in several")
        if args.fp16:
            found.append("fp16 is not supported: its loss scale is no part of a checkpoint; take bf16")
        _refuse(found)
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, processing_class=processing_class, **others
        )
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = True
        self.teacher_model = teacher_model.to(args.device).eval().requires_grad_(False)
        first = self._rows([train_dataset[i] for i in range(min(_LOOKED_AT, len(train_dataset)))])
        self._student = AnyHead(self.model, sorted({s for _, s in pairs} | {-1}), first, "student")
        self._teacher = AnyHead(self.teacher_model, sorted({t for t, _ in pairs} | {-1}), first, "teacher")
        if self.term is not None:
            self.term.setup(self._widths(first), args.seed)
        self.add_callback(_TermSteps(self))

    def _rows(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """A batch of some rows on the device, as training has it."""
        collate = self._get_collator_with_removed_columns(self.data_collator)
        return cast("dict[str, Tensor]", self._prepare_inputs(collate(list(rows))))

    @torch.no_grad()
    def _widths(self, batch: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        assert self.term is not None
        own, theirs = self._student.see(batch).features, self._teacher.see(batch).features
        return [(own[s].shape[1], theirs[t].shape[1]) for t, s in self.term.layers]

    # ---- one optimizer step ----

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Targets of the whole optimizer step."""
        return torch.tensor(sum(len(self._student.positions(batch)[0]) for batch in batch_samples), device=device)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As in transformers; before the first step, and where it is due again, dimensions are chosen."""
        if isinstance(self.term, FlexKD):
            self._choose(self.term)
        return cast(Tensor, super().training_step(model, inputs, num_items_in_batch))

    def _choose(self, term: FlexKD) -> None:
        step = self.state.global_step
        block = step // term.refresh_every if term.refresh_every else 0
        if term.idx and block == term.refreshed:
            return
        term.refreshed, widths = block, term.widths
        term.choose(self._scored(term, widths) if any(d_S < d_T for d_S, d_T in widths) else [])

    def _scored(self, term: FlexKD, widths: list[tuple[int, int]]) -> list[DimensionScores]:
        def add(rows: Sequence[Any], scores: list[DimensionScores], half: int) -> None:
            found = dict(zip(self._teacher.layers, self._teacher.gradients(self._rows(rows)), strict=True))
            for (layer, _), one in zip(term.layers, scores, strict=True):
                one.add(*found[layer], half)

        assert self.train_dataset is not None
        dtype = str(self.teacher_model.dtype)
        return scored(term, widths, self.teacher_model, self.train_dataset, _described, add, self.args, dtype)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum over targets of all parts, divided by the targets of the step; in evaluation the task's mean."""
        own = self._student.see(inputs)
        n = len(own.targets)
        total = F.cross_entropy(own.logits.float(), own.targets, reduction="sum")
        if model.training and (self.term is not None or self.kd):
            with torch.no_grad():
                theirs = self._teacher.see(inputs)
            total = total + n * self._feature_loss(own, theirs)
            if self.kd:
                n_common = own.logits.shape[1] if self._student.classifies else self._n_common
                z_T, z_S = (seen.logits[:, :n_common].float() / self.temperature for seen in (theirs, own))
                p, q = F.log_softmax(z_T, 1), F.log_softmax(z_S, 1)
                total = total + self.kd * self.temperature**2 * divergence("fkl", p, q).sum()
        if model.training and not torch.isfinite(total):
            raise UserError(
                f"The loss is not finite in step {self.state.global_step + 1}, so the student would be lost. Look at "
                "the features of teacher and student on these rows; compute in fp32 (bf16=False), or lower the rate."
            )
        loss = total / (num_items_in_batch if num_items_in_batch is not None else max(n, 1))
        return (loss, {"logits": own.logits}) if return_outputs else loss

    def _feature_loss(self, own: Seen, theirs: Seen) -> Tensor | float:
        if self.term is None:
            return 0.0
        pairs = enumerate(self.term.layers)
        step = self.state.global_step
        losses = [self.term.loss(i, own.features[s], theirs.features[t], step) for i, (t, s) in pairs]
        return self.term.b * torch.stack(losses).sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the term measured."""
        if self.term is not None and "loss" in logs:
            logs = logs | {f"{self.term.name}/{name}": value for name, value in self.term.take_metrics().items()}
        super().log(logs, start_time)

    # ---- checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Student and tokenizer; no pickled arguments."""
        folder = Path(output_dir or str(self.args.output_dir))
        self.model.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        term = {} if self.term is None else self.term.state_dict()
        save_state(Path(output_dir), self._inner_optimizer(), self.lr_scheduler, term)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            term = load_state(Path(checkpoint), self._inner_optimizer(), self.lr_scheduler)
            if self.term is not None and term:
                self.term.load_state_dict(term)

    def _save_rng_state(self, output_dir: str) -> None:
        save_rng(Path(output_dir), self.args.process_index)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_rng(Path(checkpoint), self.args.process_index)

    def _inner_optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer inside accelerate's wrapper."""
        return cast(torch.optim.Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))


class _TermSteps(TrainerCallback):
    """Move what the term has of its own with the trainer's steps."""

    def __init__(self, trainer: FeatureTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.term is not None:
            self.trainer.term.step()


def _described(row: Mapping[str, Any]) -> list[Any]:
    """What of a row decides the scores."""
    values = (row[name] for name in ("input_ids", "labels"))
    return [value.tolist() if isinstance(value, Tensor) else value for value in values]


def _require_models(student: object, teacher: object, term: object) -> None:
    for who, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, PreTrainedModel):
            raise UserError(
                f"The {who} is a {type(model).__name__}; give a model of transformers (add_adapter puts LoRA in)."
            )
    if student is teacher:
        raise UserError("Student and teacher are one object, which would be frozen; load the teacher once more.")
    if term is not None and not isinstance(term, FeatureTerm):
        raise UserError(f"The term is a {type(term).__name__}; give FlexKD, Projector, CKA or None.")


def _require_rows(rows: Any) -> None:
    if not hasattr(rows, "__len__"):
        raise UserError(f"The training rows are a {type(rows).__name__} without a length; give a list or a Dataset.")
    if len(rows) < 2:
        raise UserError(f"There are {len(rows)} training rows; features correlate over two or more.")
    for name, what in (("input_ids", "their token ids"), ("labels", "a class or tokens")):
        if name not in rows[0]:
            raise UserError(f"The training rows have no {name}, only {', '.join(rows[0])}. Give each {what}.")
    if torch.as_tensor(rows[0]["labels"]).is_floating_point():
        raise UserError("The labels of the training rows are no whole numbers; classes and tokens alone are distilled.")


def _obstacles(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    pairs: Sequence[Sequence[int]],
    term: FeatureTerm | None,
    kd: float,
    temperature: float,
) -> list[str]:
    found = []
    own, theirs = student.config, teacher.config
    if not (0 <= kd < math.inf and 0 < temperature < math.inf):
        found.append(
            f"kd is {kd} and temperature {temperature}; they must be finite numbers of at least 0, and above 0"
        )
    if isinstance(term, FlexKD) and term.stats == "step":
        found.append("stats: step is for DistillTrainer; take micro, and batches that are large enough")
    if own.is_encoder_decoder != theirs.is_encoder_decoder:
        found.append("one of student and teacher is an encoder-decoder, the other is none: positions do not correspond")
    if kd and own.num_labels != theirs.num_labels:
        found.append(f"the student has {own.num_labels} classes and the teacher {theirs.num_labels}; set kd to 0")
    for side, (who, config) in enumerate((("teacher", theirs), ("student", own))):
        deepest = config.decoder_layers if config.is_encoder_decoder else config.num_hidden_layers
        asked = max((pair[side] for pair in pairs), default=-1)
        if asked > deepest:
            found.append(f"the term looks at layer {asked} of the {who}, which has {deepest}")
    return found


def _tokenizer_obstacle(
    own: PreTrainedTokenizerBase | None, theirs: PreTrainedTokenizerBase | None, n_S: int, n_T: int
) -> list[str]:
    """Vocabularies may be padded to different sizes, which only the tokenizers can tell."""
    if own is None or theirs is None:
        if n_S == n_T:
            return []
        return [
            f"the student reads {n_S} tokens and the teacher {n_T}: under different tokenizers positions do not "
            "correspond; where only the padding of the vocabulary differs, give both tokenizers (processing_class, "
            "teacher_processing_class)"
        ]
    try:
        common_vocabulary(own, theirs, n_S, n_T, truncate=True)
    except UserError as error:
        return [str(error).removesuffix(".")]
    return []


def _refuse(found: Sequence[str]) -> None:
    if found:
        raise UserError("The feature distillation cannot start: " + "; ".join(found) + ".")
