"""A small module with an AdamW of its own: projectors and domain classifiers, which are no part of the student."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Learner"]


class Learner:
    """Parameters that learn beside the student, in fp32.

    Args:
        module: holds them.
        learning_rate: of its AdamW; no schedule, no weight decay.
    """

    def __init__(self, module: nn.Module, learning_rate: float) -> None:
        self.module = module.float()
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=0.0)

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return sum(p.numel() for p in self.module.parameters())

    def on(self, device: torch.device) -> nn.Module:
        """The module on a device, and its moments with it, wherever they were loaded."""
        if next(self.module.parameters()).device != device:
            self.module.to(device)
            self._optimizer.load_state_dict(self._optimizer.state_dict())
        return self.module

    def step(self) -> None:
        """One step on the gradients that backwards have left, summed over processes; not where one is not finite."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.module.parameters()]
        if dist.is_initialized() and dist.get_world_size() > 1:
            for grad in grads:
                dist.all_reduce(grad)
        if all(bool(torch.isfinite(grad).all()) for grad in grads):
            for p, grad in zip(self.module.parameters(), grads, strict=True):
                p.grad = grad
            self._optimizer.step()
        self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and moments, flat, under names with a slash."""
        state = {f"module/{name}": p for name, p in self.module.state_dict().items()}
        for i, entries in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer/{i}/{key}": value for key, value in entries.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state back."""
        self.module.load_state_dict(
            {name.removeprefix("module/"): p for name, p in state.items() if name.startswith("module/")}
        )
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer/"):
                _, i, key = name.split("/")
                entries.setdefault(int(i), {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": entries, "param_groups": groups})
