"""CAGrad steps within its radius around the mean."""

from __future__ import annotations

import pytest
import torch

from isodistill.alignment import CAGrad

from .bench import Bench, drawn


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
def test_the_direction_lies_on_the_radius_and_serves_the_worst_domain_better(c: float) -> None:
    g = drawn(0)
    gbar, d = g.mean(0), Bench("cagrad", c=c).direction(g)
    assert float((d - gbar).norm()) == pytest.approx(c * float(gbar.norm()), rel=1e-4)
    assert float((g @ d).min()) > float((g @ gbar).min())


def test_rescale_divides_by_one_plus_c_squared() -> None:
    plain, rescaled = (Bench("cagrad", rescale=r).direction(drawn(0)) for r in (False, True))
    torch.testing.assert_close(rescaled, plain / 1.25)


@pytest.mark.parametrize("c", [-0.1, 1.0])
def test_a_radius_out_of_range_is_named(c: float) -> None:
    with pytest.raises(ValueError, match=rf"alignment\.c is {c}"):
        CAGrad(c=c)
