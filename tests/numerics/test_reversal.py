"""The reversal is the identity forward and minus the identity backward."""

from __future__ import annotations

import torch

from isodistill.numerics.reversal import reverse_gradient


def test_forward_is_the_identity_and_backward_its_negative() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    upstream = torch.randn(4, 3)
    y = reverse_gradient(x)
    assert torch.equal(y, x)
    assert y.data_ptr() == x.data_ptr()
    y.backward(upstream)
    assert torch.equal(x.grad, -upstream)
