"""The recipe: one YAML file says everything about a run; this is the one place for its names and defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml

from isodistill.errors import UserError

__all__ = [
    "Cue",
    "Evaluate",
    "Isomers",
    "Overlap",
    "Recipe",
    "Split",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "parse_settings",
    "typed",
]

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as the number that people mean; YAML 1.1 takes it for text."""


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that ``_Loader`` would take for a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


@dataclass(frozen=True)
class Cue:
    """A shortcut planted in generated isomers, off by default.

    Attributes:
        kind: none, conflict (same tokens, another meaning in every domain), private (own tokens in every domain).
        rho: strength: share of training rows whose cue tells the answer; one number, or one per domain.
    """

    kind: str = "none"
    rho: float | dict[str, float] = 1.0


@dataclass(frozen=True)
class Isomers:
    """What ``problems: builtin:isomers`` generates.

    Attributes:
        n_sets: isomer sets over all splits.
        families: structure families; empty takes all.
        domains: surfaces that every set is told in; the held-out ones of ``split`` among them.
        difficulty: levels to draw from, 1 to 3.
        cue: the planted shortcut.
    """

    n_sets: int = 480
    families: list[str] = field(default_factory=list)
    domains: list[str] = field(
        default_factory=lambda: ["mathematics", "medicine", "law", "science", "cooking", "sports", "finance"]
    )
    difficulty: list[int] = field(default_factory=lambda: [1, 2])
    cue: Cue = field(default_factory=Cue)


@dataclass(frozen=True)
class Split:
    """How rows without a split of their own are divided: by structure, then by set.

    Attributes:
        valid: share of structures for validation.
        test: share of structures for the test splits.
        held_out_domains: never trained on; their test rows are the split ``ood``.
        seed_data: seed of the division (and of generated problems).
    """

    valid: float = 0.1
    test: float = 0.25
    held_out_domains: list[str] = field(default_factory=list)
    seed_data: int = 0


@dataclass(frozen=True)
class Overlap:
    """How training rows are compared with what they are evaluated on, before training.

    Attributes:
        n: words in a row that count as an overlap.
        against: files of further evaluation sets, beside the test splits of the run.
        columns: our column -> theirs in these files; null takes those of the recipe.
        drop: leave overlapping rows, and the sets that they belong to, out of training.
    """

    n: int = 13
    against: list[str] = field(default_factory=list)
    columns: dict[str, str] | None = None
    drop: bool = False

    def __post_init__(self) -> None:
        if self.n < 5:
            raise UserError(f"overlap.n is {self.n}; fewer than 5 words in a row are shared by chance.")


@dataclass(frozen=True)
class Evaluate:
    """How test problems are answered and scored: decoding, then ``verify``.

    Attributes:
        max_new_tokens: longest answer; longer ones count as truncated.
        batch_size: prompts decoded side by side.
        max_sets: test sets per split, drawn by a hash of their ids; 0 takes all.
        before: also evaluate the untrained student.
        temperature: 0 decodes greedily; above 0 samples from softmax(logits / temperature).
        n_samples: answers drawn per problem, for pass@k; every other number is then their mean.
        backend: ``local`` answers in this process; ``openai`` asks a server that speaks the OpenAI API, such as vLLM.
        base_url: of that server.
        model: the name under which it serves the trained student.
        splits: splits to answer; empty takes all test splits. ``valid`` is answered for model selection only.
    """

    max_new_tokens: int = 96
    batch_size: int = 64
    max_sets: int = 0
    before: bool = True
    temperature: float = 0.0
    n_samples: int = 1
    backend: str = "local"
    base_url: str | None = None
    model: str | None = None
    splits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, least in (
            ("max_new_tokens", 1),
            ("batch_size", 1),
            ("max_sets", 0),
            ("temperature", 0),
            ("n_samples", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"evaluate.{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.n_samples > 1 and self.temperature == 0:
            raise UserError(
                f"evaluate.n_samples is {self.n_samples} and evaluate.temperature is 0: greedy answers are all the "
                "same. Set a temperature, such as 0.7, or n_samples to 1."
            )
        if self.backend not in ("local", "openai"):
            raise UserError(f"evaluate.backend is {self.backend!r}; it is local or openai.")
        if self.backend == "local" and (self.base_url or self.model):
            raise UserError("evaluate.base_url and evaluate.model belong to evaluate.backend openai; it is local.")
        if self.backend == "openai" and not (self.base_url and self.model):
            raise UserError("evaluate.backend openai needs evaluate.base_url and evaluate.model.")
        if self.backend == "openai" and self.before:
            raise UserError(
                "evaluate.backend openai asks one model, the trained student: set evaluate.before to false, or use "
                "evaluate.backend local."
            )


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Attributes:
        student: ``smollm2-135m``, ``tiny`` (made on the spot), hub id, folder, or GGUF file.
        teacher: asked at every token by objectives and terms that need one: as ``student``, or ``self``, the student's
            own base.
        teacher_top_k: ask the teacher before training, once, and keep its so many likeliest tokens at every position on
            disk; 0 asks it live.
        target: file of rows whose prompts alone are read, for ``prada``; null for every other method.
        problems: ``builtin:isomers``, ``real:NAME`` with ``real_data``, a file, or a ``datasets`` name.
        real_data: folder of the real data sets for ``real:NAME``.
        columns: our column -> theirs, for files with other names.
        max_refused: share of rows that may be refused before the run stops.
        licence: of all rows without one of their own; shown in the report.
        method: preset that fills the slots; see ``objective`` and ``alignment``.
        baseline: method trained beside it from the same start, for the paired difference; null trains none.
        objective: slot; null takes the preset's.
        alignment: slot; null takes the preset's.
        term: slot; null takes the preset's, which is mostly none.
        guard: slot: what protects the skills of earlier stages; null is none.
        stages: distillations in sequence on one student, each a ``name`` and the keys in which it differs from the
            recipe; null is one distillation.
        rewrite: settings of ``isomers.rewrite.settings.Rewrite``, for `isodistill isomers rewrite` alone.
        teach: settings of ``teachers.settings.Teach``; null learns from the completions of the problems.
        lora: arguments of ``peft.LoraConfig``.
        train: arguments of ``DistillConfig`` (transformers.TrainingArguments names); ``steps`` is ``max_steps``, and
            gives way to ``max_steps`` or ``num_train_epochs``.
        seed: training seed: adapters, order of the sets.
        seed_hparam: search draw that these settings come from, for the records; null outside a search.
    """

    student: str = "smollm2-135m"
    teacher: str | None = None
    teacher_top_k: int = 0
    target: str | None = None
    problems: str = "builtin:isomers"
    real_data: str | None = None
    columns: dict[str, str] | None = None
    max_refused: float = 0.01
    licence: str | None = None
    method: str = "iga"
    baseline: str | None = "erm"
    objective: dict[str, Any] | None = None
    alignment: dict[str, Any] | None = None
    term: dict[str, Any] | None = None
    guard: dict[str, Any] | None = None
    stages: list[dict[str, Any]] | None = None
    teach: dict[str, Any] | None = None
    rewrite: dict[str, Any] | None = None
    isomers: Isomers = field(default_factory=Isomers)
    split: Split = field(default_factory=Split)
    overlap: Overlap = field(default_factory=Overlap)
    lora: dict[str, Any] = field(
        default_factory=lambda: {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
    )
    train: dict[str, Any] = field(default_factory=lambda: {"steps": 200})
    evaluate: Evaluate = field(default_factory=Evaluate)
    seed: int = 0
    seed_hparam: int | None = None

    def __post_init__(self) -> None:
        if self.teacher_top_k < 0:
            raise UserError(f"teacher_top_k is {self.teacher_top_k}; it must be at least 0 (the live teacher).")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; ``overrides`` are ``a.b=c`` with c in YAML.

    Raises:
        UserError: no such file, not YAML, an unknown key (with the nearest right one), a value of the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"There is no recipe {path}. Copy one from examples/ or write: student, problems, method."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {path} cannot be read: {error}.") from error
    try:
        tree = _read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"The recipe {path} is not YAML: {error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"The recipe {path} must be a mapping of keys to values, not {type(tree).__name__}.")
    return parse_recipe(tree, overrides, where=str(path))


def parse_recipe(tree: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "the recipe") -> Recipe:
    """A recipe from a plain mapping; see ``load_recipe``."""
    return parse_settings(Recipe, tree, overrides, where)


def parse_settings(kind: type[T], tree: Mapping[str, Any], overrides: Sequence[str], where: str) -> T:
    """Any dataclass of settings from a plain mapping, read as strictly as a recipe; see ``load_recipe``."""
    merged: dict[str, Any] = _copy(tree)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes key=value, as in --set train.steps=100; got {override!r}.")
        node = merged
        *path, last = key.split(".")
        for name in path:
            if node.get(name) is None:
                node[name] = {}
            node = node[name]
            if not isinstance(node, dict):
                raise UserError(f"--set {override}: {name} holds a value, not a group of keys.")
        try:
            told = _read_yaml(value)
            if last == "name" and node.get("name") not in (None, told):
                node.clear()  # another part in the slot: options of the one before are not its own
            node[last] = told
        except yaml.YAMLError as error:
            raise UserError(f"--set {override}: the value is not YAML: {error}") from error
    return _build(kind, merged, where, "")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; reading it back gives an equal recipe."""
    return yaml.dump(asdict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _build(kind: type[T], tree: Mapping[str, Any], where: str, prefix: str) -> T:
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        if key not in known:
            near = get_close_matches(str(key), list(known), n=1)
            hint = f" Did you mean {prefix}{near[0]}?" if near else ""
            raise UserError(
                f"Unknown key {prefix}{key} in {where}.{hint} Known: {', '.join(prefix + k for k in known)}."
            )
        hint_type = hints[key]
        if is_dataclass(hint_type):
            if not isinstance(value, Mapping):
                raise UserError(f"{prefix}{key} in {where} is a group of keys, but got {value!r}.")
            values[key] = _build(cast(type[Any], hint_type), value, where, f"{prefix}{key}.")
        else:
            value = typed(value, hint_type, f"{prefix}{key}", where, known[key].default)
            make = known[key].default_factory
            if isinstance(value, dict) and make is not MISSING:
                value = cast(dict[str, Any], make()) | value  # what a group leaves out keeps its default
            values[key] = value
    return kind(**values)


def typed(value: Any, hint: Any, key: str, where: str, default: Any = MISSING) -> Any:
    """The value of a key as the type that it must have; a whole number serves as a float.

    Raises:
        UserError: it is of another type; names key, place and default.
    """
    if hint is Any:
        return value
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for option in options:
        plain = get_origin(option) or option
        if option is type(None) and value is None:
            return None
        if plain is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(plain, type) and isinstance(value, plain) and not (isinstance(value, bool) and plain is not bool):
            return _inside(value, get_args(option), key, where)
    names = " or ".join("null" if o is type(None) else getattr(get_origin(o) or o, "__name__", str(o)) for o in options)
    instead = "" if default is MISSING else f" The default is {default!r}."
    raise UserError(f"{key} in {where} must be {names}, but is {value!r}.{instead}")


def _inside(value: Any, hints: tuple[Any, ...], key: str, where: str) -> Any:
    """The value with the members of a list or mapping checked too."""
    if isinstance(value, list):
        return [typed(member, hints[0], f"{key}[{i}]", where) for i, member in enumerate(value)]
    if isinstance(value, dict):
        return {name: typed(member, hints[1], f"{key}.{name}", where) for name, member in value.items()}
    return value


def _copy(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copy(value) for key, value in tree.items()}
    return list(tree) if isinstance(tree, list) else tree
