"""What happens to the micro-batches of an optimizer step before it: nothing here is part of a training step.

samples     a share rho of the steps trains on what the student itself writes       (Distillation.rho)
validity    next steps are proposed and scored, the column ``deltas``              (VCRD in step mode)
tasks       rows are weighted so that each task has a mean of its own              (LabelMultitask)
whole step  weights that look at all tokens of the step, the column ``strengths``  (controls of VCRD, w_norm)
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from isodistill.alignment import PooledERM
from isodistill.data.collate import collate
from isodistill.data.encode import IGNORE_INDEX, Encoded
from isodistill.data.files import write_lines
from isodistill.errors import UserError
from isodistill.evaluation.generate import generate
from isodistill.objectives import VCRD, Distillation, LabelMultitask
from isodistill.training.agreement import over_processes
from isodistill.training.forward import trained_tokens
from isodistill.training.proposals import Measured, Proposals, Trace
from isodistill.validity import Scorer, Scoring, make_scorer, text_ends, written_ends

__all__ = ["Preparation"]

Batch = dict[str, Tensor]


class Preparation:
    """See the module.

    Args:
        trainer: the ``DistillTrainer``, at the step that it starts from.
        scorer: scores steps in place of the one that the settings describe.

    Attributes:
        measured: id of a row -> what was last found about the steps of its trace.

    Raises:
        UserError: the scorer cannot be made.
    """

    def __init__(self, trainer: Any, scorer: Scorer | None) -> None:
        self.trainer = trainer
        self.objective = trainer.objective
        self.proposals: Proposals | None = None
        self.measured: dict[str, Measured] = {}
        self._file = Path(trainer.args.output_dir) / "validity" / "steps.jsonl"
        settings = self.objective.step_settings if isinstance(self.objective, VCRD) else None
        if settings is not None:
            readers, rank = trainer.readers, trainer.args.process_index
            chosen = scorer or make_scorer(settings.scorer, readers.teacher, readers.base)
            limits = {"limit": settings.limit, "max_failed": settings.max_failed}
            scoring = Scoring(chosen, self._file.parent, rank=rank, **limits)
            self.proposals = Proposals(settings, scoring, readers, trainer.args.seed, self.objective.weight)
            self._go_on()

    def __call__(self, batches: list[Batch]) -> list[Batch]:
        """The micro-batches as they are trained on."""
        objective = self.objective
        student: PreTrainedModel | None = None
        own = isinstance(objective, Distillation) and self._coin() < objective.rho
        if own:
            student = self.trainer.readers.student()
            batches = [self._sampled(batch, student) for batch in batches]
        if self.proposals is not None:
            self._with_deltas(batches, own, student)
        if isinstance(objective, LabelMultitask):
            self._with_tasks(batches, objective)
        if isinstance(objective, VCRD) and objective.needs_whole_step:
            self._with_strengths(batches, objective)
        return batches

    def take_metrics(self) -> dict[str, float]:
        """Counts of the step, over all processes."""
        if self.proposals is None:
            return {}
        counts = self.proposals.take_metrics()
        summed = over_processes(torch.tensor(list(counts.values()), dtype=torch.float64), self.trainer.args)
        return dict(zip(counts, summed.tolist(), strict=True))

    # ---- samples ----

    def _coin(self) -> float:
        """One for the whole step; all processes throw the same."""
        return random.Random(f"{self.trainer.args.seed}/{self.trainer.state.global_step}").random()

    def _sampled(self, batch: Batch, student: PreTrainedModel) -> Batch:
        """The same rows with completions that the student writes."""
        trainer, objective = self.trainer, self.objective
        rows = self._rows(batch)
        prompts = [row.input_ids[: row.labels.count(IGNORE_INDEX)] for row in rows]
        longest = max(map(len, prompts))
        context = getattr(student.config, "max_position_embeddings", None) or 2**31
        room = min(objective.sample_tokens, context - longest)
        if room < 1:
            raise UserError(f"A prompt of {longest} tokens leaves no room for samples in a context of {context}.")
        step = trainer.state.global_step
        drawn = generate(
            student,
            trainer.processing_class,
            prompts,
            max_new_tokens=room,
            temperature=objective.sample_temperature,
            seeds=[_seed(trainer.args.seed, step, row.row_id) for row in rows],
        )
        eos = trainer.processing_class.eos_token_id
        written = []
        for row, prompt, generation in zip(rows, prompts, drawn, strict=True):
            tokens = generation.tokens + ([eos] if generation.finish == "eos" else [])
            labels = [IGNORE_INDEX] * len(prompt) + tokens
            written.append(
                Encoded(row.row_id, row.domain, row.set_id, prompt + tokens, labels, row.weight, place=row.place)
            )
        made = collate(written, trainer.domains, trainer.processing_class.pad_token_id)
        made["sampled"] = torch.ones(len(written), dtype=torch.bool)
        return {name: values.to(batch["place"].device) for name, values in made.items()}

    def _rows(self, batch: Batch) -> list[Encoded]:
        return [self.trainer.train_dataset[place] for place in batch["place"].tolist()]

    # ---- validity of steps ----

    def _with_deltas(self, batches: Sequence[Batch], own: bool, student: PreTrainedModel | None) -> None:
        """Add the column ``deltas`` (rows, T); what no process has measured yet is measured first."""
        assert self.proposals is not None
        step, every = self.trainer.state.global_step, self.proposals.settings.every
        traces: dict[str, Trace] = {}
        for batch in batches:
            for n, row in enumerate(self._rows(batch)):
                known = None if own else self.measured.get(row.row_id)
                if known is None or (every and step - known.made >= every):
                    traces[row.row_id] = self._trace(row, batch, n, own)
        found: list[Measured] = []
        if traces:
            writer = self.trainer.readers.student() if student is None else student
            found = self.proposals.measure(list(traces.values()), step, writer)
        found = self._shared(found)
        table = {one.row: one for one in found} if own else self.measured
        if not own:
            table.update({one.row: one for one in found})
        self._write(found)
        for batch in batches:
            deltas = torch.zeros(batch["labels"].shape)
            for n, (row, labels) in enumerate(zip(self._rows(batch), batch["labels"], strict=True)):
                trained = (labels != IGNORE_INDEX).nonzero().squeeze(1).cpu()
                deltas[n, trained] = torch.tensor(table[row.row_id].per_token(len(trained)))
            batch["deltas"] = deltas.to(batch["labels"].device)

    def _trace(self, row: Encoded, batch: Batch, n: int, own: bool) -> Trace:
        """Row n of a micro-batch: the teacher's trace, or what the student wrote in its place."""
        source, tokenizer = self.trainer.rows[row.row_id], self.trainer.processing_class
        if not own:
            return Trace(source, row, source.completion, text_ends(source.completion, tokenizer), own)
        length = int(batch["attention_mask"][n].sum())
        ids, labels = (batch[name][n, :length].tolist() for name in ("input_ids", "labels"))
        written = [token for token in labels if token != IGNORE_INDEX]
        written = written[:-1] if written[-1] == tokenizer.eos_token_id else written
        sample = Encoded(row.row_id, row.domain, row.set_id, ids, labels, row.weight, place=row.place)
        text = tokenizer.decode(written, skip_special_tokens=True)
        return Trace(source, sample, text, written_ends(written, tokenizer), own)

    def _shared(self, found: list[Measured]) -> list[Measured]:
        """What all processes measured; a row that two of them had was measured alike by both."""
        if self.trainer.args.world_size == 1:
            return found
        gathered: list[list[Measured]] = [[] for _ in range(self.trainer.args.world_size)]
        dist.all_gather_object(gathered, found)
        return list({one.row: one for part in gathered for one in part}.values())

    def _write(self, found: Sequence[Measured]) -> None:
        if found and self.trainer.args.process_index == 0:
            try:
                with self._file.open("a", encoding="utf-8") as file:
                    file.writelines(one.line() + "\n" for one in found)
            except OSError as error:
                raise UserError(
                    f"{self._file} cannot be written: {error.strerror}. Free some space and start the command again."
                ) from error

    def _go_on(self) -> None:
        """Take in what was measured before the step that training goes on from; later lines will be made again."""
        kept: list[str] = []
        if self._file.exists():
            whole = self._file.read_text(encoding="utf-8").rpartition("\n")[0]
            try:
                records = [json.loads(line) for line in whole.split("\n") if line]
                past = [Measured.of(record) for record in records if record["made"] < self.trainer.state.global_step]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self._file} is damaged: {error}. Delete it and train anew.") from error
            self.measured = {one.row: one for one in past if not one.own}
            kept = [one.line() for one in past]
        if self.trainer.args.world_size > 1:
            dist.barrier()  # all have read it
        if self.trainer.args.process_index == 0:
            write_lines(self._file, kept)

    # ---- tasks ----

    def _with_tasks(self, batches: Sequence[Batch], objective: LabelMultitask) -> None:
        """Weigh rows by share x n_k / n_(task, k): the trained tokens of domain k, all over those of the row's task."""
        K = 1 if isinstance(self.trainer.alignment, PooledERM) else len(self.trainer.domains)
        tasks = ("label", "rationale")
        counts = torch.zeros(len(tasks), K, dtype=torch.float64, device=self.trainer.args.device)
        rows = []
        for batch in batches:
            n = (batch["labels"] != IGNORE_INDEX).sum(1).tolist()
            for row, k, length in zip(self._rows(batch), batch["domain_index"].tolist(), n, strict=True):
                task, share = objective.share(row.row_id)
                rows.append((tasks.index(task), k if K > 1 else 0, share))
                counts[rows[-1][:2]] += length
        if self.trainer.args.world_size > 1:
            dist.all_reduce(counts)
        factors = iter([share * float(counts[:, k].sum() / counts[task, k]) for task, k, share in rows])
        for batch in batches:
            own = [next(factors) for _ in range(len(batch["place"]))]
            batch["weights"] = batch["weights"] * torch.tensor(own).to(batch["weights"])

    # ---- weights of the whole step ----

    @torch.no_grad()
    def _with_strengths(self, batches: Sequence[Batch], objective: VCRD) -> None:
        """A first pass for delta, then w of all tokens of the step together, in an order that no split changes."""
        trainer, parts, deltas = self.trainer, [], []
        for index, batch in enumerate(batches):
            inputs = trainer._prepare_inputs(batch)
            tokens, positions = trained_tokens(inputs)
            with trainer._autocast():
                delta = tokens.deltas
                if delta is None:  # token mode: the only one that has to ask
                    student, teacher = trainer.student(inputs, positions), trainer.teacher(inputs, positions)
                    delta = objective.deltas(student, tokens, teacher)
            deltas.append(delta)
            width = inputs["labels"].shape[1]
            key = inputs["place"][positions // width].double() * 2**20 + positions % width
            source = torch.full_like(key, index * trainer.args.world_size + trainer.args.process_index)
            order = torch.arange(len(key), device=key.device).double()
            parts.append(torch.stack([key, source, order, objective.weight(deltas[-1]).double()], 1))
        table = torch.cat(parts)
        if trainer.args.world_size > 1:
            accelerator = trainer.accelerator
            table = accelerator.gather(accelerator.pad_across_processes(table, dim=0, pad_index=-1))
            table = table[table[:, 0] >= 0]
        table = table[table[:, 0].argsort(stable=True)]
        seed = int(table[:, 0].sum() % 2**53)
        w = objective.settled(table[:, 3], seed)
        for index, (batch, delta) in enumerate(zip(batches, deltas, strict=True)):
            mine = table[:, 1] == index * trainer.args.world_size + trainer.args.process_index
            own = torch.empty(len(delta), dtype=torch.float32, device=w.device)
            own[table[mine, 2].long()] = w[mine].float()
            trained = batch["labels"] != IGNORE_INDEX
            trained[:, 0] = False  # nothing predicts a first token
            for name, values in (("deltas", delta), ("strengths", own)):
                column = torch.zeros(trained.shape, device=trained.device)
                column[trained] = values.float().to(trained.device)
                batch[name] = column


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8])
