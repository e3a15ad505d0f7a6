"""How strong the two checks of isomer sets are, on generated sets with one planted change.

`rewrite` is the check of teacher-written texts, with a perfect reader: it says what the worked solution of a row says,
so the figures are those of the rules behind the reader. `check` is `isodistill isomers check`, which reads the texts.
Per set one member, drawn by a seed, gets one change. Only structures whose solutions are sums, differences, products
and quotients take part, without a number that comes twice: this reader would take one for the other.

    python studies/rewrite_check.py
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from dataclasses import replace
from itertools import combinations

from isodistill.data.rows import Row
from isodistill.isomers import check_sets, generate_sets
from isodistill.isomers.rewrite import difference, read_structure
from isodistill.isomers.words import NEAR_COPY, changed_language, changed_numbers, overlap

STEP = re.compile(r"(\d+) ([-+x/]) (\d+) = (\d+)")
OTHER = {"+": "-", "-": "+", "x": "+", "/": "x"}


def reading(row: Row, change: str = "", rng: random.Random | None = None) -> str:
    """What a perfect reader says about a row whose text has one change."""
    values = [int(number) for number in re.findall(r"\d+", str(row.prompt))]
    names = {value: f"a{i}" for i, value in reversed(list(enumerate(values)))}
    steps = STEP.findall(str(row.completion))
    turned = rng.randrange(len(steps)) if change == "relation" and rng else None
    relations = []
    for i, (left, sign, right, result) in enumerate(steps):
        sign = OTHER[sign] if i == turned else sign
        text = f"{names[int(left)]} {sign.replace('x', '*')} {names[int(right)]}"
        relations.append({"name": f"r{i}", "is": text})
        names[int(result)] = f"r{i}"
    last = len(steps) - (2 if change == "answer" else 1)
    quantities = [{"name": f"a{i}", "value": value, "unit": ""} for i, value in enumerate(values)]
    return json.dumps({"quantities": quantities, "relations": relations, "question": f"r{last}"})


def readable(rows: list[Row]) -> bool:
    """Whether the solution of a set says all: two steps or more, no number twice, no comparison."""
    numbers = re.findall(r"\d+", str(rows[0].prompt)) + [step[3] for step in STEP.findall(str(rows[0].completion))]
    if len(set(numbers)) < len(numbers):
        return False
    try:
        answers = [read_structure(reading(row)).answer for row in rows]
    except (KeyError, ValueError):
        return False
    steps = STEP.findall(str(rows[0].completion))
    enough = len(steps) > 1 and "Compare" not in str(rows[0].completion)
    return enough and all(str(answer) == row.answer for answer, row in zip(answers, rows, strict=True))


def with_other_value(row: Row, rng: random.Random) -> Row:
    """The row with one number of its text changed by 1 to 5, in text and solution alike."""
    places = list(re.finditer(r"\d+", str(row.prompt)))
    place = rng.choice(places)
    value = str(int(place.group()) + rng.randint(1, 5))
    prompt = f"{str(row.prompt)[: place.start()]}{value}{str(row.prompt)[place.end() :]}"
    return replace(row, prompt=prompt, completion=re.sub(rf"\b{place.group()}\b", value, str(row.completion)))


def passes(source: Row, members: list[Row], changed: int | None, change: str, rng: random.Random) -> bool:
    """The verdict of the rewriting's check on a whole set."""
    structure = read_structure(reading(source))
    seen = [str(source.prompt)]
    for i, member in enumerate(members):
        text = str(member.prompt)
        copied = any(overlap(other, text) >= NEAR_COPY for other in seen)
        if copied or changed_language(seen[0], text) or changed_numbers(seen[0], text):
            return False
        try:
            found = read_structure(reading(member, change if i == changed else "", rng))
        except (KeyError, ValueError):
            return False
        if difference(structure, found):
            return False
        seen.append(text)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=400)
    rows = generate_sets(n_sets=parser.parse_args().sets, seed=11, families=["rates", "sharing"], difficulty=(1, 2, 3))
    sets: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        sets[str(row.set_id)].append(row)
    usable = [members for members in sets.values() if readable(members)]
    rng = random.Random(0)
    pairs = sorted(overlap(str(a.prompt), str(b.prompt)) for told in sets.values() for a, b in combinations(told, 2))
    copies = sum(value >= NEAR_COPY for value in pairs)
    middle, high = pairs[len(pairs) // 2], pairs[len(pairs) * 99 // 100]
    print(f"overlap of {len(pairs)} pairs: median {middle:.2f}, 99 % {high:.2f}, {copies} near-copies")
    print(f"{len(usable)} sets of {len(usable[0])} domains")
    for change in ("none", "value", "relation", "answer"):
        accepted = read = 0
        for members in usable:
            i = rng.randrange(1, len(members))
            told = list(members)
            if change == "value":
                told[i] = with_other_value(told[i], rng)
            accepted += passes(members[0], told[1:], i - 1, change, rng)
            if change == "answer":
                told[i] = replace(told[i], answer=str(int(str(told[i].answer)) + 1))
            read += bool(check_sets(told).accepted)
        of_check = f"{read} of {len(usable)}" if change != "relation" else "-"
        print(f"planted {change}: rewrite accepts {accepted} of {len(usable)}, check accepts {of_check}")


if __name__ == "__main__":
    main()
