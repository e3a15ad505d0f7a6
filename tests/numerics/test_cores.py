"""``map_on_cores`` against a plain loop."""

from __future__ import annotations

import pytest
import torch

from isodistill.numerics import map_on_cores


@pytest.mark.parametrize("threads", [1, 3])
def test_results_keep_their_order_and_nothing_is_left_changed(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seen: list[tuple[int, bool]] = []

        def square(i: int) -> torch.Tensor:
            seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
            return torch.full((3,), float(i)) ** 2

        results = map_on_cores(square, range(20), torch.device("cpu"))
        assert [r[0].item() for r in results] == [float(i * i) for i in range(20)]
        assert set(seen) == {(1, False)}
        assert torch.get_num_threads() == threads
        assert torch.is_grad_enabled()
    finally:
        torch.set_num_threads(before)


def test_an_error_reaches_the_caller_and_the_threads_are_restored() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            map_on_cores(lambda i: 1 // i, [1, 0, 2], torch.device("cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
