"""Read a reachability problem back: prepositions and verbs of direction, solved by growing the reached set."""

from __future__ import annotations

import re
from typing import TypeAlias

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.reading import has, sentences

__all__ = ["parse"]

Link: TypeAlias = tuple[str, str]
"""(source, target): the first leads to the second, or the second needs the first."""

# Without "from" or "to", the verb says whether the subject comes later (it needs the object) or earlier (it causes it).
_NEEDING = (
    "needs?|requires?|uses?|reuses?|cites?|eats?|follows|builds? on|relies on|rests on|depends on|waits? for|before"
    "|(?:fed|owned|triggered|activated|supplied|made|caused) by|(?:made|bought|built) with|based on"
)
_CAUSING = (
    "feeds?|triggers?|activates?|pays?|supplies|unlocks?|causes?|holds? shares in|owns?|turns? into|becomes?"
    "|(?:needed|required|used|swapped|exchanged) for|(?:eaten|used|cited) by|(?:parent|ancestor|source) of"
)
_COMPLETE = r"only|no other\w*|nothing else|these are all"
_BACKWARDS = "depends?|rel(?:y|ies)|rests?|builds?|needs?|requires?|uses?|wait"
_FORWARDS = "from|to|into|reach|before|become|obtain|set off|end up|arrive|activate|ancestor|stake|spread"


def parse(question: str, choices: tuple[str, ...] | None = None) -> Parsed | None:
    """Structure and answer of a reachability problem; None when a sentence is unclear.

    One sentence has to say that the links are complete; every other one but the question is a link. Things are numbered
    by first appearance, the source of a link before its target; the structure holds the degrees of the graph.
    """
    *told, asked = sentences(question)
    frame = [sentence for sentence in told if has(sentence, _COMPLETE)]
    links = [_link(sentence) for sentence in told if sentence not in frame]
    if choices or not frame or not links or None in links:
        return None
    known = [link for link in links if link is not None]
    names = list(dict.fromkeys(name for link in known for name in link))
    goal = _goal(asked, names)
    if goal is None or any(source == target for source, target in known):
        return None
    edges = tuple((names.index(source), names.index(target)) for source, target in known)
    start, end = names.index(goal[0]), names.index(goal[1])
    degrees = tuple((sum(a == i for a, _ in edges), sum(b == i for _, b in edges)) for i in range(len(names)))
    return Parsed("reachability", degrees, (edges, (start, end)), "yes" if _leads(edges, start, end) else "no")


def _link(sentence: str) -> Link | None:
    """The link that one sentence states; None if its direction is unclear."""
    words = re.findall(r"[\w'-]+", re.sub(r"^the \w+ of ", "", sentence))
    words = words[1:] if words[0] in ("the", "a", "an") else words
    subject, last = words[0], words[-1]
    source, target = _noun_after("from", sentence), _noun_after("(?:in)?to", sentence)
    if has(sentence, r"not|never|n't") and "before" not in words:
        return None
    if target and has(sentence, "turns? into|changes? into"):
        source = source or subject
    if source or target:
        return (source or subject, target or subject)
    needing, causing = has(sentence, _NEEDING), has(sentence, _CAUSING)
    if needing == causing:
        return None
    return (last, subject) if needing else (subject, last)


def _noun_after(preposition: str, sentence: str) -> str | None:
    found = re.search(rf"\b{preposition} (?:the |an? )?([\w'-]+)", sentence)
    return found.group(1) if found else None


def _goal(asked: str, names: list[str]) -> Link | None:
    """(start, end) of the question: its two known things, in the order that its verb gives them."""
    named = [word for word in re.findall(r"[\w'-]+", asked) if word in names]
    backwards = has(asked, _BACKWARDS) or (len(named) == 2 and _noun_after("from", asked) == named[1])
    if not asked.endswith("?") or len(named) != 2 or not (backwards or has(asked, _FORWARDS)):
        return None
    return (named[1], named[0]) if backwards else (named[0], named[1])


def _leads(edges: tuple[tuple[int, int], ...], start: int, end: int) -> bool:
    """Whether the set of things reached from the start, grown until it stops growing, holds the end."""
    reached: set[int] = {start}
    while grown := {b for a, b in edges if a in reached} - reached:
        reached |= grown
    return end in reached
