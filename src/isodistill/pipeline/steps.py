"""Train, evaluate and add up: the steps between the problems and the report, each on files of one run folder."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from peft import LoraConfig

from isodistill.data.files import Refusal, check_refused, write_lines, write_refusals
from isodistill.data.load import load_rows
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.evaluation.answer import Provenance, answer_rows, read_representations
from isodistill.evaluation.records import PredictionLog, Stage
from isodistill.evaluation.results import json_text, split_results
from isodistill.isomers.rewrite.settings import parse_rewrite
from isodistill.models.stacked import stack_adapters
from isodistill.models.tiny import TINY
from isodistill.objectives import LabelMultitask
from isodistill.pipeline.answering import files_of_trained, name_of, open_backend, open_base
from isodistill.pipeline.domains import DOMAINS, TARGET, write_domains
from isodistill.pipeline.problems import answered_splits, learned_file, read_split
from isodistill.pipeline.ranks import is_main
from isodistill.pipeline.stamps import Stamps, digest, files_under
from isodistill.pipeline.start import start_of
from isodistill.pipeline.target import load_target, target_rows
from isodistill.pipeline.teachers import judge_settings, training_scorer, training_teacher
from isodistill.recipe import Recipe, dump_recipe, parse_recipe, typed
from isodistill.teachers.settings import parse_teach
from isodistill.training import DistillConfig, DistillTrainer
from isodistill.training.guard_state import FILES
from isodistill.training.slots import fill_guard, fill_slots

__all__ = ["evaluate_student", "resolved", "train_student", "write_results"]

_BOOKKEEPING = ("report_to", "run_name", "save_steps", "save_total_limit", "logging_steps", "disable_tqdm")
"""Keys of ``train`` that change nothing about the student; another value does not train it anew."""
_VERSIONS = ("isodistill", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a plain mapping with its slots filled, every default written out."""
    *parts, slots = fill_slots(recipe.method, recipe.objective, recipe.alignment, recipe.term)
    tree = asdict(recipe)
    if recipe.guard is not None:
        guard, name = fill_guard(recipe.guard)
        tree["guard"] = {"name": name, **(asdict(cast(Any, guard)) if is_dataclass(guard) else {})}
    for slot, part in zip(("objective", "alignment", "term"), parts, strict=True):
        if part is not None:
            options: dict[str, Any] = asdict(cast(Any, part)) if is_dataclass(part) else {}
            tree[slot] = {"name": slots[slot]["name"], **options, **slots[slot]}
    if recipe.teach is not None:
        teach = parse_teach(recipe.teach)
        tree["teach"] = asdict(teach) | {"teachers": {name: asdict(one) for name, one in teach.settings.items()}}
    # Other verbs use these, yet what is written into recipe.yaml must be known keys: one of them may hold a secret.
    if recipe.rewrite is not None:
        parse_rewrite(recipe.rewrite)
    judge_settings(recipe)
    return tree


def train_student(recipe: Recipe, folder: Path, stamps: Stamps, earlier: Path | None = None) -> None:
    """Train and save ``student/``; an interrupted training goes on from its newest checkpoint.

    Args:
        recipe: of the run, or of one stage.
        folder: the run folder; with a guard it also gets ``guard/``, what the next stage needs.
        stamps: its stamps.
        earlier: folder of the stage before this one, whose student is trained on.
    """
    keys = (
        *("student", "teacher", "teacher_top_k", "target", "lora", "seed", "train", "objective", "alignment", "term"),
        *("guard", "max_refused"),
    )
    tree = resolved(recipe)
    files = [learned_file(recipe, folder, "train"), *files_under(Path(recipe.student))]
    files += files_under(Path(recipe.teacher)) if recipe.teacher else []
    files += files_under(Path(recipe.target)) if recipe.target else []
    tree["train"] = {key: value for key, value in tree["train"].items() if key not in _BOOKKEEPING}
    if earlier is not None:
        files += [earlier / "student" / "adapter_model.safetensors", *(earlier / "guard" / name for name in FILES)]
    inputs = digest({key: tree[key] for key in keys}, files)

    def clear() -> None:
        for name in ("student", "checkpoints", "validity", "guard"):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        for name in ("metrics.jsonl", "train.json", "refused/train.jsonl"):
            (folder / name).unlink(missing_ok=True)

    def do() -> None:
        trainer = _trainer(recipe, folder, earlier)
        trainer.get_train_dataloader()  # makes the sampler, which knows the sets that it cannot use
        refused = trainer.refused + [
            Refusal(f"set {name}", None, "domain", f"lacks {', '.join(lacking)}, so the whole set is left out")
            for name, lacking in trainer.sampler.dropped.items()
        ]
        _list_refused(refused, folder / "refused" / "train.jsonl", "rows or sets are not trained on")
        has_checkpoint = any((folder / "checkpoints").glob("checkpoint-*"))
        trainer.train(resume_from_checkpoint=has_checkpoint)
        if recipe.guard is not None:
            trainer.guarding.end_stage(folder / "guard")
        trainer.save_model(str(folder / "student"))
        if is_main():
            if earlier is not None and trainer.guarding.guard.fresh_adapter:
                stack_adapters(earlier / "student", folder / "student")
            write_lines(folder / "train.json", [json.dumps(_cost(folder, trainer.state.global_step))])

    stamps.step("train", inputs, clear=clear, do=do, together=True)


def _trainer(recipe: Recipe, folder: Path, earlier: Path | None) -> DistillTrainer:
    """The trainer of a recipe, ready to start."""
    config = _config(recipe, folder)
    student = open_base(recipe, folder)
    model, lora = start_of(recipe, student.model, _lora(recipe), earlier)
    config.guard_state = None if earlier is None else str(earlier / "guard")
    config.max_length = min(config.max_length, student.context)
    print(f"Training {recipe.method} on {config.placement}", flush=True)
    learned, held = (learned_file(recipe, folder, split) for split in ("train", "valid"))
    rows = load_rows(learned, max_refused=0).rows
    held_rows = load_rows(held, max_refused=0).rows if held.exists() else None
    teacher, teacher_tokenizer = training_teacher(recipe, folder, student, [*rows, *(held_rows or [])], config)
    return DistillTrainer(
        model,
        args=config,
        train_dataset=rows,
        eval_dataset=held_rows,
        processing_class=student.tokenizer,
        peft_config=lora,
        teacher_model=teacher,
        teacher_processing_class=teacher_tokenizer,
        scorer=training_scorer(recipe),
        target_dataset=target_rows(recipe, folder),
    )


def evaluate_student(recipe: Recipe, folder: Path, stamps: Stamps, stage: Stage, donor: Path | None = None) -> None:
    """Answer the splits of a recipe with the untrained (``before``) or the trained (``after``) student.

    Args:
        recipe: of the run.
        folder: the run folder.
        stamps: its stamps.
        stage: before or after training.
        donor: another run folder whose answers are taken over when they are to the same questions by the same student.
    """
    splits = answered_splits(recipe, folder)
    files = [folder / "problems" / f"{name}.jsonl" for name in splits]
    files += files_under(Path(recipe.student))
    if stage == "after":
        files += files_of_trained(folder)
    seed = None
    if recipe.student == TINY:  # made from the seed and the training texts, as no other student is
        seed = recipe.seed
        files.append(learned_file(recipe, folder, "train"))
    # A student of two tasks is asked for its label as it was in training.
    taught = fill_slots(recipe.method, recipe.objective, recipe.alignment)[0]
    tasks = taught if stage == "after" and isinstance(taught, LabelMultitask) else None
    prefixes = [] if tasks is None else [tasks.label_prefix]
    watched = []
    if recipe.target is not None:
        watched.append(DOMAINS)
        files += files_under(Path(recipe.target))
    inputs = digest([recipe.student, asdict(recipe.evaluate), stage, seed, *prefixes, *watched], files)
    name = f"evaluate-{stage}"

    def clear() -> None:
        _forget(folder, stage)

    def do() -> None:
        if donor is not None and Stamps(donor).done.get(name) == {"inputs": inputs, "finished": True}:
            _forget(folder, stage)
            _take_over(donor, folder, stage)
            return
        student = open_base(recipe, folder)
        backend = open_backend(recipe, folder, student, stage)
        log = PredictionLog(folder / "predictions.jsonl")
        provenance = _provenance(recipe, folder, stage)
        refused: list[Refusal] = []
        asked = {split: _first_sets(read_split(folder, split), recipe.evaluate.max_sets) for split in splits}
        if tasks is not None:
            asked = {split: [tasks.asked(row) for row in rows] for split, rows in asked.items()}
        for split, rows in asked.items():
            refused += answer_rows(
                backend,
                student.tokenizer,
                rows,
                log,
                provenance,
                split=split,
                max_new_tokens=recipe.evaluate.max_new_tokens,
                batch_size=recipe.evaluate.batch_size,
                temperature=recipe.evaluate.temperature,
                n_samples=recipe.evaluate.n_samples,
            )
        listed = folder / "refused" / f"{stage}.jsonl"
        _list_refused(refused, listed, "test rows could not be asked")
        check_refused(refused, sum(len(read_split(folder, split)) for split in splits), recipe.max_refused, listed)
        if not any(log.done(stage, split) for split in splits):
            raise UserError(f"No test row could be asked, the first one because: {refused[0]}. All are in {listed}.")
        if recipe.target is not None:
            write_domains(folder, stage, backend, student.tokenizer, asked | {TARGET: load_target(recipe)})

    stamps.step(name, inputs, clear=clear, do=do)


def write_results(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """``results.json`` from the records."""
    tree = resolved(recipe)
    records = PredictionLog(folder / "predictions.jsonl").read()
    by_stage: dict[str, dict[str, Any]] = {"before": {}, "after": {}}
    for stage, entries in by_stage.items():
        for split in answered_splits(recipe, folder):
            chosen = [r for r in records if r.stage == stage and r.split == split]
            if chosen:
                states = read_representations(folder, stage, split)  # type: ignore[arg-type]
                entries[split] = split_results(chosen, states or None)
    train = folder / "train.json"
    results = {
        "schema": 1,
        "recipe_hash": digest(tree),
        "method": recipe.method,
        "tier": _tier(recipe),
        "student": name_of(recipe.student),
        "seed": recipe.seed,
        "seed_hparam": recipe.seed_hparam,
        "splits": by_stage["after"],
        "before": by_stage["before"],
        "train": json.loads(train.read_text(encoding="utf-8")) if train.exists() else {},
        "versions": {name: metadata.version(name) for name in _VERSIONS} | {"python": sys.version.split()[0]},
    }
    write_lines(folder / "results.json", [json_text(results).rstrip("\n")])
    return results


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """``recipe.yaml`` with every default; the same file runs the same run again."""
    write_lines(folder / "recipe.yaml", [dump_recipe(parse_recipe(resolved(recipe))).rstrip("\n")])


def _config(recipe: Recipe, folder: Path) -> DistillConfig:
    given = dict(recipe.train)
    steps = given.pop("steps", None)
    if steps is not None and not {"max_steps", "num_train_epochs"} & given.keys():
        given["max_steps"] = steps
    _require_known("train", given, DistillConfig, "transformers.TrainingArguments")
    hints = get_type_hints(DistillConfig)
    for key, value in given.items():
        if hints[key] in (int, float, bool):  # the others say themselves what they take
            given[key] = typed(value, hints[key], f"train.{key}", "the recipe")
    try:
        return DistillConfig(
            output_dir=str(folder),
            method=recipe.method,
            objective=recipe.objective,
            alignment=recipe.alignment,
            term=recipe.term,
            guard=recipe.guard,
            max_refused=recipe.max_refused,
            seed=recipe.seed,
            **given,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"The group train of the recipe is refused: {error}") from error


def _lora(recipe: Recipe) -> LoraConfig:
    _require_known("lora", recipe.lora, LoraConfig, "peft.LoraConfig")
    try:
        return LoraConfig(task_type="CAUSAL_LM", **recipe.lora)
    except (ValueError, TypeError) as error:
        raise UserError(f"The group lora of the recipe is refused: {error}") from error


def _require_known(group: str, given: Iterable[str], kind: Any, name: str) -> None:
    known = [f.name for f in fields(kind) if f.init]
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {group}.{near[0]}?" if near else ""
            raise UserError(f"Unknown key {group}.{key}.{hint} The keys are those of {name}.")


def _list_refused(refused: list[Refusal], path: Path, what: str) -> None:
    if refused and is_main():
        write_refusals(path, refused)
        print(f"{len(refused)} {what}; they are listed in {path}, the first: {refused[0]}", flush=True)


def _provenance(recipe: Recipe, folder: Path, stage: Stage) -> Provenance:
    train = folder / "train.json"
    after = stage == "after"
    return Provenance(
        run_id=digest(resolved(recipe))[:12],
        method=recipe.method if after else "none",
        tier=_tier(recipe) if after else None,
        seed_train=recipe.seed,
        seed_data=recipe.split.seed_data,
        seed_hparam=recipe.seed_hparam,
        step=json.loads(train.read_text(encoding="utf-8"))["steps"] if after and train.exists() else 0,
        stage=stage,
    )


def _tier(recipe: Recipe) -> str | None:
    alignment = fill_slots(recipe.method, recipe.objective, recipe.alignment)[1]
    return getattr(alignment, "tier", None)


def _first_sets(rows: list[Row], max_sets: int) -> list[Row]:
    if not max_sets:
        return rows
    # By hash, not by name: names begin with the family, and the first ones would all be of one kind.
    kept = set(
        sorted({row.set_id or row.id for row in rows}, key=lambda name: sha256(name.encode()).digest())[:max_sets]
    )
    return [row for row in rows if (row.set_id or row.id) in kept]


def _cost(folder: Path, steps: int) -> dict[str, Any]:
    """Steps, tokens, seconds (over all sittings) and peak memory of a training."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = sum(line.get("seconds", 0.0) for line in lines)
    tokens = max((line.get("tokens", 0) for line in lines), default=0)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
        "peak_memory_bytes": peak,
    }


def _forget(folder: Path, stage: Stage) -> None:
    """Drop the answers of a stage; those of the other stage stay."""
    if (folder / "representations" / stage).exists():
        shutil.rmtree(folder / "representations" / stage)
    for left in (folder / "refused" / f"{stage}.jsonl", folder / DOMAINS / f"{stage}.json"):
        left.unlink(missing_ok=True)
    path = folder / "predictions.jsonl"
    if path.exists():
        lines = _lines(path)
        write_lines(path, [line for line in lines if json.loads(line)["stage"] != stage])


def _take_over(donor: Path, folder: Path, stage: Stage) -> None:
    own = folder / "predictions.jsonl"
    lines = _lines(own) if own.exists() else []
    donated = _lines(donor / "predictions.jsonl")
    shutil.copytree(donor / "representations" / stage, folder / "representations" / stage, dirs_exist_ok=True)
    if (donor / DOMAINS / f"{stage}.json").exists():
        (folder / DOMAINS).mkdir(exist_ok=True)
        shutil.copy(donor / DOMAINS / f"{stage}.json", folder / DOMAINS)
    write_lines(own, lines + [line for line in donated if json.loads(line)["stage"] == stage])


def _lines(path: Path) -> list[str]:
    """Whole lines of a JSONL file; an answer may hold other characters that ``str.splitlines`` takes for line ends."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.endswith("}")]
