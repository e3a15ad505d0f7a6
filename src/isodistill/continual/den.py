"""ang-DEN (arXiv 2112.09175): a dynamically expandable network whose nodes are split by the angle of their drift.

Task t of a stream, after DEN (arXiv 1708.01547), without stored data of earlier tasks:

    1. a new head is trained on the frozen units;
    2. units on a path of weights above ``select_threshold`` to that head are selected, and they alone are retrained,
       with (drift/2) |W - W_old|^2 and an l1 pull;
    3. while the loss is above ``loss_threshold``, ``expand`` units per layer are added and trained with a group lasso,
       and so are their weights into the selected units, which begin at 0 and which no old head reads; added units whose
       incoming weights fall below ``prune`` are taken away again;
    4. nodes that drifted too far are duplicated (``SplitRule``): the unit gets its old weights back and serves the old
       heads, its copy takes the new ones for task t and later; copies and head are trained on for a short while.

Two defects of the public DEN code are not here: it keeps the *smallest* drifts above its threshold, and its variable
named like a cosine is an l2 norm. Unselected units stay as they are, bit for bit. Each phase has a fresh Adam, so that
new and restored rows begin with zero moments.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from isodistill.continual.decide import Decision, SplitRule
from isodistill.continual.mlp import GrowingMLP
from isodistill.continual.rows import check_rows
from isodistill.errors import UserError

__all__ = ["AngularDEN", "DenOptions"]

_NETWORK, _STREAM = "network.safetensors", "stream.safetensors"


@dataclass(frozen=True)
class DenOptions:
    """Settings of ang-DEN; see the module.

    Args:
        rule: which nodes are split.
        include_bias: a node's vector is [w, bias]; default False, as in DEN: a change of the bias alone has angle 0.
        steps: optimizer steps of the retraining; default 400.
        head_steps: of the new head alone; default 100.
        short_steps: after an expansion and after a split; default 40, a tenth.
        batch: rows of a step.
        lr: of Adam, 1e-3 (DEN's).
        l1: pull on all trained weights, 1e-5 (DEN's).
        drift: penalty on the change of the old weights, 0.5 (DEN's).
        group_lasso: on the incoming weights of added units, 1e-3 (DEN's).
        select_threshold: weights up to this are no path; 0.05. Below 0 everything is selected.
        loss_threshold: loss on the task above which the network expands, 0.01 (DEN's).
        expand: units added to each layer, 10 (DEN's); 0 never expands.
        prune: norm of the incoming weights up to which an added unit is dropped.
        max_units: of a layer; a growth that would pass it stops with an error.

    Raises:
        ValueError: an option is out of range.
    """

    rule: SplitRule = field(default_factory=SplitRule)
    include_bias: bool = False
    steps: int = 400
    head_steps: int = 100
    short_steps: int = 40
    batch: int = 64
    lr: float = 1e-3
    l1: float = 1e-5
    drift: float = 0.5
    group_lasso: float = 1e-3
    select_threshold: float = 0.05
    loss_threshold: float = 0.01
    expand: int = 10
    prune: float = 1e-2
    max_units: int = 4096

    def __post_init__(self) -> None:
        steps, strengths = (
            ("steps", "head_steps", "short_steps", "expand"),
            ("lr", "l1", "drift", "group_lasso", "prune"),
        )
        for name in (*steps, "batch", "max_units"):
            value, least = getattr(self, name), 0 if name in steps else 1
            if type(value) is not int or value < least:  # True is an int to Python
                raise ValueError(f"{name} is {value}; it must be a whole number, {least} or more")
        for name in (*strengths, "loss_threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more, and finite")
        if not math.isfinite(self.select_threshold):
            raise ValueError(f"select_threshold is {self.select_threshold}; it must be finite, below 0 for everything")


class AngularDEN:
    """Learns a stream of tasks, one after the other.

    Args:
        sizes: inputs, then hidden units.
        options: see ``DenOptions``.
        seed: of the weights, the batches and the random control.

    Attributes:
        model: the network.
        growth: per task, units selected, expanded, duplicated and restored, and parameters after it.
    """

    def __init__(self, sizes: Sequence[int], options: DenOptions, seed: int) -> None:
        self.options = options
        self.generator = torch.Generator().manual_seed(seed)
        self.model = GrowingMLP(sizes, self.generator)
        self.growth: list[dict[str, int]] = []

    def learn(self, x: Tensor, y: Tensor, n_classes: int) -> None:
        """Train on the rows of the next task; whatever stops it, the network is then as it was before.

        Args:
            x: (N, n) inputs, float32 and finite.
            y: (N,) classes, whole numbers from 0 to n_classes - 1.
            n_classes: outputs of the new head.

        Raises:
            ValueError: there are no rows, inputs or classes are not as above, a layer would outgrow ``max_units``, or
                the training diverged.
        """
        task = len(self.growth)
        check_rows(x, y, n_classes, self.model.sizes[0], task)
        before = copy.deepcopy(self.model), self.generator.get_state()
        try:
            self._learn(x, y.long(), n_classes)
            if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
                raise ValueError(
                    f"task {task} left weights that are not finite; lower lr ({self.options.lr}) or scale x"
                )
        except BaseException:  # a KeyboardInterrupt too: half a task is no state to go on from
            self.model, state = before
            self.generator.set_state(state)
            del self.growth[task:]
            raise

    def _learn(self, x: Tensor, y: Tensor, n_classes: int) -> None:
        model, options = self.model, self.options
        old = [(W.detach().clone(), b.detach().clone()) for W, b in zip(model.W, model.b, strict=True)]
        task = model.add_head(n_classes, self.generator)
        if task == 0:
            self._train(x, y, task, options.head_steps + options.steps, self._all_masks())
            selected = self._everything(task)
            expanded = duplicated = restored = 0
        else:
            self._train(x, y, task, options.head_steps, self._masks([torch.zeros(len(W)).bool() for W in model.W]))
            selected = self._select(task)
            self._train(x, y, task, options.steps, self._masks(selected), old)
            expanded = self._expand(x, y, task, selected) if options.expand else 0
            duplicated, restored = self._split(x, y, task, old, selected)
        counts = {"selected": sum(int(s.sum()) for s in selected), "expanded": expanded, "duplicated": duplicated}
        self.growth.append(counts | {"restored": restored, "parameters": model.n_parameters})

    def save(self, folder: Path) -> None:
        """Network, growth, options and generator, so that ``load`` goes on with the next task; all of it or nothing."""
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        self.model.save(part / _NETWORK)
        told = {"growth": self.growth, "options": asdict(self.options)}
        save_file({"generator": self.generator.get_state()}, part / _STREAM, metadata={"stream": json.dumps(told)})
        # A folder cannot be replaced at once: what was there keeps another name, which load knows, until it is.
        before = folder.with_name(f"{folder.name}.before")
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            folder.replace(before)
        part.replace(folder)
        shutil.rmtree(before, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, options: DenOptions) -> AngularDEN:
        """What ``save`` wrote: the tasks that it holds are learned, and the next one is learned as if nothing had been.

        Raises:
            UserError: a file is missing or damaged, or the stream was learned with other options.
        """
        before = folder.with_name(f"{folder.name}.before")
        if not folder.exists() and before.exists():  # killed inside save
            folder = before
        model = GrowingMLP.load(folder / _NETWORK)
        try:
            with safe_open(folder / _STREAM, framework="pt") as file:
                told = json.loads((file.metadata() or {})["stream"])
                state = file.get_tensor("generator")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{folder} holds no stream of tasks: {error}. Give a folder that save wrote.") from error
        given = json.loads(json.dumps(asdict(options)))
        if other := [name for name in given if given[name] != told["options"].get(name)]:
            name = other[0]
            raise UserError(
                f"The stream in {folder} was learned with {name} {told['options'].get(name)}, not {given[name]}. Go on "
                "with its options, or learn the tasks anew."
            )
        den = cls(model.sizes, options, seed=0)
        den.model, den.growth = model, told["growth"]
        den.generator.set_state(state)
        return den

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor, task: int) -> float:
        """Share of right answers of a task's head."""
        return float((self.model(x, task).argmax(1) == y).double().mean())

    # ---- one phase of training ----

    def _train(
        self,
        x: Tensor,
        y: Tensor,
        task: int,
        steps: int,
        masks: list[Tensor],
        old: list[tuple[Tensor, Tensor]] | None = None,
        lasso: list[Tensor] | None = None,
    ) -> None:
        """Adam on the masked rows of the hidden layers and on the head of the task.

        Args:
            x: (N, n) inputs.
            y: (N,) classes.
            task: whose head.
            steps: of the optimizer.
            masks: per hidden layer (n_l, n_{l-1}) bool, the entries that move; a bias moves where its whole row does.
            old: weights before the task, for the drift penalty.
            lasso: per hidden layer the units under the group lasso.
        """
        model, options = self.model, self.options
        trained = [*model.W, *model.b, model.heads[task], model.head_biases[task]]
        optimizer = torch.optim.Adam(trained, lr=options.lr)
        for _ in range(steps):
            rows = torch.randint(len(x), (min(options.batch, len(x)),), generator=self.generator)
            loss = F.cross_entropy(model(x[rows], task), y[rows])
            if options.l1:
                loss = loss + options.l1 * sum(W.abs().sum() for W in (*model.W, model.heads[task]))
            if old is not None and options.drift:
                for W, (W_old, _) in zip(model.W, old, strict=True):
                    m, n = W_old.shape
                    loss = loss + options.drift / 2 * (W[:m, :n] - W_old).square().sum()
            if lasso is not None and options.group_lasso:
                loss = loss + options.group_lasso * sum(
                    torch.linalg.vector_norm(W[units], dim=1).sum() for W, units in zip(model.W, lasso, strict=True)
                )
            optimizer.zero_grad()
            loss.backward()
            # Adam without weight decay leaves an entry whose gradients were all 0 as it is, bit for bit.
            for W, b, mask in zip(model.W, model.b, masks, strict=True):
                if W.grad is not None and b.grad is not None:
                    W.grad *= mask
                    b.grad *= mask.all(1)
            optimizer.step()

    def _all_masks(self) -> list[Tensor]:
        return [torch.ones_like(W, dtype=torch.bool) for W in self.model.W]

    def _masks(self, rows: list[Tensor]) -> list[Tensor]:
        return [mask[:, None].expand_as(W) for mask, W in zip(rows, self.model.W, strict=True)]

    # ---- 2: selection ----

    def _everything(self, task: int) -> list[Tensor]:
        found = []
        for layer, W in enumerate(self.model.W):
            mask = torch.zeros(len(W), dtype=torch.bool)
            mask[self.model.view(layer, task)] = True
            found.append(mask)
        return found

    @torch.no_grad()
    def _select(self, task: int) -> list[Tensor]:
        """Units that a path of weights above the threshold joins to the head, from the top down."""
        selected = self._everything(task)
        reached = (self.model.heads[task].abs() > self.options.select_threshold).any(0)
        for layer in range(len(selected) - 1, -1, -1):
            selected[layer] &= reached
            reached = (self.model.W[layer][selected[layer]].abs() > self.options.select_threshold).any(0)
        return selected

    # ---- 3: expansion ----

    def _expand(self, x: Tensor, y: Tensor, task: int, selected: list[Tensor]) -> int:
        """Add units, train what goes in and out of them, drop what the group lasso emptied; returns how many stayed."""
        model, options = self.model, self.options
        with torch.no_grad():
            if float(F.cross_entropy(model(x, task), y)) <= options.loss_threshold:
                return 0
        k, sizes = options.expand, [len(W) for W in model.W]
        self._require_room([k] * len(sizes))
        for layer in range(len(sizes)):
            n = model.W[layer].shape[1]
            rows = self._small((k, n), n)
            # From 0, so that the units of the layer above compute what they did until training finds a use.
            inner = layer + 1 < len(sizes)
            columns = torch.zeros(len(model.W[layer + 1]), k) if inner else self._small((len(model.heads[task]), k), n)
            model.append(layer, rows, torch.zeros(k), columns, task)
        added = [torch.arange(len(W)) >= size for W, size in zip(model.W, sizes, strict=True)]
        masks = [mask.clone() for mask in self._masks(added)]
        for layer, mask in enumerate(masks[1:], start=1):
            mask[: sizes[layer], sizes[layer - 1] :] = selected[layer][:, None]
        self._train(x, y, task, options.short_steps, masks, None, added)
        stayed = 0
        for layer, size in enumerate(sizes):
            norms = torch.linalg.vector_norm(model.W[layer].detach()[size:], dim=1)
            model.drop(layer, size + (norms <= options.prune).nonzero().squeeze(1), task)
            stayed += int((norms > options.prune).sum())
        return stayed

    def _small(self, shape: tuple[int, int], fan_in: int) -> Tensor:
        drawn: Tensor = torch.randn(shape, generator=self.generator) / fan_in**0.5
        return drawn

    def _require_room(self, added: Sequence[int]) -> None:
        for layer, (W, k) in enumerate(zip(self.model.W, added, strict=True)):
            if len(W) + k > self.options.max_units:
                raise ValueError(
                    f"hidden layer {layer} has {len(W)} units and would get {k} more, above max_units "
                    f"({self.options.max_units}); raise max_units, or lower k_max and expand"
                )

    # ---- 4: split ----

    def _split(
        self, x: Tensor, y: Tensor, task: int, old: list[tuple[Tensor, Tensor]], selected: list[Tensor]
    ) -> tuple[int, int]:
        """Duplicate or restore what drifted, and train the copies; returns how many of each."""
        model, decisions = self.model, []
        for layer, (W_old, b_old) in enumerate(old):
            m = len(W_old)
            columns = model.view(layer - 1, task) if layer else torch.arange(W_old.shape[1])
            columns = columns[columns < W_old.shape[1]]
            then, now = W_old[:, columns], model.W[layer].detach()[:m, columns]
            if self.options.include_bias:
                bias = model.b[layer].detach()[:m]
                then, now = (torch.cat([W, b[:, None]], 1) for W, b in ((then, b_old), (now, bias)))
            decisions.append(self.options.rule(then, now, selected[layer][:m], self.generator))
        self._require_room([len(decision.duplicate) for decision in decisions])
        sizes = [len(W) for W in model.W]
        for layer, decision in enumerate(decisions):
            self._duplicate(layer, decision.duplicate, task)
        # The columns of a replaced unit go back for the heads that read it; tasks from here on read its copy.
        for layer, decision in enumerate(decisions):
            self._give_back(layer, decision, old[layer], decisions[layer - 1].duplicate if layer else None)
            if layer + 1 < len(old):
                W_old = old[layer + 1][0]
                columns = decision.duplicate
                model.W[layer + 1].data[: len(W_old), columns] = W_old[:, columns]
        duplicated = sum(len(decision.duplicate) for decision in decisions)
        if duplicated:
            copies = [torch.arange(len(W)) >= size for W, size in zip(model.W, sizes, strict=True)]
            self._train(x, y, task, self.options.short_steps, self._masks(copies))
        return duplicated, sum(len(decision.restore) for decision in decisions)

    def _duplicate(self, layer: int, units: Tensor, task: int) -> None:
        """Copies of units with their incoming and outgoing weights as they stand; they take the units' place."""
        model = self.model
        above = model.W[layer + 1] if layer + 1 < len(model.W) else model.heads[task]
        W, b = model.W[layer].data, model.b[layer].data
        model.append(layer, W[units], b[units], above.data[:, units], task)
        model.until[layer][units] = task

    def _give_back(self, layer: int, decision: Decision, old: tuple[Tensor, Tensor], replaced: Tensor | None) -> None:
        """The old incoming weights of units, once all copies stand.

        Args:
            layer: hidden layer.
            decision: its units; duplicated ones then take nothing from younger units.
            old: weights and biases before the task.
            replaced: units of the layer below that copies replaced; None for the inputs.
        """
        W, b = self.model.W[layer].data, self.model.b[layer].data
        W_old, b_old = old
        units = torch.cat([decision.duplicate, decision.restore])
        W[units, : W_old.shape[1]] = W_old[units]
        b[units] = b_old[units]
        W[decision.duplicate, W_old.shape[1] :] = 0
        if replaced is not None:
            # The task goes on reading a restored unit, and that unit now reads the copies in the replaced ones' place.
            copies = torch.arange(W.shape[1] - len(replaced), W.shape[1])
            W[decision.restore[:, None], copies] = W_old[decision.restore][:, replaced]
