"""Rewriting by fake teachers: what passes, what is refused and why, repair, and that nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodistill.data.rows import Row
from isodistill.errors import TeacherError, UserError
from isodistill.isomers.rewrite import Desk, Rewriting, difference, load_prompts, read_structure, rewrite_problems
from isodistill.isomers.words import changed_language, changed_numbers, numbers_in, overlap
from isodistill.teachers.asking import Limits
from isodistill.teachers.base import Answer, Messages, Sampling
from isodistill.teachers.store import AnswerStore

SOURCE = "A baker fills 6 trays with 4 rolls each. Then 5 rolls are sold. How many rolls are left?"
LAW = "A clerk binds 6 folders holding 4 briefs apiece. Later, a judge withdraws 5 briefs. How many briefs remain?"
SEA = (
    "On a pier there are 6 boats, and every boat carries 4 sailors. Of them, 5 sailors go ashore. How many stay aboard?"
)
ROW = Row(id="q", prompt=SOURCE, answer="19", answer_type="number", domain="cooking", completion="24 - 5 = 19")


def reading(values: tuple[int, ...] = (6, 4, 5), last: str = "x - c", question: str = "y", units: str = "uvv") -> str:
    quantities = [{"name": n, "value": v, "unit": u} for n, v, u in zip("abc", values, units, strict=True)]
    relations = [{"name": "x", "is": "a * b"}, {"name": "y", "is": last}]
    return json.dumps({"quantities": quantities, "relations": relations, "question": question})


class Fake:
    """A teacher that answers from a function of the last question and counts how often it is asked."""

    def __init__(self, reply: Callable[[Messages], str], finish: str = "stop") -> None:
        self.name, self.reply, self.finish, self.asked = "fake", reply, finish, 0

    def answer(self, messages: Messages, sampling: Sampling) -> Answer:
        self.asked += 1
        return Answer((self.reply(messages),), (self.finish,))


def writes(**texts: str) -> Callable[[Messages], str]:
    """A writer with one text per domain, and ``DOMAIN_2`` for the repair."""

    def reply(messages: Messages) -> str:
        domain = next(name for name in ("law", "sailing") if f"world of {name}" in messages[0]["content"])
        return texts.get(f"{domain}_2", texts[domain]) if len(messages) > 1 else texts[domain]

    return reply


def reads(**special: str) -> Callable[[Messages], str]:
    """A reader that reads every problem as the source's structure, but for texts that contain a given word."""

    def reply(messages: Messages) -> str:
        problem = messages[0]["content"].rpartition("Problem. ")[2]
        return next((text for word, text in special.items() if word in problem), reading())

    return reply


def run(
    tmp_path: Path, writer: Fake, reader: Fake, row: Row = ROW, domains: tuple[str, ...] = ("law", "sailing")
) -> Rewriting:
    prompts = load_prompts()
    with AnswerStore(tmp_path / "answers.jsonl", {}) as store:
        desk = Desk(store, {"fake": Limits(workers=1, tries=1)}, prompts.id)
        return rewrite_problems(
            [row],
            domains,
            writer=desk.asking(writer, Sampling(temperature=0.7)),
            reader=desk.asking(reader, Sampling()),
            prompts=prompts,
        )


def test_a_sound_set_is_accepted(tmp_path: Path) -> None:
    made = run(tmp_path, Fake(writes(law=LAW, sailing=SEA)), Fake(reads()))
    assert [(row.id, row.domain, row.set_id, row.answer) for row in made.rows] == [
        ("q", "cooking", "q", "19"),
        ("q/law", "law", "q", "19"),
        ("q/sailing", "sailing", "q", "19"),
    ]
    assert [row.prompt for row in made.rows] == [SOURCE, LAW, SEA]
    assert [row.completion for row in made.rows] == ["24 - 5 = 19", None, None]
    assert (made.rejected, made.attempts, made.rejection_rate) == ({}, [], 0.0)


BAD = {
    "other values": (LAW, reading((6, 4, 7)), "7 instead of 5"),
    "another answer": (LAW, reading(last="x + c"), "29 instead of 19"),
    "other relations": (LAW, reading(last="x - 5 * c + 20"), "not for other values"),
    "other units": (LAW, reading(units="uvw"), "4 v, 5 w instead of"),
    "not readable": (LAW, "I would rather talk about it.", "there is no JSON object"),
    "another language": (LAW.replace("apiece", "ç") and "Ein Koch füllt 6 Bleche mit je 4 Broten und verkauft 5 davon. "
                         "Wie viele Brote bleiben übrig?", reading(), "Ein Koch"),
    "other numbers": (LAW.replace("4", "14"), reading(), "new in the text: 14; missing: 4"),
    "near-copy": (SOURCE.replace("baker", "lawyer"), reading(), "of the content words"),
    "no text": ("", reading(), "wrote nothing"),
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_member_costs_the_set_and_is_listed(tmp_path: Path, reason: str) -> None:
    text, read, detail = BAD[reason]
    made = run(tmp_path, Fake(writes(law=text, sailing=SEA)), Fake(reads(**{text[:20] or "never": read})))
    assert made.rows == []
    assert made.rejection_rate == 1.0
    assert made.rejected["q"].domain == "law"
    assert made.rejected["q"].reason == reason
    assert detail in made.rejected["q"].detail
    assert made.rejected["q"].text == text
    assert [(attempt.round, attempt.reason) for attempt in made.attempts] == [(0, reason), (1, reason)]
    assert made.reasons[reason].count == 1
    assert "set q, law" in made.reasons[reason].example


def test_the_repair_is_asked_with_the_reason_and_may_save_the_set(tmp_path: Path) -> None:
    told: list[str] = []

    def reply(messages: Messages) -> str:
        told.append(messages[-1]["content"])
        return writes(law=LAW.replace("4", "40"), law_2=LAW, sailing=SEA)(messages)

    made = run(tmp_path, Fake(reply), Fake(reads()))
    assert len(made.rows) == 3
    assert [attempt.reason for attempt in made.attempts] == ["other numbers"]
    assert made.rejected == {}
    assert "new in the text: 40; missing: 4" in told[-1]


def test_members_that_copy_each_other_are_refused(tmp_path: Path) -> None:
    made = run(tmp_path, Fake(writes(law=LAW, sailing=LAW.replace("judge", "captain"))), Fake(reads()))
    assert made.rejected["q"].reason == "near-copy"
    assert made.rejected["q"].domain == "sailing"


@pytest.mark.parametrize(
    ("row", "read", "reason"),
    [
        (ROW, reading(last="x + c"), "problem read otherwise"),
        (ROW, "{}", "problem not readable"),
        (replace(ROW, answer="yes", answer_type="yesno"), reading(), "no problem with a number answer"),
        (replace(ROW, prompt=({"role": "user", "content": SOURCE},)), reading(), "no problem with a number answer"),
    ],
)
def test_a_problem_that_is_not_understood_is_never_rewritten(tmp_path: Path, row: Row, read: str, reason: str) -> None:
    writer = Fake(writes(law=LAW, sailing=SEA))
    made = run(tmp_path, writer, Fake(lambda messages: read), row)
    assert made.rejected["q"].reason == reason
    assert made.rejected["q"].domain is None
    assert writer.asked == 0


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    writer, reader = Fake(writes(law=LAW.replace("4", "40"), sailing=SEA)), Fake(reads())
    first = run(tmp_path, writer, reader)
    asked = writer.asked, reader.asked
    assert run(tmp_path, writer, reader) == first
    assert (writer.asked, reader.asked) == asked


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    def dies(messages: Messages) -> str:
        if "sailing" in messages[0]["content"]:
            raise KeyboardInterrupt
        return LAW

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Fake(dies), Fake(reads()))
    writer = Fake(writes(law="never asked again", sailing=SEA))
    assert len(run(tmp_path, writer, Fake(reads())).rows) == 3
    assert writer.asked == 1


def test_refusals_for_good_and_cut_texts_are_counted(tmp_path: Path) -> None:
    def refuses(messages: Messages) -> str:
        raise TeacherError("this model does not answer that", retry=False)

    for name, teachers in (("a", (Fake(refuses), Fake(reads()))), ("c", (Fake(writes(law=LAW)), Fake(refuses)))):
        made = run(tmp_path / name, *teachers)
        assert (made.rejected["q"].reason, made.rejected["q"].round) == ("no answer", 0)
        assert "does not answer that" in made.rejected["q"].detail
        assert [each.set_id for each in made.unanswered] == ["q"]
    cut = Fake(writes(law=LAW, sailing=SEA), finish="length")
    assert run(tmp_path / "b", cut, Fake(reads())).rejected["q"].reason == "no text"


def test_domains_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names one twice"):
        run(tmp_path, Fake(writes(law=LAW)), Fake(reads()), domains=("law", "law"))


def structure(relations: dict[str, str], question: str, **values: int) -> str:
    quantities = [{"name": name, "value": value} for name, value in values.items()]
    steps = [{"name": name, "is": text} for name, text in relations.items()]
    return "Here it is:\n```json\n" + json.dumps({"quantities": quantities, "relations": steps, "question": question})


def test_names_order_of_steps_and_of_sums_do_not_matter() -> None:
    left = read_structure(structure({"x": "a * (b + c)", "y": "x - d"}, "y", a=3, b=4, c=5, d=3))
    right = read_structure(structure({"m": "r * p", "n": "q * p", "k": "n + m - s"}, "k", s=3, q=4, p=3, r=5))
    assert left.answer == right.answer == 24
    assert difference(left, right) is None


def test_equal_values_are_matched_by_what_is_done_with_them() -> None:
    left = read_structure(structure({"x": "a - b / c"}, "x", a=4, b=4, c=2))
    right = read_structure(structure({"x": "b - a / c"}, "x", a=4, b=4, c=2))
    assert difference(left, right) is None
    other = read_structure(structure({"x": "a / c"}, "x", a=4, b=4, c=2))
    found = difference(left, other)
    assert found is not None
    assert found[0] == "other relations"  # 4 - 4 / 2 = 4 / 2


def test_what_grows_beyond_bounds_for_other_values_is_no_isomer() -> None:
    """With 1 for a, a power of it is 1; the check puts other numbers in."""
    text = structure({f"x{i}": f"x{i - 1} * x{i - 1}" if i else "a * a" for i in range(10)}, "x9", a=1)
    found = difference(read_structure(text), read_structure(text))
    assert found is not None
    assert found[0] == "not comparable"
    assert "beyond all bounds" in found[1]


@given(values=st.lists(st.integers(2, 40), min_size=3, max_size=3), sign=st.sampled_from("+-*/"))
def test_a_changed_sign_is_never_an_isomer(values: list[int], sign: str) -> None:
    names = dict(zip("abc", values, strict=True))
    left = read_structure(structure({"x": f"(a {sign} b) * c"}, "x", **names))
    for other in "+-*/".replace(sign, ""):
        right = read_structure(structure({"x": f"(a {other} b) * c"}, "x", **names))
        assert difference(left, right) is not None


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "no JSON object"),
        ("{", "no JSON object"),
        ("[1]", "no JSON object"),
        ('{"quantities": 3}', "quantities is no list"),
        (structure({"x": "a + b"}, "x", a=2), "more than"),
        (structure({"x": "__import__('os')"}, "x", a=2), "more than"),
        (structure({"x": "a ** 99999"}, "x", a=2), "more than"),
        (structure({"x": "a / (a - a)"}, "x", a=2), "divides by zero"),
        (structure({"x": "a"}, "z", a=2), "'z' names no quantity"),
        (structure({"a": "a"}, "a", a=2), "no name of its own"),
        (structure({"x": "(" * 400 + "a" + ")" * 400}, "x", a=2), "too long"),
        (structure({f"x{i}": f"x{i - 1} * x{i - 1}" if i else "a * a" for i in range(40)}, "x39", a=9), "beyond"),
        ('{"quantities": [{"name": "a", "value": "many"}], "relations": [], "question": "a"}', "'many' is no number"),
        ('{"quantities": [{"name": "a", "value": NaN}], "relations": [], "question": "a"}', "is no number"),
        ('{"quantities": [{"name": "a", "value": 1e999}], "relations": [], "question": "a"}', "is no number"),
    ],
)
def test_readings_that_say_nothing_usable_are_refused(reply: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_structure(reply)


def test_numbers_in_digits_and_words() -> None:
    found = numbers_in("Twenty-five of the 1,200 cost $3.50, half of them 1/4; two hundred and one dozen, 7%.")
    assert sorted(map(str, found.digits)) == ["1/4", "1200", "7", "7/2"]
    assert sorted(map(str, found.words)) == ["1/2", "12", "200", "25"]


def test_numbers_may_be_said_in_words() -> None:
    assert changed_numbers("He has 3 pens and twice as many caps.", "The two shops hold three cups, 2 a shelf.") is None
    assert changed_numbers("He has 3 pens.", "He has 3 pens and 4 caps.") == "new in the text: 4; missing: none"


def test_languages_and_copies() -> None:
    assert not changed_language(SOURCE, LAW)
    assert changed_language(
        SOURCE, "Un boulanger remplit 6 plateaux de 4 pains. Combien en reste-t-il après 5 ventes ?"
    )
    assert not changed_language("Wie viele Brote sind es?", "Wie viele Akten sind es?")  # not judged
    assert overlap(SOURCE, SOURCE) == 1.0
    assert overlap(SOURCE, LAW) < 0.2
