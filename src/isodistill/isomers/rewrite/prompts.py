"""What the teacher is asked: to rewrite a problem, to mend a refused rewriting, and to read a problem as JSON."""

from __future__ import annotations

from isodistill.teachers.base import Messages

__all__ = ["ALL", "mend", "read", "read_again", "rewrite"]

_REWRITE = """\
Rewrite the problem below so that it is set in the world of {domain}. Keep its logic exactly: the same numbers, the \
same relations between them, the same question, so that the answer stays the same. Change everything else: people, \
things, units and sentences. Do not solve it, and add no number. Reply with the new problem alone.

{problem}"""

_MEND = """\
This rewriting was refused ({reason}: {detail}). Write the problem again, set in the world of {domain}, with the same \
numbers, relations and question as the first problem above and in other words. Reply with the new problem alone."""

_READ = """\
Read the problem below and write down what it says as one JSON object, nothing else:
"quantities": a list of {{"name", "value", "unit"}}, one for every number in the text, whether it is needed or not; \
names are single letters, units are in the singular;
"relations": a list of {{"name", "is"}}: what is worked out, step by step, where "is" is an expression of +, -, *, / \
and brackets over names above it;
"question": the name that is asked for.

Example. A cook fills 6 trays with 4 rolls each and sells 5 rolls. How many rolls are left?
{{"quantities": [{{"name": "a", "value": 6, "unit": "tray"}}, {{"name": "b", "value": 4, "unit": "roll"}}, \
{{"name": "c", "value": 5, "unit": "roll"}}], "relations": [{{"name": "x", "is": "a * b"}}, \
{{"name": "y", "is": "x - c"}}], "question": "y"}}

Problem. {problem}"""

_READ_AGAIN = "That cannot be used: {why}. Write the JSON object again, and nothing else."

ALL = "\n".join([_REWRITE, _MEND, _READ, _READ_AGAIN])
"""Every prompt of this module; answers are kept by it, so that another wording is asked anew."""


def rewrite(problem: str, domain: str) -> Messages:
    """Asks for a problem in a domain."""
    return [_user(_REWRITE.format(problem=problem, domain=domain))]


def mend(asked: Messages, text: str, domain: str, reason: str, detail: str) -> Messages:
    """Asks once more, with what was wrong."""
    return [*asked, _assistant(text), _user(_MEND.format(reason=reason, detail=detail, domain=domain))]


def read(problem: str) -> Messages:
    """Asks for quantities, relations and question of a text; nothing else about it is told."""
    return [_user(_READ.format(problem=problem))]


def read_again(asked: Messages, reply: str, why: str) -> Messages:
    """Asks once more after a reply that was no usable JSON."""
    return [*asked, _assistant(reply), _user(_READ_AGAIN.format(why=why))]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content or "(nothing)"}
