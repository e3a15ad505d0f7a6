from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from isodistill.data.rows import Row
from isodistill.isomers.check import PARSERS, UNREAD, CheckReport, Rejection, check_sets
from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.cues import Cue, with_cues
from isodistill.isomers.generate import FAMILIES, generate_sets


def read_sum(question: str, choices: tuple[str, ...] | None) -> Parsed | None:
    numbers = tuple(int(n) for n in re.findall(r"\d+", question))
    if choices or not re.fullmatch(r"\d+ \w+ and \d+ \w+ make how many\?|All of \d+ and \d+ \w+: how many\?", question):
        return None
    return Parsed("sum", ("add",), numbers, str(sum(numbers)))


def read_pick(question: str, choices: tuple[str, ...] | None) -> Parsed | None:
    found = re.fullmatch(r"Which one is (\w+)\?", question)
    if not choices or not found or found[1] not in choices:
        return None
    slot = choices.index(found[1])
    return Parsed("pick", (len(choices),), (slot,), "ABC"[slot])


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(PARSERS):
        monkeypatch.delitem(PARSERS, name)
    monkeypatch.setitem(PARSERS, "sum", read_sum)
    monkeypatch.setitem(PARSERS, "pick", read_pick)


def sums(set_id: str = "s", a: int = 3, b: int = 4) -> list[Row]:
    prompts = {
        "law": f"{a} briefs and {b} motions make how many?",
        "medicine": f"All of {a} and {b} doses: how many?",
        "science": f"{a} tubes and {b} flasks make how many?",
    }
    return [
        Row(id=f"{set_id}/{d}", set_id=set_id, domain=d, prompt=p, answer=str(a + b), answer_type="number")
        for d, p in prompts.items()
    ]


def picks() -> list[Row]:
    things = {"law": ("brief", "motion"), "science": ("tube", "flask")}
    return [
        Row(
            id=f"p/{domain}",
            set_id="p",
            domain=domain,
            prompt=f"Which one is {second}?\nA) {first}\nB) {second}",
            choices=(first, second),
            answer="B",
            answer_type="choice",
        )
        for domain, (first, second) in things.items()
    ]


def only_reason(report: CheckReport) -> tuple[str, Rejection]:
    ((reason, rejection),) = report.reasons.items()
    assert rejection.count == len(report.rejected)
    return reason, rejection


def test_sound_sets_pass(readers: None) -> None:
    rows = [*sums("s"), *picks(), *sums("t", 8, 9)]
    report = check_sets(rows)
    assert report == CheckReport(
        accepted=("s", "p", "t"),
        rejected={},
        reasons={},
        by_family={"pick": (1, 1), "sum": (2, 2)},
        by_domain={"law": (3, 3), "medicine": (2, 2), "science": (3, 3)},
        n_without_set=0,
    )
    assert (report.n_sets, report.rejection_rate) == (3, 0.0)
    assert set(check_sets(rows[::-1]).accepted) == set(report.accepted)


def test_nothing_to_check(readers: None) -> None:
    report = check_sets([replace(row, set_id=None) for row in sums()])
    assert (report.n_sets, report.rejection_rate, report.n_without_set) == (0, 0.0, 3)


@pytest.mark.parametrize("kind", ["conflict", "private"])
def test_cue_sentences_are_passed_over(readers: None, kind: str) -> None:
    rows = [replace(row, split="id") for row in [*sums(), *picks()]]
    planted = with_cues(rows, Cue(kind=kind, rho=0.5))
    assert len(planted) == 2 * len(rows)
    assert check_sets(planted).accepted == ("s", "p")


def test_options_may_be_listed_or_stand_in_the_column(readers: None) -> None:
    unlisted = [replace(row, prompt=row.prompt.split("\n")[0]) for row in picks()]
    columnless = [replace(row, choices=None) for row in picks()]
    assert check_sets(unlisted).accepted == check_sets(columnless).accepted == ("p",)
    law, science = picks()
    reason, rejection = only_reason(check_sets([law, replace(science, choices=science.choices[::-1])]))
    assert reason == "listed options are not the choices"
    assert "science" in rejection.example


def test_chat_messages_are_read(readers: None) -> None:
    rows = [
        replace(row, prompt=({"role": "system", "content": "Be brief."}, {"role": "user", "content": row.prompt}))
        for row in sums()
    ]
    assert check_sets(rows).accepted == ("s",)


def test_a_set_needs_two_domains(readers: None) -> None:
    law, *_ = sums("one")
    twin = replace(law, id="twin", split="cue_random")
    for members in ([law], [law, twin]):
        reason, rejection = only_reason(check_sets([*members, *sums("good")]))
        assert reason == "fewer than two domains"
        assert rejection == Rejection(1, "set one, only in law")


def test_a_domain_told_twice(readers: None) -> None:
    report = check_sets([*sums(), replace(sums()[0], id="again")])
    assert only_reason(report)[0] == "a domain twice"
    assert report.rejected == {"s": "a domain twice"}


def test_a_text_nobody_reads(readers: None) -> None:
    law, *rest = sums("odd")
    report = check_sets([replace(law, prompt="What is love?"), *rest, *sums("good"), *sums("good too")])
    assert report.accepted == ("good", "good too")
    assert report.rejection_rate == pytest.approx(1 / 3)
    assert only_reason(report) == ("not readable", Rejection(1, "set odd, law: 'What is love?'"))
    assert report.by_domain == {"law": (2, 3), "medicine": (3, 3), "science": (3, 3)}
    assert report.by_family == {"sum": (2, 3)}
    unread = check_sets([replace(row, prompt="What is love?") for row in sums()])
    assert unread.by_family == {UNREAD: (0, 1)}


def test_a_set_two_readers_claim(readers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARSERS, "greedy", lambda question, choices: Parsed("greedy", (), (), "7"))
    reason, rejection = only_reason(check_sets(sums()))
    assert reason == "read by several families"
    assert rejection.example.startswith("set s, sum and greedy in law: ")


def test_a_reader_that_claims_some_members_does_no_harm(readers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        PARSERS, "greedy", lambda question, choices: Parsed("greedy", (), (), "9") if "make" in question else None
    )
    report = check_sets(sums())
    assert report.accepted == ("s",)
    assert report.by_family == {"sum": (1, 1)}
    law, medicine, science = sums()
    changed = replace(science, prompt=science.prompt.replace("4", "5"))
    assert not check_sets([law, medicine, changed]).accepted


def test_a_changed_number(readers: None) -> None:
    law, medicine, science = sums()
    changed = replace(medicine, prompt=medicine.prompt.replace("4", "5"))
    reason, rejection = only_reason(check_sets([changed, law, science]))
    assert reason == "members differ"
    assert re.fullmatch(r"set s, Parsed.*5.* instead of Parsed.* in medicine: 'All of 3 and 5 .*", rejection.example)


def test_swapped_members(readers: None) -> None:
    (law, *rest), (other_law, *other_rest) = sums("s"), sums("t", 3, 5)
    swapped = [replace(other_law, set_id="s"), *rest, replace(law, set_id="t"), *other_rest, *picks()]
    report = check_sets(swapped)
    assert report.accepted == ("p",)
    assert only_reason(report)[0] == "members differ"


def test_values_that_only_give_the_same_answer(readers: None) -> None:
    (law, *rest), (other_law, *_) = sums("s", 3, 4), sums("s", 2, 5)
    assert law.answer == other_law.answer
    assert only_reason(check_sets([other_law, *rest]))[0] == "members differ"


def test_a_wrong_answer(readers: None) -> None:
    *rest, science = sums()
    reason, rejection = only_reason(check_sets([*rest, replace(science, answer="12")]))
    assert reason == "wrong answer"
    assert rejection.example.startswith("set s, '12' instead of '7' in science: ")
    assert only_reason(check_sets([replace(row, answer="B") for row in sums()]))[0] == "wrong answer"


def test_reasons_are_counted_with_the_first_example(readers: None) -> None:
    bad = [replace(row, answer="0") for name in ("x", "y") for row in sums(name)]
    report = check_sets([*sums("one")[:1], *bad])
    assert {reason: (r.count, r.example[:5]) for reason, r in report.reasons.items()} == {
        "wrong answer": (2, "set x"),
        "fewer than two domains": (1, "set o"),
    }
    assert next(iter(report.reasons)) == "wrong answer"


@pytest.mark.parametrize("name", FAMILIES)
def test_generated_sets_pass(name: str) -> None:
    rows = generate_sets(n_sets=120, seed=17, families=[name], difficulty=(1, 2, 3))
    report = check_sets(rows)
    assert report.n_sets == 120
    assert report.rejection_rate <= 0.01, report.reasons
    assert report.by_family.keys() == {name}


@pytest.mark.parametrize("name", FAMILIES)
def test_faults_planted_into_generated_sets_are_found(name: str) -> None:
    rows = generate_sets(n_sets=20, seed=23, families=[name], domains=["law", "medicine", "cooking"])
    sets = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    sets = [members for members in sets if check_sets(members).accepted]
    for i, (law, *rest) in enumerate(sets):
        other = sets[i - 1][0]
        assert not check_sets([replace(law, prompt=other.prompt, choices=other.choices), *rest]).accepted
        assert not check_sets([replace(law, answer={"yes": "no", "A": "B"}.get(law.answer, "yes")), *rest]).accepted
        assert not check_sets([law]).accepted
