"""The group ``teach`` of a recipe: the one place for its names and defaults."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from isodistill.errors import UserError
from isodistill.recipe import parse_settings
from isodistill.teachers.asking import Limits
from isodistill.teachers.base import Sampling
from isodistill.teachers.pace import Prices

__all__ = ["Teach", "TeacherSettings", "parse_teach"]

_PRICES = (("price_prompt", 0), ("price_completion", 0))


@dataclass(frozen=True)
class TeacherSettings:
    """One teacher.

    Attributes:
        name: under which its answers are kept and shown; null takes the model, or the name of the file. Two teachers
            with one model need one.
        kind: ``server`` (any OpenAI-compatible one), ``local`` (a model in this process), ``replay`` (traces on disk).
        model: server: the name under which it has the model; local: what ``student`` may be.
        base_url: server: its address, such as http://localhost:8000/v1.
        key_from: server: the environment variable that holds the key; the key itself stands in no file.
        timeout: server: seconds for one request.
        workers: requests in flight at once; local: answers computed side by side.
        tries: how often a request is sent before it is given up.
        per_minute: most requests a minute; 0 sets no limit.
        price_prompt: money per million tokens of the prompt.
        price_completion: money per million tokens of the answers.
        files: replay: rows with a completion.
        columns: replay: our column -> theirs.
    """

    name: str | None = None
    kind: str = "server"
    model: str | None = None
    base_url: str | None = None
    key_from: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    workers: int = 8
    tries: int = 6
    per_minute: float = 0.0
    price_prompt: float | None = None
    price_completion: float | None = None
    files: str | None = None
    columns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        needed = {"server": ("model", "base_url"), "local": ("model",), "replay": ("files",)}
        if self.kind not in needed:
            raise UserError(f"A teacher's kind is {self.kind!r}; it is one of {', '.join(needed)}.")
        for name in needed[self.kind]:
            if getattr(self, name) is None:
                raise UserError(f"A teacher of kind {self.kind} needs {name}.")
        if not re.fullmatch("[A-Z][A-Z0-9_]{0,60}", self.key_from):  # keys have small letters, such as sk-, hf_, gsk_
            raise UserError(
                "A teacher's key_from is the name of an environment variable in capitals, such as OPENAI_API_KEY, "
                "never the key itself."
            )
        if self.base_url is not None:
            address = urlsplit(self.base_url)
            if address.scheme not in ("http", "https") or address.username or address.password or address.query:
                raise UserError(
                    "A teacher's base_url is http:// or https:// with a host and a path, without user, password or "
                    "query: keys belong into the environment variable that key_from names."
                )
        for name, least in (("timeout", 0.001), ("workers", 1), ("tries", 1), ("per_minute", 0), *_PRICES):
            _require_least("A teacher's ", name, getattr(self, name), least)
        if (self.price_prompt is None) != (self.price_completion is None):
            raise UserError("A teacher has one price of two: give price_prompt and price_completion, or neither.")

    @cached_property
    def identity(self) -> str:
        """``Teacher.name``: kind and model; without the address, which changes from day to day.

        Of traces on disk it is the name of the file and a hash of contents and columns: other traces, other teacher.
        """
        if self.kind != "replay":
            return f"{self.kind}:{self.name or self.model}"
        path = Path(str(self.files))
        whole = hashlib.sha256(json.dumps(self.columns, sort_keys=True).encode())
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():  # a data set of a hub has none here
                whole.update(file.read_bytes())
        return f"{self.kind}:{self.name or path.name}@{whole.hexdigest()[:8]}"

    @property
    def limits(self) -> Limits:
        """How it may be asked."""
        prices = None
        if self.price_prompt is not None and self.price_completion is not None:
            prices = Prices(self.price_prompt, self.price_completion)
        return Limits(self.workers, self.tries, self.per_minute, prices)


@dataclass(frozen=True)
class Teach:
    """What teachers are asked, and which traces are learned from.

    Attributes:
        teachers: name -> ``TeacherSettings``; without ``by`` every one answers every problem.
        by: column whose value says which teacher answers a row (through ``route``).
        route: value of that column -> name of a teacher; a value that is not there names the teacher itself.
        prompt: ``zero_shot``, ``few_shot``, ``diverse``, ``rationale_label``, ``plain``, or a file.
        examples: rows with a completion, shown by ``few_shot``; null takes four of ours.
        temperature: 0 is greedy.
        top_p: share of probability to sample from.
        max_tokens: longest trace.
        n: traces per problem and teacher.
        seed: of the sampling, for teachers that know one.
        stop: texts that end a trace.
        logprobs: log-probs per token that a server is asked for beside the text; they are kept in the store.
        max_cost: most money; needs the prices of every teacher.
        keep: ``correct`` learns from verified traces alone, ``all`` also from wrong ones.
        check_steps: refuse traces with a wrong sum such as 7 x 6 = 41, whatever they end in.
    """

    teachers: dict[str, dict[str, Any]] = field(default_factory=dict)
    by: str | None = None
    route: dict[str, str] = field(default_factory=dict)
    prompt: str = "zero_shot"
    examples: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    n: int = 1
    seed: int = 0
    stop: list[str] = field(default_factory=list)
    logprobs: int = 0
    max_cost: float | None = None
    keep: str = "correct"
    check_steps: bool = True

    def __post_init__(self) -> None:
        if not self.teachers:
            raise UserError("teach.teachers names no teacher. Give at least one: {name: {kind: server, ...}}.")
        for name, least in (("max_tokens", 1), ("n", 1), ("temperature", 0), ("max_cost", 0), ("logprobs", 0)):
            _require_least("teach.", name, getattr(self, name), least)
        if not 0 < self.top_p <= 1:
            raise UserError(f"teach.top_p is {self.top_p}; it must be above 0 and at most 1.")
        replayed = all(settings.get("kind") == "replay" for settings in self.teachers.values())
        if self.n > 1 and self.temperature == 0 and not replayed:
            raise UserError(
                f"teach.n is {self.n} and teach.temperature is 0: greedy traces are all the same. Set a temperature, "
                "such as 0.8, or n to 1."
            )
        if self.keep not in ("correct", "all"):
            raise UserError(f"teach.keep is {self.keep!r}; it is correct or all.")
        if self.by not in (None, "domain", "teacher", "structure_id", "answer_type", "split"):
            raise UserError(
                f"teach.by is {self.by!r}; it is one of domain, teacher, structure_id, answer_type and split."
            )
        if self.route and self.by is None:
            raise UserError(
                "teach.route says which teacher takes which value of a column; name the column in teach.by."
            )
        if unknown := [name for name in self.route.values() if name not in self.teachers]:
            raise UserError(f"teach.route names {unknown[0]}, but teach.teachers has {', '.join(self.teachers)}.")
        if self.max_cost is not None and any(s.price_prompt is None for s in self.settings.values()):
            raise UserError("teach.max_cost needs price_prompt and price_completion of every teacher.")

    @cached_property
    def settings(self) -> dict[str, TeacherSettings]:
        """Name -> settings of every teacher."""
        return {
            name: parse_settings(TeacherSettings, tree, [], f"teach.teachers.{name}")
            for name, tree in self.teachers.items()
        }

    @property
    def sampling(self) -> Sampling:
        """How every teacher draws its traces."""
        return Sampling(
            self.temperature, self.top_p, self.max_tokens, self.n, self.seed, tuple(self.stop), self.logprobs
        )


def _require_least(whose: str, name: str, value: float | None, least: float) -> None:
    """Refuse a number below its least, and inf and nan, which no comparison finds."""
    if value is not None and not (math.isfinite(value) and value >= least):
        raise UserError(f"{whose}{name} is {value}; it must be a number, at least {least}.")


def parse_teach(tree: Mapping[str, Any]) -> Teach:
    """The settings of a recipe's group ``teach``, with every teacher checked.

    Raises:
        UserError: an unknown key, a value of the wrong type, settings that do not go together.
    """
    teach = parse_settings(Teach, tree, [], "the group teach of the recipe")
    names = [settings.identity for settings in teach.settings.values()]
    if len(set(names)) < len(names):
        raise UserError(f"teach.teachers names one teacher twice: {', '.join(names)}. Give one of them a name.")
    return teach
