"""What the teacher reads: templates in plain files, apart from the student's own prompt.

A template has a line ``[system]``, ``[user]`` or ``[assistant]`` before each message, and Jinja in between. It knows
``prompt`` (the problem as the student reads it), ``answer_type``, ``domain``, ``choices``, ``form`` (how the answer is
to be written, in words) and ``examples`` (rows with ``prompt`` and ``completion``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import jinja2

from isodistill.data.rows import Row
from isodistill.errors import UserError

__all__ = ["BUILTIN_TEMPLATES", "Template", "builtin_examples", "load_template", "one_answer_sentence"]

BUILTIN_TEMPLATES = ("diverse", "few_shot", "plain", "rationale_label", "zero_shot")

_ROLE = re.compile(r"^\[(system|user|assistant)\]\s*$", re.MULTILINE)
_FORMS = {
    "number": "a plain number without units",
    "choice": "the letter of the right option",
    "yesno": "yes or no",
    "code": "a Python program in one fenced block",
}
_PARTS = re.compile(
    r"\s*\**Rationale:?\**:?\s*(?P<rationale>.+?)\s*\n\s*\**Answer:?\**:?\s*(?P<label>[^\n]+?)\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Template:
    """A template, and the examples that it may show.

    Attributes:
        name: its name, or that of its file.
        text: as it stands in the file.
        examples: rows with a completion.
    """

    name: str
    text: str
    examples: tuple[Row, ...] = ()

    @property
    def id(self) -> str:
        """Name and hash, for the key of a request; the examples are in the messages themselves."""
        return f"{self.name}-{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    def messages(self, row: Row) -> list[dict[str, str]]:
        """The messages for one problem; earlier turns of its own stand before the last message.

        Raises:
            UserError: the template cannot be filled in.
        """
        earlier = [] if isinstance(row.prompt, str) else [dict(message) for message in row.prompt[:-1]]
        prompt = _own_text(row)
        shown = [
            {"prompt": _own_text(example), "completion": example.completion}
            for example in self.examples
            if _own_text(example) != prompt
        ]
        known = {
            "prompt": prompt,
            "answer_type": row.answer_type,
            "domain": row.domain,
            "choices": row.choices,
            "form": _FORMS.get(row.answer_type or "", "a few words"),
            "examples": shown,
        }
        try:
            filled = [{"role": role, "content": part.render(known).strip()} for role, part in self._parts]
        except jinja2.TemplateError as error:
            raise UserError(f"The template {self.name} cannot be filled in for row {row.id}: {error}.") from error
        return [*filled[:-1], *earlier, filled[-1]]

    @cached_property
    def _parts(self) -> list[tuple[str, jinja2.Template]]:
        """Role and content of each message."""
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        parts = _ROLE.split(self.text)
        return [
            (role, environment.from_string(text.strip("\n")))
            for role, text in zip(parts[1::2], parts[2::2], strict=True)
        ]


def load_template(name: str, examples: Sequence[Row] = ()) -> Template:
    """A built-in template by name, or one from a file.

    Raises:
        UserError: there is none, or it has no turn of the user at its end.
    """
    if name in BUILTIN_TEMPLATES:
        text = resources.files(__package__).joinpath("templates", f"{name}.txt").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise UserError(f"There is no template {name}: it is neither a file nor one of {', '.join(BUILTIN_TEMPLATES)}.")
    roles = _ROLE.findall(text)
    if not roles or roles[-1] != "user" or _ROLE.split(text)[0].strip():
        raise UserError(
            f"The template {name} must begin with a line [system] or [user], and its last message must be the user's."
        )
    return Template(Path(name).stem, text, tuple(examples))


def builtin_examples() -> str:
    """The file of worked examples that ``few_shot`` shows when no other is named."""
    return str(resources.files(__package__).joinpath("templates", "examples.jsonl"))


def one_answer_sentence(text: str) -> str:
    """A trace as the student learns it: "Rationale: ... Answer: ..." becomes the rationale and one closing sentence."""
    parts = _PARTS.fullmatch(text)
    if parts is None:
        return text.strip()
    return f"{parts['rationale']} The answer is {parts['label'].rstrip('.')}."


def _own_text(row: Row) -> str:
    """The problem itself: the prompt, or the last turn of a conversation."""
    return row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
