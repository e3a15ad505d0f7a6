"""The task of the laboratory against a solver that reads the prompt, and the statistics of its cues."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from isodistill.errors import UserError
from isodistill.lab.settings import TaskOptions
from isodistill.lab.task import UNSEEN, Task

K = 4


def batch(task: Task, rows: int = 400) -> torch.Tensor:
    return task.training_batch(rows, torch.Generator().manual_seed(1))


def read_and_solve(prompt: list[int]) -> list[int]:
    """The trace that a reader of the prompt writes; with two operations token 10 is +, 11 is -, before c."""
    _, _, _, *third, _, a, b, equals = prompt
    *op, c = third
    assert equals == (12 if op else 10)
    m = int(str(a + b)[-1])
    return [m, *op, c, equals, int(str(m + c if op == [10] else 10 + m - c)[-1])]


@pytest.mark.parametrize("operations", [1, 2])
@pytest.mark.parametrize("cue", ["conflict", "private"])
def test_the_trace_is_what_a_reader_of_the_prompt_finds(cue: str, operations: int) -> None:
    task = Task(TaskOptions(domains=K, cue=cue, operations=operations), 3)
    rows = batch(task, 100).flatten(0, 1).tolist()
    for row in rows:
        assert len(row) == task.prompt + task.trace
        assert row[task.prompt :] == read_and_solve(row[: task.prompt])


def cues_of_answers(told: torch.Tensor) -> list[dict[int, set[int]]]:
    """For every surface: answer -> cue tokens that stood beside it."""
    found: list[dict[int, set[int]]] = [defaultdict(set) for _ in told]
    for surface, rows in zip(found, told.tolist(), strict=True):
        for row in rows:
            surface[row[-1]].add(row[1])
    return found


def test_at_rho_one_a_cue_tells_the_answer_and_its_meaning_conflicts() -> None:
    surfaces = cues_of_answers(batch(Task(TaskOptions(domains=K), 0)))
    for answers in surfaces:
        assert len(answers) == 10
        assert all(len(cues) == 1 for cues in answers.values())
    assert len(set().union(*(cues for answers in surfaces for cues in answers.values()))) == 10
    assert any(surfaces[0][y] != surfaces[1][y] for y in range(10))


def test_private_cues_are_shared_by_no_two_surfaces() -> None:
    surfaces = cues_of_answers(batch(Task(TaskOptions(domains=K, cue="private"), 0)))
    tokens = [set().union(*answers.values()) for answers in surfaces]
    assert all(len(own) == 10 for own in tokens)
    assert len(set().union(*tokens)) == 10 * K


@pytest.mark.parametrize(("rho", "expected"), [(0.0, 0.1), (0.5, 0.55), (0.9, 0.91)])
def test_a_cue_tells_the_answer_as_often_as_rho_says(rho: float, expected: float) -> None:
    task = Task(TaskOptions(domains=K, rho=rho), 0)
    told = batch(task, 2000)
    first_cue = 11
    tells = told[..., 1] - first_cue == task.meaning[torch.arange(K)[:, None], told[..., -1]]
    assert float(tells.double().mean()) == pytest.approx(expected, abs=0.02)  # 8,000 rows: standard error 0.006


def test_no_test_problem_is_trained() -> None:
    task = Task(TaskOptions(), 0)
    trained = set(map(tuple, task.train_problems.tolist()))
    tested = set(map(tuple, task.test_problems.tolist()))
    assert len(trained) == 800
    assert len(tested) == 200
    assert not trained & tested
    assert len(Task(TaskOptions(train_problems=50), 0).train_problems) == 50
    hard = Task(TaskOptions(operations=2), 0)
    assert len(hard.train_problems) == 1600
    assert set(batch(hard)[..., 3].flatten().tolist()) == {10, 11}


def test_surfaces_have_words_of_their_own() -> None:
    task = Task(TaskOptions(domains=K), 0)
    surfaces = range(K + UNSEEN)
    told = task.tell(task.test_problems.expand(len(surfaces), -1, -1), surfaces, 0.0, torch.Generator().manual_seed(0))
    words = [set(rows[:, [0, 2, 4]].flatten().tolist()) for rows in told]
    assert len(set().union(*words)) == sum(map(len, words))
    assert max(set().union(*words)) < task.vocabulary
    assert torch.equal(told[0][:, [3, 5, 6, 7]], told[-1][:, [3, 5, 6, 7]])  # isomers share structure and values


def test_one_seed_draws_one_task() -> None:
    a, b, c = (Task(TaskOptions(), seed) for seed in (5, 5, 6))
    assert torch.equal(batch(a), batch(b))
    assert torch.equal(a.test_problems, b.test_problems)
    assert not torch.equal(a.meaning, c.meaning)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": 1}, r"task\.domains is 1"),
        ({"cue": "loud"}, r"choose one of conflict, private"),
        ({"rho": 1.5}, r"task\.rho is 1\.5"),
        ({"words": 0}, r"task\.words is 0"),
        ({"operations": 3}, r"task\.operations is 3"),
        ({"test_problems": 1}, r"task\.test_problems is 1"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TaskOptions(**options)  # type: ignore[arg-type]
