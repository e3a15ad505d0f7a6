"""Propositional chains: one event is known, rules lead from it to another; does that one happen?

Shape: the forms of the rules from the known event to the one asked for, each ``if`` (if p, q), ``contra`` (if not q,
not p) or ``or`` (not p, or q). Events may be negated anywhere. One more rule, in the form of the last, leads from an
event that is not known to the opposite of the answer, so that neither the number of negations nor the wording of a
single rule gives the answer away.
"""

from __future__ import annotations

import random
from itertools import pairwise, product
from typing import TypeAlias, cast

from isodistill.data.rows import AnswerType
from isodistill.isomers.family import Problem, Telling
from isodistill.isomers.stories.propositional import SCENES, Scene
from isodistill.isomers.stories.sentences import capitalise

__all__ = ["Propositional"]

Literal: TypeAlias = tuple[int, bool]
"""An event and whether it happens."""

Clue: TypeAlias = tuple[str, Literal, Literal]
"""``("if", p, q)`` if p, then q; ``("or", p, q)`` p or q; ``("fact", p, p)`` p is known."""

FORMS = ("if", "contra", "or")
POOL = 8


class Propositional:
    """If-then chains with negation, contraposition and "or"; the answer is yes or no."""

    name = "propositional"
    answer_type: AnswerType = "yesno"

    def shapes(self, difficulty: int) -> list[tuple[str | int, ...]]:
        """Nine structures at every difficulty: difficulty + 1 rules, the last two in every pair of forms."""
        return [("if",) * (difficulty - 1) + forms for forms in product(FORMS, repeat=2)]

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        """Events that happen or not with even chance, the one asked for included, and the clues in random order."""
        events = rng.sample(range(POOL), len(shape) + 2)
        *chain, decoy = [(event, rng.random() < 0.5) for event in events]
        clues = [_rule(str(form), p, q) for form, (p, q) in zip(shape, pairwise(chain), strict=True)]
        clues += [("fact", chain[0], chain[0]), _rule(str(shape[-1]), decoy, _opposite(chain[-1]))]
        rng.shuffle(clues)
        return Problem(self.name, shape, {"clues": tuple(clues), "asked": chain[-1][0]})

    def solve(self, problem: Problem) -> str:
        """Yes if the event asked for happens, no if it does not."""
        return "yes" if (problem.values["asked"], True) in _consequences(problem) else "no"

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        """One scene of the domain: rules and the known event, then the question."""
        scene = rng.choice(SCENES[domain])
        events = rng.sample(range(POOL), POOL)
        clues = [_say(scene, clue, events, rng) for clue in _clues(problem)]
        asked = scene.events[events[cast("int", problem.values["asked"])]]
        question = " ".join([scene.intro, *clues, scene.ask.format(question=asked.question)])
        return Telling(question, _rationale(problem, scene, events), self.solve(problem))


def _opposite(literal: Literal) -> Literal:
    return (literal[0], not literal[1])


def _rule(form: str, p: Literal, q: Literal) -> Clue:
    """The rule that p leads to q, in one of three equivalent forms."""
    if form == "contra":
        return ("if", _opposite(q), _opposite(p))
    return ("or", _opposite(p), q) if form == "or" else ("if", p, q)


def _clues(problem: Problem) -> tuple[Clue, ...]:
    return cast("tuple[Clue, ...]", problem.values["clues"])


def _consequences(problem: Problem) -> list[Literal]:
    """What is known, in the order of the argument, up to the event asked for.

    Every rule is read both ways: p leads to q, and the opposite of q to the opposite of p.
    """
    leads: dict[Literal, list[Literal]] = {}
    for kind, p, q in _clues(problem):
        if kind != "fact":
            p = _opposite(p) if kind == "or" else p
            leads.setdefault(p, []).append(q)
            leads.setdefault(_opposite(q), []).append(_opposite(p))
    known = [p for kind, p, _ in _clues(problem) if kind == "fact"]
    for literal in known:
        if literal[0] == problem.values["asked"]:
            return known
        known += [q for q in leads.get(literal, []) if q not in known]
    return known


def _clause(scene: Scene, literal: Literal, events: list[int]) -> str:
    event, happens = literal
    return scene.events[events[event]].clause(happens)


def _say(scene: Scene, clue: Clue, events: list[int], rng: random.Random) -> str:
    """One clue as a sentence, in any of the scene's ways that reads clearly."""
    kind, p, q = clue
    rules = [rule for rule in scene.rules if _reads_clearly(rule, p, q)]
    template = {"if": rng.choice(rules), "or": scene.either, "fact": scene.fact}[kind]
    words = {"p": _clause(scene, p, events), "q": _clause(scene, q, events), "np": _clause(scene, _opposite(p), events)}
    return capitalise(template.format(**words))


def _reads_clearly(rule: str, p: Literal, q: Literal) -> bool:
    """ "Unless" must take a negation away, and no "not" may stand before "only if" or "whenever"."""
    if "{np}" in rule:
        return not p[1]
    if rule.startswith("{p} only"):
        return p[1]
    return q[1] or not rule.startswith("{q} whenever")


def _rationale(problem: Problem, scene: Scene, events: list[int]) -> str:
    """Each event because of the one before it, from the known one to the one asked for."""
    known = [_clause(scene, literal, events) for literal in _consequences(problem)]
    return " ".join(capitalise(f"{p}, so {q}.") for p, q in pairwise(known))
