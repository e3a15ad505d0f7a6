"""Templates from traces: what hangs on what, what is drawn, what is refused, and real templates against each other."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from isodistill.data.rows import Row
from isodistill.evaluation.verify import verify
from isodistill.isomers.generate import generate_sets
from isodistill.isomers.perturb import Template, derive_template, perturb_rows
from isodistill.isomers.real import import_groups

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def row(prompt: str, completion: str, answer: str) -> Row:
    return Row(id="p", prompt=prompt, completion=completion, answer=answer, answer_type="number", domain="shop")


APPLES = row(
    "Emma buys 3 bags of 14 apples and eats 5. Half of what is left rots. How many are good?",
    "She has 3 x 14 = 42 apples, then 42 - 5 = 37. 37 / 2 = 18.5 rot. The answer is 18.5.",
    "18.5",
)


def test_the_texts_follow_the_numbers() -> None:
    template = derive_template(APPLES)
    assert list(template.values.values()) == [3, 14, 5]
    made = template.fill({"a0": Fraction(4), "a1": Fraction(20), "a2": Fraction(9)})
    assert made is not None
    assert made.prompt == "Emma buys 4 bags of 20 apples and eats 9. Half of what is left rots. How many are good?"
    assert made.completion == "She has 4 x 20 = 80 apples, then 80 - 9 = 71. 71 / 2 = 35.5 rot. The answer is 35.5."
    assert made.answer == "35.5"


def test_a_whole_or_positive_result_stays_so() -> None:
    shared = derive_template(row("20 pens for 4 boys. How many each?", "20 / 4 = 5 each", "5"))
    assert shared.fill({"a0": Fraction(20), "a1": Fraction(6)}) is None
    left = derive_template(row("He has 9 and loses 4.", "9 - 4 = 5", "5"))
    assert left.fill({"a0": Fraction(4), "a1": Fraction(9)}) is None
    assert left.fill({"a0": Fraction(4), "a1": Fraction(4)}) is None


def test_members_of_a_set_are_drawn_together_where_they_work_out_the_same() -> None:
    trace = "14 x 3 = 42. 42 - 5 = 37. The answer is 37."
    law = replace(row("A clerk binds 14 files of 3 briefs and loses 5.", trace, "37"), id="law", set_id="s")
    sea = replace(row("A ship has 14 decks with 3 men each, and 5 leave.", trace, "37"), id="sea", set_id="s")
    other = replace(row("He has 5 and buys 14 bags of 3.", "14 x 3 = 42. 42 - 5 = 37.", "37"), id="other", set_id="s")
    made = perturb_rows([law, sea], n=3, seed=0)
    assert [new.id for new in made.rows] == [f"{name}/draw-{k}" for name in ("law", "sea") for k in range(3)]
    for k in range(3):
        one, two = made.rows[k], made.rows[k + 3]
        assert one.set_id == two.set_id == f"s/draw-{k}"
        assert one.structure_id == two.structure_id == "s"
        assert NUMBER.findall(str(one.prompt)) == NUMBER.findall(str(two.prompt))
        assert one.answer == two.answer
    assert len({new.set_id for new in made.rows}) == 3
    apart = perturb_rows([law, other], n=3, seed=0)
    assert ({new.set_id for new in apart.rows}, {new.structure_id for new in apart.rows}) == ({None}, {"s"})


def test_draws_are_new_correct_and_repeatable() -> None:
    made = perturb_rows([APPLES], n=20, seed=1)
    assert (made.n_templates, len(made.rows), made.refused) == (1, 20, [])
    assert len({new.prompt for new in made.rows} | {APPLES.prompt}) == 21
    for new in made.rows:
        bags, each, eaten = map(int, NUMBER.findall(str(new.prompt)))
        assert Fraction(str(new.answer)) == Fraction(bags * each - eaten, 2)
        assert verify(str(new.completion), str(new.answer), "number") == "correct"
        assert (new.set_id, new.structure_id, new.domain, new.valid) == (None, "p", "shop", True)
    assert {new.structure_id for new in perturb_rows([replace(APPLES, set_id="s")], n=2, seed=1).rows} == {"s"}
    assert perturb_rows([APPLES], n=20, seed=1) == made
    assert perturb_rows([APPLES], n=20, seed=2) != made


def test_per_cents_stay_below_a_hundred() -> None:
    sale = row("A coat of 400 dollars is 75% off. What is saved?", "400 * 75 / 100 = 300", "300")
    shares = [int(NUMBER.findall(str(new.prompt))[1]) for new in perturb_rows([sale], n=40, seed=0).rows]
    assert max(shares) <= 99
    assert len(set(shares)) > 5


@pytest.mark.parametrize(
    ("prompt", "completion", "answer", "why"),
    [
        ("He has 3 and 4.", "I think it is 7.", "7", "no equation"),
        ("He has 3 and 4.", "3 + 4 = 8", "8", "is wrong"),
        ("He has 3 and 4.", "3 + 4 = 7", "8", "but the answer is 8"),
        ("He has 4 and 4.", "4 + 4 = 8", "8", "4 may be a0 or a1"),
        ("He has 3 and 5.", "3 + 5 = 8. 8 + 9 = 17", "17", "9 in .* is neither"),
        ("He has 3 and 4 and 8 more.", "3 + 4 = 7", "7", "no equation uses 8"),
        ("He has 3 bags and 12 eggs.", "3 * 12 = 36", "36", "12 may be a1 or a constant"),
        ("He has 2 pens for 6.", "2 * 6 = 12. Doubled: 12 * 2 = 24", "24", "1?2 (is used twice|may be)"),
        ("Half of 50 and 9.", "half * 50 = 25. 25 + 9 = 34", "34", "only 1 of its 2 equations"),
        ("It takes 3 of 4.", "Of the 77, 3 + 4 = 7", "7", "77 is neither"),
    ],
)
def test_what_is_not_certain_is_refused(prompt: str, completion: str, answer: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        derive_template(row(prompt, completion, answer))
    refused = perturb_rows([row(prompt, completion, answer)], n=1, seed=0).refused
    assert len(refused) == 1
    assert refused[0].source == "p"


def test_built_in_problems_give_templates_that_solve_their_own_draws() -> None:
    rows = generate_sets(n_sets=20, seed=2, families=["rates", "sharing"], domains=["law", "cooking"])
    made = perturb_rows(rows, n=2, seed=0)
    assert made.n_templates >= 10
    for new in made.rows:
        again = derive_template_or_none(new)
        if again is not None:
            assert again.fill(again.values) == new


def derive_template_or_none(new: Row) -> Template | None:
    try:
        return derive_template(new)
    except ValueError:  # a draw may repeat a number, which is not certain any more
        return None


@pytest.mark.real_data
def test_real_templates_foretell_their_siblings(real_data: Path) -> None:
    """The template of one instance, filled with the numbers of another one, gives the other's answer."""
    groups = defaultdict(list)
    for each in import_groups("gsm_symbolic", real_data):
        groups[each.structure_id].append(each)
    foretold = right = 0
    for members in groups.values():
        for each in members:
            try:
                template = derive_template(each)
            except ValueError:
                continue
            places = [found.start() for found in NUMBER.finditer(str(each.prompt))]
            for other in members:
                numbers = NUMBER.findall(str(other.prompt))
                drawn = {places.index(slot.start): slot.name for slot in template.prompt_slots}
                own = NUMBER.findall(str(each.prompt))
                if other is each or len(numbers) != len(places):
                    continue
                if any(numbers[i] != own[i] for i in range(len(own)) if i not in drawn):
                    continue  # another half, fraction or date, which a template does not touch
                values = {name: Fraction(numbers[i].replace(",", "")) for i, name in drawn.items()}
                foretold += 1
                right += template.solve(values)[template.steps[-1][0]] == Fraction(str(other.answer))
    print(f"{right} of {foretold} answers foretold")
    assert foretold > 3000
    assert right / foretold > 0.97
