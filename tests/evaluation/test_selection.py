"""The selection rules on hand-made records: what each one reads, what it must not read, and how ties fall."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from isodistill.errors import UserError
from isodistill.evaluation import Record
from isodistill.evaluation.selection import leave_one_out, oracle, train_val

MakeRecord = Callable[..., Record]


@pytest.fixture
def answers(make_record: MakeRecord) -> Callable[..., list[Record]]:
    """``answers(draw, split, {domain: (right, wrong)}, **fields)``."""

    def make(draw: int, split: str, counts: dict[str, tuple[int, int]], **fields: Any) -> list[Record]:
        return [
            make_record(f"s{i}", domain, "19" if i < right else "7", split=split, seed_hparam=draw, **fields)
            for domain, (right, wrong) in counts.items()
            for i in range(right + wrong)
        ]

    return make


Answers = Callable[..., list[Record]]


def test_train_val_takes_the_mean_of_domains_on_valid(answers: Answers) -> None:
    records = [
        *answers(0, "valid", {"law": (9, 1), "medicine": (0, 2)}),  # 9 of 12 right, but 0.45 over domains
        *answers(1, "valid", {"law": (5, 5), "medicine": (1, 1)}),  # 6 of 12 right, and 0.5 over domains
    ]
    choice = train_val(records)["erm"]
    assert choice.setting == (1, 200)
    assert choice.score == pytest.approx(0.5)
    assert {setting.seed_hparam: score for setting, score in choice.scores.items()} == pytest.approx({0: 0.45, 1: 0.5})


def test_train_val_never_reads_test_rows(answers: Answers) -> None:
    valid = [*answers(0, "valid", {"law": (3, 1)}), *answers(1, "valid", {"law": (2, 2)})]
    test = [
        *answers(0, "ood", {"sports": (0, 4)}),
        *answers(1, "ood", {"sports": (4, 0)}),
        *answers(2, "id", {"law": (4, 0)}),
        *answers(3, "ood", {"sports": (4, 0)}),
    ]
    assert train_val(valid + test) == train_val(valid)
    assert train_val(test) == {}
    assert train_val(valid + test)["erm"].setting.seed_hparam == 0


def test_train_val_may_choose_an_early_checkpoint(answers: Answers) -> None:
    records = [
        *answers(0, "valid", {"law": (3, 1)}, step=100),
        *answers(0, "valid", {"law": (2, 2)}, step=200),
    ]
    assert train_val(records)["erm"].setting == (0, 100)


def test_the_oracle_reads_the_test_and_ignores_early_checkpoints(answers: Answers) -> None:
    records = [
        *answers(0, "ood", {"sports": (4, 0)}, step=100),
        *answers(0, "ood", {"sports": (1, 3)}, step=200),
        *answers(1, "ood", {"sports": (2, 2)}, step=200),
        *answers(2, "valid", {"law": (4, 0)}, step=200),
        *answers(2, "id", {"law": (4, 0)}, step=200),
    ]
    choice = oracle(records, "ood")["erm"]
    assert choice.setting == (1, 200)
    assert choice.score == pytest.approx(0.5)
    assert [setting.step for setting in choice.scores] == [200, 200]


def test_leave_one_out_reads_only_the_domain_that_was_left_out(answers: Answers) -> None:
    without = {
        "law": [
            *answers(0, "valid", {"law": (1, 3), "medicine": (4, 0)}),
            *answers(1, "valid", {"law": (2, 2), "medicine": (0, 4)}),
            *answers(0, "ood", {"law": (4, 0)}),
        ],
        "medicine": [
            *answers(0, "valid", {"law": (4, 0), "medicine": (2, 2)}),
            *answers(1, "valid", {"law": (0, 4), "medicine": (3, 1)}),
        ],
    }
    choice = leave_one_out(without)["erm"]
    assert choice.setting.seed_hparam == 1
    assert choice.score == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert choice.scores[(0, 200)] == pytest.approx((1 / 4 + 2 / 4) / 2)


def test_leave_one_out_passes_over_a_draw_that_lacks_a_domain(answers: Answers) -> None:
    without = {
        "law": [*answers(0, "valid", {"law": (1, 3)}), *answers(1, "valid", {"law": (4, 0)})],
        "medicine": answers(0, "valid", {"medicine": (1, 3)}),  # the run of draw 1 failed
    }
    assert leave_one_out(without)["erm"].scores == {(0, 200): 0.25}


def test_scores_are_means_over_seeds_and_a_draw_with_fewer_seeds_does_not_compete(answers: Answers) -> None:
    records = [
        *answers(0, "valid", {"law": (1, 3)}, seed_train=0),
        *answers(0, "valid", {"law": (3, 1)}, seed_train=1),
        *answers(1, "valid", {"law": (4, 0)}, seed_train=0),  # seed 1 failed
    ]
    choice = train_val(records)["erm"]
    assert (choice.setting.seed_hparam, choice.seeds) == (0, [0, 1])
    assert choice.score == pytest.approx(0.5)


def test_the_defaults_win_a_tie_and_every_method_has_its_own_choice(answers: Answers) -> None:
    records = [
        *answers(1, "valid", {"law": (2, 2)}),
        *answers(0, "valid", {"law": (2, 2)}),
        *answers(0, "valid", {"law": (1, 3)}, method="iga"),
        *answers(1, "valid", {"law": (2, 2)}, method="iga"),
    ]
    choices = train_val(records)
    assert choices["erm"].setting.seed_hparam == 0
    assert choices["iga"].setting.seed_hparam == 1


def test_records_outside_a_search_are_refused(make_record: MakeRecord) -> None:
    with pytest.raises(UserError, match="have no seed_hparam"):
        train_val([make_record("s0", "law", split="valid")])
