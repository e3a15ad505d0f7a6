"""The finite check names what it found."""

from __future__ import annotations

import pytest
import torch

from isodistill.numerics import require_finite


def test_finite_tensors_of_any_kind_pass() -> None:
    require_finite({})
    require_finite({"empty": torch.ones(0), "scalar": torch.tensor(1.0), "large": torch.full((2, 3), 3e38)})
    require_finite(
        [("half", torch.ones(3, dtype=torch.bfloat16)), ("double", torch.tensor([1e300, -1e300], dtype=torch.float64))]
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_bad_tensor_its_entry_and_the_place_are_named(bad: float, dtype: torch.dtype) -> None:
    damaged = torch.ones(2, 3, dtype=dtype)
    damaged[1, 2] = bad
    kind = "1 NaN, 0 infinite" if bad != bad else "0 NaN, 1 infinite"
    with pytest.raises(FloatingPointError, match=rf"domain law.*layer\.1\.A .*{kind}; first at \(1, 2\)") as error:
        require_finite({"layer.0.A": torch.ones(4), "layer.1.A": damaged}, where="domain law")
    assert "layer.0.A" not in str(error.value)


def test_every_bad_tensor_is_named() -> None:
    nan = torch.tensor([float("nan")])
    with pytest.raises(FloatingPointError, match=r"a .*b "):
        require_finite([("a", nan), ("good", torch.ones(1)), ("b", nan)])
