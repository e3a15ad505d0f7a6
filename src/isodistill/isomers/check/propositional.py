"""Read a propositional problem back: connectives and negated clauses of English, solved by a truth table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product
from typing import TypeAlias

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.reading import has, sentences

__all__ = ["parse"]

Words: TypeAlias = tuple[str, ...]
Literal: TypeAlias = tuple[Words, bool]
"""An event, as the stems of its words without auxiliaries and negation, and whether it is affirmed."""

Rule: TypeAlias = tuple[str, Literal, Literal]
"""``("if", p, q)`` or ``("or", p, q)``."""

_AUXILIARIES = {"is", "are", "was", "were", "be", "do", "does", "did", "will", "the", "a", "an", "not"}
# Connectives with the two clauses; "-" marks the clause that the connective negates.
_CONNECTIVES = (
    (r"either (?P<p>.+?),? or (?P<q>.+)", "or"),
    (r"unless (?P<p>.+?), (?:then )?(?P<q>.+)", "if not"),
    (r"(?P<q>.+?),? unless (?P<p>.+)", "if not"),
    (r"(?P<p>.+?) only (?:if|when) (?P<q>.+)", "if"),
    (r"(?:if|when|whenever) (?P<p>.+?), (?:then )?(?P<q>.+)", "if"),
    (r"(?P<q>.+?),? (?:if|when|whenever) (?P<p>.+)", "if"),
    (r"(?P<p>.+?), or (?P<q>.+)", "or"),
)
_CONNECTIVE = "if|when|whenever|unless|or|either"
_UNCLEAR = _CONNECTIVE + "|and|only|never|nor|neither"
_PRONOUN = "it|they|something|anything|someone|that"


def parse(question: str, choices: tuple[str, ...] | None = None) -> Parsed | None:
    """Structure and answer of a propositional problem; None when a sentence is unclear or the answer is not determined.

    Events are numbered by first appearance, p before q; a known event is ("fact", p, p). The structure holds the kinds
    and signs of the clues, the values all of it.
    """
    *told, asked = sentences(question)
    rules = [(sentence, _rule(sentence)) for sentence in told if has(sentence, _CONNECTIVE)]
    events = list(dict.fromkeys(literal[0] for _, rule in rules if rule is not None for literal in rule[1:]))
    goal = _ending(asked, events)
    if choices or not rules or None in dict(rules).values() or not asked.endswith("?") or goal is None or not goal[1]:
        return None
    clues: list[Rule] = []
    read = dict(rules)
    for sentence in told:
        rule, known = read.get(sentence), _ending(sentence, events)
        if rule is not None:
            clues.append(rule)
        elif known is not None:
            clues.append(("fact", known, known))
    order = list(dict.fromkeys(literal[0] for _, *literals in clues for literal in literals))
    numbered = tuple((kind, (order.index(p[0]), p[1]), (order.index(q[0]), q[1])) for kind, p, q in clues)
    answer = _answer(numbered, order.index(goal[0]), len(order))
    if answer is None:
        return None
    signs = tuple((kind, p[1], q[1]) for kind, p, q in numbered)
    return Parsed("propositional", signs, (numbered, order.index(goal[0])), answer)


def _rule(sentence: str) -> Rule | None:
    """The two clauses of a conditional or a disjunction; None if a clause is unclear."""
    for pattern, kind in _CONNECTIVES:
        if found := re.fullmatch(pattern, sentence.rstrip(".")):
            p, q = _literal(found["p"]), _literal(found["q"])
            if p is None or q is None or has(sentence, _PRONOUN):
                return None
            return ("if", (p[0], not p[1]), q) if kind == "if not" else (kind, p, q)
    return None


def _literal(clause: str) -> Literal | None:
    """The event that a clause is about, and whether it is affirmed; None for a compound or doubly negated clause."""
    words = re.findall(r"[a-z]+", clause)
    if has(clause, _UNCLEAR) or words.count("not") > 1 or "n't" in clause:
        return None
    return tuple(_stem(word) for word in words if word not in _AUXILIARIES), "not" not in words


def _stem(word: str) -> str:
    """A noun or verb without the ending of the plural or the third person."""
    if word.endswith("ies"):
        return word[:-3] + "y"
    return re.sub(r"(?<=sh|ch|ss|.x)es$|(?<!s)s$", "", word)


def _ending(sentence: str, events: Iterable[Words]) -> Literal | None:
    """The known event whose words close the sentence, as in "on Monday the bell rings"; None if there is none."""
    literal = _literal(sentence)
    if literal is None:
        return None
    words, affirmed = literal
    ends = [event for event in events if words[-len(event) :] == event]
    return (max(ends, key=len), affirmed) if ends else None


def _answer(clues: tuple[tuple[str, tuple[int, bool], tuple[int, bool]], ...], asked: int, n: int) -> str | None:
    """Yes or no if the event asked for is the same in every world that fits the clues; None if not, or if none fits."""

    def fits(world: tuple[bool, ...]) -> bool:
        for kind, (p, p_sign), (q, q_sign) in clues:
            p_holds, q_holds = world[p] == p_sign, world[q] == q_sign
            if not (
                p_holds and q_holds
                if kind == "fact"
                else p_holds or q_holds
                if kind == "or"
                else q_holds or not p_holds
            ):
                return False
        return True

    verdicts = {world[asked] for world in product((False, True), repeat=n) if fits(world)}
    return ("yes" if verdicts.pop() else "no") if len(verdicts) == 1 else None
