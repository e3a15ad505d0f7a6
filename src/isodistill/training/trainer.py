"""DistillTrainer: a transformers.Trainer whose step sees domains."""

from __future__ import annotations

import functools
import time
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from isodistill.data.collate import collate
from isodistill.errors import UserError
from isodistill.models.load import add_lora
from isodistill.models.lora import DomainGradients, half_bounds, lora_layers, row_bounds
from isodistill.models.sharding import shard_base
from isodistill.training.agreement import agreed, over_processes
from isodistill.training.callbacks import MetricsFile, QuietProgress, SamplerEpoch, finite_or_blame
from isodistill.training.checkpoint import newest_checkpoint
from isodistill.training.config import DistillConfig
from isodistill.training.forward import Student, open_student, token_counts, trained_tokens
from isodistill.training.guarding import Guarding, guard_obstacles
from isodistill.training.interrupt import StopOnSignal
from isodistill.training.needs import takes_segments
from isodistill.training.preparation import Preparation
from isodistill.training.readers import Readers
from isodistill.training.replay import StepReplay
from isodistill.training.resumable import ResumableTrainer
from isodistill.training.rows import AnyRows, encode_dataset, open_sampler
from isodistill.training.slots import fill_guard, fill_slots
from isodistill.training.teaching import TeacherModel, open_teacher, teacher_obstacles
from isodistill.training.term_norms import term_norms
from isodistill.training.terms import open_term
from isodistill.training.weighted import write_weighted_traces
from isodistill.validity import Scorer

__all__ = ["DEFAULT_LORA", "DistillTrainer"]

DEFAULT_LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
_MAX_SKIPS = 10


class DistillTrainer(ResumableTrainer):
    """Distil traces into a LoRA student, with an objective per token and an alignment over domains.

    Called as users of TRL call theirs::

        trainer = DistillTrainer(model, args=DistillConfig(method="iga", output_dir="runs/mine"),
                                 train_dataset=rows, processing_class=tokenizer, peft_config=LoraConfig(...))
        trainer.train(resume_from_checkpoint=True)
        trainer.save_model("student")

    Within one optimizer step every token of domain k is divided by the same n_k, the trained tokens of that domain in
    all micro-batches and ranks together, so the split into micro-batches never changes the gradient.

    Args:
        model: a causal LM, or a peft model with one active adapter.
        args: see ``DistillConfig``.
        train_dataset: ``Row`` objects, plain dicts, or a ``datasets.Dataset`` with the columns of DESIGN's rows.
        eval_dataset: likewise; ``evaluate`` reports the mean over batches of their mean token loss.
        processing_class: the tokenizer.
        peft_config: LoRA settings for a model that is not wrapped yet; default: r 16, alpha 32, all linear layers.
        teacher_model: for objectives and terms that ask a teacher at every step: a frozen causal LM; ``self``, the
            student's base with its adapter switched off; or, for objectives, a ``LogitCache`` that holds the rows.
        teacher_processing_class: the teacher's tokenizer, to be compared with the student's; without it, a warning.
        callbacks: as in transformers; they may read, not change the update.
        scorer: scores proposed steps of VCRD in place of the one that ``steps.scorer`` describes.
        target_dataset: for ``prada``: rows of another domain, of which only the prompts are read.

    Attributes:
        refused: training rows that were not used, each with its reason.

    Raises:
        UserError: rows, model, method and options do not fit together; everything that is missing is listed at once.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: DistillConfig,
        train_dataset: AnyRows,
        processing_class: PreTrainedTokenizerBase,
        eval_dataset: AnyRows | None = None,
        peft_config: LoraConfig | None = None,
        teacher_model: TeacherModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
        scorer: Scorer | None = None,
        target_dataset: AnyRows | None = None,
    ) -> None:
        if not isinstance(model, PeftModel):
            model = add_lora(model, peft_config or LoraConfig(task_type="CAUSAL_LM", **DEFAULT_LORA), args.seed)
        elif peft_config is not None:
            raise UserError("The model carries an adapter already; leave peft_config out, or pass the bare model.")
        slots = (args.objective, args.alignment, args.term)
        self.objective, self.alignment, term, self.preset = fill_slots(args.method, *slots)
        self.term = open_term(self, term, model, target_dataset, args, processing_class)
        told = (args, processing_class, self.objective, self.term.prompted)
        encoded, self.rows, self.refused = encode_dataset(train_dataset, *told, "train")
        self.domains = args.domains or sorted({e.domain for e in encoded})
        who = (args.method, processing_class, teacher_processing_class, encoded, scorer)
        guard, guard_name = fill_guard(args.guard)
        features = term is not None and term.needs_teacher
        obstacles = teacher_obstacles(self.objective, teacher_model, model, *who, features=features)
        obstacles += self.term.obstacles(self.alignment, encoded, model, teacher_model)
        obstacles += guard_obstacles(guard, guard_name, model, self.alignment, teacher_model, args)
        segmented = takes_segments(model, args, self.alignment, self.domains, obstacles, self.objective)
        self.segmented = segmented and not self.term.more_rows
        if args.shard_base:
            shard_base(model, args.device.type, args.world_size)
        args.per_device_train_batch_size = args.sets_per_batch * len(self.domains)
        collator = functools.partial(collate, domains=self.domains, pad_id=processing_class.pad_token_id)
        evaluated = None
        if eval_dataset is not None:
            evaluated, _, refused = encode_dataset(eval_dataset, *told, "valid")
            self.refused += refused
        super().__init__(
            model=model,
            args=args,
            train_dataset=encoded,
            eval_dataset=evaluated,
            data_collator=collator,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.loss_is_scaled_for_ga = True
        self.guarding = Guarding(self, guard, guard_name, args.guard_state)
        asked = self.objective.needs_teacher or features
        self.teacher = open_teacher(teacher_model, self.model, asked, args.compute_dtype, args.device, encoded)
        self.readers = Readers(
            self.model, processing_class, teacher_model, teacher_processing_class, args.compute_dtype
        )
        self.scorer = scorer
        self._add_callbacks()
        self._extra, self._rare = dict[str, float](), dict[str, float]()  # sums over steps; what some steps measure
        self._skips = self._logged_step = self._turn = 0
        self._step_done = False
        self._engine: ExitStack | None = None

    def _add_callbacks(self) -> None:
        self.add_callback(SamplerEpoch(self))
        for shown in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown)
        if not self.args.disable_tqdm:
            self.add_callback(QuietProgress)
        self.add_callback(MetricsFile(Path(self.args.output_dir) / "metrics.jsonl"))

    # ---- rows in ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of whole isomer sets."""
        self.sampler = open_sampler(self.train_dataset, self.domains, self.args)
        loader = DataLoader(
            cast(Any, self.train_dataset),
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return cast("DataLoader[Any]", self.accelerator.prepare(loader))

    # ---- one optimizer step ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; see transformers.Trainer.train. Ctrl-C finishes the step, saves and says how to go on.

        Raises:
            KeyboardInterrupt: after the checkpoint of an interrupted run was written.
            UserError: ``resume_from_checkpoint=True`` and there is no checkpoint; ten steps in a row were not finite.
        """
        if resume_from_checkpoint is True:
            found = newest_checkpoint(self.checkpoints)
            if found is None:
                raise UserError(f"There is no finished checkpoint in {self.checkpoints} to resume from.")
            resume_from_checkpoint = str(found)
        with StopOnSignal(self) as stop, ExitStack() as self._engine:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
            write_weighted_traces(self)
        if stop.asked and self.state.global_step < self.state.max_steps:
            raise KeyboardInterrupt(
                f"Stopped after step {self.state.global_step} of {self.state.max_steps}; the checkpoint is in "
                f"{self.checkpoints}. The same command goes on from there."
            )
        return result

    def create_accelerator_and_postprocess(self) -> None:
        """Keep DDP away: gradients are reduced by us, once per step, after all domains are in."""
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    def _run_epoch(self, **kwargs: Any) -> None:
        # A run resumed from its last step has nothing left to do; transformers would train one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the arguments, with the alignment called around its step."""
        if self.optimizer is None:
            optimizer: torch.optim.Optimizer = super().create_optimizer(model)
            self.term.group(optimizer)
            optimizer.register_step_pre_hook(lambda opt, args, kwargs: self._before_step(opt))
            optimizer.register_step_post_hook(lambda opt, args, kwargs: self._after_step(opt))
        return cast(torch.optim.Optimizer, self.optimizer)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        self.create_optimizer()
        layers = lora_layers(self.model)
        adaptive = not isinstance(self.optimizer, torch.optim.SGD)
        self.alignment.setup(layers=layers, total_steps=max_steps, adaptive=adaptive, seed=self.args.seed)
        self.term.setup(max_steps)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._logged_step, self._logged_tokens = self.state.global_step, self.state.num_input_tokens_seen
        self._logged_time = time.perf_counter()
        n_rows = len(self.domains) if self.alignment.needs_domain_gradients else 1
        n_rows *= 2 if self.alignment.needs_halves else 1
        self.gradients = DomainGradients.allocate(self.model, n_rows, dense=self.alignment.needs_weight_gradients)
        self.gradients.losses = torch.zeros(len(self.domains), dtype=torch.float64, device=self.args.device)
        assert self._engine is not None
        for name in ("student", "replay"):  # they hold packed copies of the weights
            self._engine.callback(self.__dict__.pop, name, None)
        how = (self.args, self.segmented, self._engine, self.term.layers(1))
        self.student = open_student(self.model, self.gradients, *how)
        self.replay = StepReplay(self)
        self.preparation = Preparation(self, self.scorer)
        return prepared

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Trained tokens (K,) of every domain in the whole optimizer step, over micro-batches and ranks."""
        K = len(self.domains)
        totals = token_counts(batch_samples, K, self.args.process_index).to(device)
        if self.args.world_size > 1:
            dist.all_reduce(totals)
        self.state.num_input_tokens_seen += int(totals[-1])
        half_tokens = totals[:-1].view(K, 2)
        if self.alignment.needs_halves:
            self.gradients.half_tokens = half_tokens
        self._turn = self.args.process_index  # which half gets the odd row alternates over micro-batches and ranks
        return half_tokens.sum(1)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of the next optimizer step and its trained tokens, shown to what sees them again."""
        batches = list(islice(epoch_iterator, num_batches))
        if not batches:
            return [], None
        batches = self.preparation(batches)
        self._record(self.preparation.take_metrics())
        counts = self._get_num_items_in_batch(batches, device)
        self._rare |= term_norms(self, batches, counts)
        self.replay.begin(batches, counts)
        return batches, counts

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch; on the last one of a step, leave the direction in ``.grad``."""
        model.train()
        inputs = cast("dict[str, Tensor]", self._prepare_inputs(inputs))
        if self._step_done:  # not earlier: ``.grad`` may be a window into the buffers until the optimizer has stepped
            self.gradients.zero()
            self._step_done = False
        counts = cast(Tensor, num_items_in_batch)
        weights = self.alignment.domain_weights(counts)
        sums = self._accumulate(inputs, weights)
        if self.args.world_size > 1:
            dist.all_reduce(sums)
        present = counts > 0
        means: Tensor = sums[0] / counts.clamp(min=1)
        self.gradients.losses += sums[1] / counts.clamp(min=1)
        if self.accelerator.sync_gradients:
            self._align(present)
            everywhere = functools.partial(over_processes, args=self.args)
            self._record(self.objective.take_metrics(everywhere) | self.term.step())
            self._step_done = True
        # What is reported is the mean of the domain means, whatever the alignment optimises.
        for domain, value in zip(self.domains, means.tolist(), strict=True):
            self._extra[f"loss/{domain}"] = self._extra.get(f"loss/{domain}", 0.0) + value
        return (means.sum() / present.sum()).float()

    def _accumulate(self, inputs: dict[str, Tensor], weights: Tensor) -> Tensor:
        """Add the gradients of a micro-batch to the buffers; returns the summed token losses (2, K) in fp64.

        First as they are, then times the weights of their rows and with the term: what the gradients are of.
        """
        index = inputs["domain_index"]
        if self.alignment.needs_halves:
            bounds = half_bounds(row_bounds(index.tolist(), len(self.domains)), self._turn)
        elif self.alignment.needs_domain_gradients:
            bounds = row_bounds(index.tolist(), len(self.domains))
        else:
            bounds = [0, len(index)]
        self._turn += 1
        if self.segmented:
            self.gradients.row_bounds = bounds
            self.gradients.n_tokens = inputs["input_ids"].numel()
            return self._backward(inputs, weights)
        sums = torch.zeros(2, len(self.domains), dtype=torch.float64, device=index.device)
        for k, (start, stop) in enumerate(pairwise(bounds)):
            if start < stop:
                sums += self._backward({name: t[start:stop] for name, t in inputs.items()}, weights)
                self.gradients.fold(k)
        return sums

    def _backward(self, inputs: dict[str, Tensor], weights: Tensor) -> Tensor:
        tokens, positions = trained_tokens(inputs)
        with self._autocast():
            student, extra = self.replay.forward(inputs, positions)
            teacher = None if self.teacher is None else self.teacher(inputs, positions)
            losses, token_weights = self.objective.token_losses(student, tokens, teacher)
            raised = self.term(student, tokens, positions, inputs, teacher)
            losses = losses + self.guarding.token_losses(inputs, positions, tokens, student)
        loss = (losses * weights.to(losses)[tokens.domains] * token_weights).sum() + extra
        (loss + (weights * raised).sum()).backward()
        sums = torch.stack([torch.zeros_like(weights), raised.detach().to(weights)])
        values = losses.detach().double()
        return sums.index_add_(1, tokens.domains, torch.stack([values, values * token_weights]))

    def _autocast(self) -> torch.autocast:
        """bf16 for what is not a LoRA linear; accelerate would wrap ``model.forward``, which is never called here."""
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=bool(self.args.bf16))

    def _align(self, present: Tensor) -> None:
        """Reduce over ranks, check, and let the alignment set ``.grad``."""
        if self.args.world_size > 1:
            dist.all_reduce(self.gradients.flat)
            for dense in self.gradients.dense.values():
                dist.all_reduce(dense)
        names = self.domains if self.alignment.needs_domain_gradients else ["all"]
        if self.alignment.needs_halves:
            names = [name for name in names for _ in range(2)]
        trouble = finite_or_blame(self.gradients, names)
        if trouble is not None:
            self._skip(trouble)
        else:
            self._skips = 0
            rows = present if self.alignment.needs_domain_gradients else torch.ones(1, dtype=torch.bool)
            metrics = self.alignment.update(self.gradients, rows) | self.guarding.after_backward()
            self.alignment.before_clipping()
            self._record(agreed(metrics, self.args, self.state.global_step + 1))

    def _skip(self, trouble: str) -> None:
        self._skips += 1
        for p in self.gradients.parameters.values():
            p.grad = None
        print(f"step {self.state.global_step + 1} skipped: {trouble}", flush=True)
        if self._skips >= _MAX_SKIPS:
            raise UserError(
                f"{_MAX_SKIPS} steps in a row had gradients that are not finite; the last: {trouble}. "
                "Lower train.learning_rate, or look at the rows of that domain."
            )

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._skips:
            self.alignment.before_step(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._skips:
            metrics = self.alignment.after_step(optimizer) | self.guarding.guard.after_step()
            self._record(agreed(metrics, self.args, self.state.global_step + 1))

    # ---- logs ----

    def _record(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._extra[name] = self._extra.get(name, 0.0) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the steps since the last log measured, as means over them."""
        steps = self.state.global_step - self._logged_step
        if "loss" in logs and steps:
            now, tokens = time.perf_counter(), self.state.num_input_tokens_seen
            seconds, new = now - self._logged_time, tokens - self._logged_tokens
            logs = logs | {name: value / steps for name, value in self._extra.items()} | self._rare
            logs |= {"tokens": tokens, "seconds": seconds, "tokens_per_second": new / seconds}
            self._extra, self._rare, self._logged_step = {}, {}, self.state.global_step
            self._logged_time, self._logged_tokens = now, tokens
        super().log(logs, start_time)

    # ---- evaluation loss ----

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Mean token loss of a batch; logits are never kept."""
        inputs = cast("dict[str, Tensor]", self._prepare_inputs(inputs))
        student = getattr(self, "student", None) or Student(self.model, self.args.compute_dtype)
        tokens, positions = trained_tokens(inputs)
        with torch.no_grad(), self._autocast():
            teacher = None if self.teacher is None else self.teacher(inputs, positions)
            losses, _ = self.objective.token_losses(student(inputs, positions), tokens, teacher)
        self.objective.take_metrics()  # of the rows of evaluation; the log is about training
        return losses.mean(), None, None
