"""Measures of a stream on a matrix small enough to work out by hand."""

from __future__ import annotations

import pytest

from isodistill.evaluation.accuracy_matrix import average_accuracy, backward_transfer, forgetting, forward_transfer

R = [[0.9, 0.3, 0.2], [0.7, 0.8, 0.4], [0.8, 0.6, 0.9]]


def test_by_hand() -> None:
    assert average_accuracy(R) == pytest.approx((0.8 + 0.6 + 0.9) / 3)
    assert backward_transfer(R) == pytest.approx(((0.8 - 0.9) + (0.6 - 0.8)) / 2)
    assert forward_transfer(R, [0.1, 0.2, 0.1]) == pytest.approx(((0.3 - 0.2) + (0.4 - 0.1)) / 2)
    assert forgetting(R) == pytest.approx(((0.9 - 0.8) + (0.8 - 0.6)) / 2)


def test_what_a_later_task_taught_can_be_forgotten_too() -> None:
    assert forgetting([[0.5, 0.0, 0.0], [0.8, 0.6, 0.0], [0.4, 0.6, 0.9]]) == pytest.approx((0.8 - 0.4) / 2)


def test_one_task_forgets_nothing() -> None:
    assert (backward_transfer([[0.5]]), forward_transfer([[0.5]], [0.1]), forgetting([[0.5]])) == (0.0, 0.0, 0.0)
