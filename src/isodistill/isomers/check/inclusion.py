"""Read an inclusion problem back: quantifiers and classing verbs of English, solved by looking for a counterexample."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import TypeAlias

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.reading import has, sentences

__all__ = ["parse"]

Statement: TypeAlias = tuple[str, str, str]
"""``("all" | "no" | "is", x, y)``; kinds and individuals are named by one key word each."""

_QUANTIFIERS = (
    ("all", r"(?:whatever|whoever|(?:any|every)(?:one|body|thing) (?:who|that)) is"),
    ("no", r"(?:nothing that|nobody who|no one who|none that) is"),
    ("all", r"(?:every|each|any|all)(?: of)?(?: the)?"),
    ("no", r"(?:no|none of(?: the)?)"),
    ("only", r"only(?: the)?"),
)
_CLASSING = re.compile(
    r" (?:(?:counts?|(?:is|are) (?:classed|treated|listed|regarded|shipped|known|ranked)) as"
    r"|(?:turns?|turned) out to be|(?:proves?|proved) to be|(?:must|can|will)(?: also)? be"
    r"|(?:is|are)(?: (?:all|always|also))?(?: (?:one of|among|an? kind of|an? type of))?) "
)
_CONDITION = re.compile(r"if [^,]+? is ([^,]+), (?:then )?.+? is (not )?(.+)")
_CLAIM = re.compile(r"\bthat (.+)\?")


def parse(question: str, choices: tuple[str, ...] | None = None) -> Parsed | None:
    """Structure and answer of an inclusion problem; None when a sentence about its kinds is unclear.

    Kinds and the individual are numbered by first appearance in the statements, each read as (kind, x, y) with x inside
    (or outside) y. The answer is yes if the claim holds in every world that the statements allow.
    """
    *told, asked = sentences(question)
    claim = _CLAIM.search(asked)
    goal = _statement(claim.group(1)) if claim else None
    read = [_statement(sentence.rstrip(".")) for sentence in told]
    kinds = {name for statement in read if statement and statement[0] != "is" for name in statement[1:]}
    clues = [s for s in read if s is not None and (s[0] != "is" or s[2] in kinds)]
    unread = [sentence for sentence, s in zip(told, read, strict=True) if s not in clues]
    if choices or goal is None or any(_key(word) in kinds for s in unread for word in re.findall(r"[\w-]+", s)):
        return None
    names = list(dict.fromkeys(name for _, x, y in clues for name in (x, y)))
    individuals = {x for kind, x, _ in [*clues, goal] if kind == "is"}
    if not clues or {*goal[1:]} - {*names} or len(individuals) > 1 or individuals & kinds:
        return None
    numbered = [(kind, names.index(x), names.index(y)) for kind, x, y in [*clues, goal]]
    answer = "no" if _counterexample(numbered[:-1], numbered[-1], len(names)) else "yes"
    return Parsed("inclusion", tuple(kind for kind, _, _ in numbered), tuple(numbered), answer)


def _statement(text: str) -> Statement | None:
    """One statement or claim in lower case without its full stop; None if it is not of a known form."""
    if condition := _CONDITION.fullmatch(text):
        x, negated, y = condition.groups()
        return _keyed("no" if negated else "all", x, y)
    kind, rest = "is", text
    for quantifier, pattern in _QUANTIFIERS:
        if opening := re.match(pattern + " ", text):
            kind, rest = quantifier, text[opening.end() :]
            break
    verb = _CLASSING.search(rest)
    if verb is None or has(text, "not|never"):
        return None
    x, y = rest[: verb.start()], rest[verb.end() :]
    if kind == "only":
        return _keyed("all", y, x)
    if kind != "is" or has(verb.group(), "all|always"):
        return _keyed("all" if kind == "is" else kind, x, y)
    return None if has(verb.group(), "are") else _keyed("is", x.rstrip(",").split()[-1], y)


def _keyed(kind: str, x: str, y: str) -> Statement | None:
    left, right = _key(x), _key(y)
    return None if left is None or right is None else (kind, left, right)


def _key(phrase: str) -> str | None:
    """The word that tells one kind from another: the adjective, else the noun itself in the singular."""
    words = re.sub(r"^(?:an?|the) ", "", phrase).split()
    if not 1 <= len(words) <= 2:
        return None
    word = words[0]
    return word[:-3] + "y" if word.endswith("ies") else re.sub(r"(?<=sh|ch|.x|ss)es$|(?<!s)s$", "", word)


def _counterexample(clues: Sequence[tuple[str, int, int]], goal: tuple[str, int, int], n: int) -> bool:
    """Whether some single thing fits all statements and breaks the claim; 2^n things are tried.

    The individual counts as a kind with one thing in it, so "m is a y" reads as "every m is a y".
    """

    def fits(thing: tuple[bool, ...], statement: tuple[str, int, int]) -> bool:
        kind, x, y = statement
        return not (thing[x] and thing[y]) if kind == "no" else thing[y] or not thing[x]

    return any(all(fits(t, clue) for clue in clues) and not fits(t, goal) for t in product((False, True), repeat=n))
