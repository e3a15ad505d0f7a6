"""What the teacher is asked: to rewrite a problem, to mend a refused rewriting, and to read a problem as JSON.

Each prompt is a text file with Jinja in it, ours in the folder ``templates`` beside this module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import jinja2
from jinja2 import meta

from isodistill.errors import UserError
from isodistill.teachers.base import Messages

__all__ = ["Prompts", "load_prompts"]

_ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
_NEEDED = {
    "rewrite": {"problem", "domain"},
    "mend": {"domain"},
    "read": {"problem"},
    "read_again": set[str](),
}
_KNOWN = _NEEDED | {"mend": {"domain", "reason", "detail"}, "read_again": {"why"}}


@dataclass(frozen=True)
class Prompts:
    """The four prompts.

    Attributes:
        texts: name -> text as it stands in the file.
    """

    texts: Mapping[str, str]

    @property
    def id(self) -> str:
        """Of all of them, for the key of a request: another wording is asked anew."""
        whole = "\n".join(self.texts[name] for name in _KNOWN)
        return f"isomers-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"

    def rewrite(self, problem: str, domain: str) -> Messages:
        """Asks for a problem in a domain."""
        return [self._user("rewrite", problem=problem, domain=domain)]

    def mend(self, asked: Messages, text: str, domain: str, reason: str, detail: str) -> Messages:
        """Asks once more, with what was wrong."""
        return [*asked, _assistant(text), self._user("mend", reason=reason, detail=detail, domain=domain)]

    def read(self, problem: str) -> Messages:
        """Asks for quantities, relations and question of a text; nothing else about it is told."""
        return [self._user("read", problem=problem)]

    def read_again(self, asked: Messages, reply: str, why: str) -> Messages:
        """Asks once more after a reply that was no usable JSON."""
        return [*asked, _assistant(reply), self._user("read_again", why=why)]

    def _user(self, name: str, **values: str) -> dict[str, str]:
        return {"role": "user", "content": self._templates[name].render(values).strip()}

    @cached_property
    def _templates(self) -> dict[str, jinja2.Template]:
        return {name: _ENVIRONMENT.from_string(text) for name, text in self.texts.items()}


def load_prompts(folder: str | None = None) -> Prompts:
    """Our prompts, with those of a folder (``rewrite.txt``, ``mend.txt``, ...) in their places.

    Raises:
        UserError: no such folder, a file in it that is no prompt or cannot be read as one, or one that knows other
            names than it may or leaves out what it is about.
    """
    ours = resources.files(__package__).joinpath("templates")
    texts = {name: ours.joinpath(f"{name}.txt").read_text(encoding="utf-8") for name in _KNOWN}
    if folder is None:
        return Prompts(texts)
    files = sorted(Path(folder).glob("*.txt"))
    if not files:
        raise UserError(f"rewrite.prompts: {folder} is no folder with any of {_listed(_KNOWN)}.")
    for file in files:
        if file.stem not in _KNOWN:
            raise UserError(f"rewrite.prompts: {file} is none of {_listed(_KNOWN)}. Rename it, or move it away.")
        texts[file.stem] = _checked(file)
    return Prompts(texts)


def _checked(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
        used = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
    except (OSError, UnicodeDecodeError, jinja2.TemplateError) as error:
        raise UserError(f"rewrite.prompts: {file} cannot be read: {error}.") from error
    if wrong := sorted(used - _KNOWN[file.stem]):
        known = ", ".join(sorted(_KNOWN[file.stem]))
        raise UserError(f"rewrite.prompts: {file} names {{{{ {wrong[0]} }}}}; it may name {known}.")
    if left_out := sorted(_NEEDED[file.stem] - used):
        raise UserError(f"rewrite.prompts: {file} leaves out {{{{ {left_out[0]} }}}}.")
    return text


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(f"{name}.txt" for name in names)


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content or "(nothing)"}
