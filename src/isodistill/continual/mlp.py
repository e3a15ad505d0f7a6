"""A multi-layer perceptron that grows, with one head per task that sees only the units of its own time.

Unit i of hidden layer l carries two stamps: ``born``, the task in which it appeared, and ``until``, the task in which a
copy took its place. Task t reads the units with born <= t < until, so whatever is added later leaves its logits as they
are, bit for bit, and a duplicated unit goes on serving the heads that knew it (DEN's time-stamps, arXiv 1708.01547; the
second stamp is ours: without it the new task would read the unit and its copy).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill.errors import UserError

__all__ = ["GrowingMLP"]

NEVER = 2**31 - 1
"""``until`` of a unit that no copy has replaced."""


class GrowingMLP(nn.Module):
    """ReLU layers and one linear head per task.

    Args:
        sizes: inputs, then the units of every hidden layer.
        generator: of the initial weights, U(-1/sqrt(fan_in), 1/sqrt(fan_in)); zeros without one.

    Attributes:
        W: weights (n_l, n_{l-1}) of the hidden layers.
        b: their biases (n_l,).
        born: (n_l,) task in which each unit appeared.
        until: (n_l,) task in which its copy took its place.
        heads: weights (n_classes, n_L) of every task's head, n_L units at its time.
        head_biases: (n_classes,).
    """

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes is {list(sizes)}; give the inputs and at least one hidden layer, all 1 or more")
        shapes = list(zip(sizes[1:], sizes, strict=False))
        self.W = nn.ParameterList([_uniform((m, n), n, generator) for m, n in shapes])
        self.b = nn.ParameterList([torch.zeros(m) for m, _ in shapes])
        self.born = [torch.zeros(m, dtype=torch.long) for m, _ in shapes]
        self.until = [torch.full((m,), NEVER) for m, _ in shapes]
        self.heads, self.head_biases = nn.ParameterList(), nn.ParameterList()

    @property
    def sizes(self) -> list[int]:
        """Inputs, then the units of every hidden layer, replaced ones among them."""
        return [self.W[0].shape[1], *(len(W) for W in self.W)]

    @property
    def n_parameters(self) -> int:
        """Entries of the hidden layers and of all heads."""
        return sum(p.numel() for p in self.parameters())

    def view(self, layer: int, task: int) -> Tensor:
        """Indices of the units of a hidden layer that a task reads, ascending."""
        return ((self.born[layer] <= task) & (task < self.until[layer])).nonzero().squeeze(1)

    def add_head(self, n_classes: int, generator: torch.Generator | None = None) -> int:
        """A head over all units; returns its task."""
        n = len(self.W[-1])
        self.heads.append(nn.Parameter(_uniform((n_classes, n), n, generator)))
        self.head_biases.append(nn.Parameter(torch.zeros(n_classes)))
        return len(self.heads) - 1

    def body(self, x: Tensor, task: int) -> Tensor:
        """Activations (N, units of the last layer that the task reads) of inputs (N, n)."""
        columns = None
        for layer, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            rows = self.view(layer, task)
            if columns is not None and len(columns) < W.shape[1]:
                W = W.index_select(1, columns)
            if len(rows) < len(W):
                W, b = W.index_select(0, rows), b.index_select(0, rows)
            x = torch.relu(F.linear(x, W, b))
            columns = rows
        return x

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Logits (N, n_classes) of a task's head."""
        return self.read(self.body(x, task), task)

    def read(self, h: Tensor, task: int) -> Tensor:
        """Logits of a task's head from the activations that ``body`` gives."""
        W, columns = self.heads[task], self.view(len(self.W) - 1, task)
        if len(columns) < W.shape[1]:
            W = W.index_select(1, columns)
        return F.linear(h, W, self.head_biases[task])

    def append(self, layer: int, rows: Tensor, biases: Tensor, columns: Tensor, task: int) -> None:
        """New units for a hidden layer, born in a task.

        Args:
            layer: hidden layer.
            rows: (k, n_{l-1}) incoming weights.
            biases: (k,).
            columns: (n_{l+1}, k) outgoing weights; into the head of the task (n_classes, k) behind the last layer.
            task: whose units they are.
        """
        k = len(rows)
        self.W[layer] = nn.Parameter(torch.cat([self.W[layer].data, rows]))
        self.b[layer] = nn.Parameter(torch.cat([self.b[layer].data, biases]))
        self.born[layer] = torch.cat([self.born[layer], torch.full((k,), task)])
        self.until[layer] = torch.cat([self.until[layer], torch.full((k,), NEVER)])
        above, place = (self.W, layer + 1) if layer + 1 < len(self.W) else (self.heads, task)
        above[place] = nn.Parameter(torch.cat([above[place].data, columns], dim=1))

    def drop(self, layer: int, units: Tensor, task: int) -> None:
        """Take units away again, and their columns above; only ones that no other head has seen."""
        kept = torch.ones(len(self.W[layer]), dtype=torch.bool)
        kept[units] = False
        self.W[layer] = nn.Parameter(self.W[layer].data[kept])
        self.b[layer] = nn.Parameter(self.b[layer].data[kept])
        self.born[layer], self.until[layer] = self.born[layer][kept], self.until[layer][kept]
        above, place = (self.W, layer + 1) if layer + 1 < len(self.W) else (self.heads, task)
        above[place] = nn.Parameter(above[place].data[:, kept])

    def save(self, path: Path) -> None:
        """Weights, stamps and sizes in one safetensors file."""
        tensors = {name: p.detach().contiguous() for name, p in self.named_parameters()}
        for layer in range(len(self.W)):
            tensors |= {f"born.{layer}": self.born[layer], f"until.{layer}": self.until[layer]}
        sizes = {"sizes": self.sizes, "heads": [list(head.shape) for head in self.heads]}
        save_file(tensors, path, metadata={"grown": json.dumps(sizes)})

    @classmethod
    def load(cls, path: Path) -> GrowingMLP:
        """A saved network, rebuilt in the sizes that it had grown to.

        Raises:
            UserError: the file is missing, damaged, or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                sizes = json.loads((file.metadata() or {})["grown"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(
                f"{path} holds no grown network: {error}. Give a file that GrowingMLP.save wrote."
            ) from error
        model = cls(sizes["sizes"])
        for n_classes, n in sizes["heads"]:
            model.heads.append(nn.Parameter(torch.zeros(n_classes, n)))
            model.head_biases.append(nn.Parameter(torch.zeros(n_classes)))
        model._take(tensors)
        return model

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        for layer in range(len(self.W)):
            self.born[layer], self.until[layer] = tensors[f"born.{layer}"], tensors[f"until.{layer}"]
        for name, p in self.named_parameters():
            p.data = tensors[name]


def _uniform(shape: tuple[int, int], fan_in: int, generator: torch.Generator | None) -> Tensor:
    bound = 1 / math.sqrt(fan_in)
    if generator is None:
        return torch.zeros(shape)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
