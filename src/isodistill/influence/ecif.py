"""Influence of training pairs on a contrastive model (ECIF, arXiv 2411.11667; exact removal and the one pass are ours).

    L(theta) = sum over batches of L_batch + (delta / 2) norm(theta)^2
    dtheta(R) = + H^-1 grad[Pos(R) + Neg(R)];   IS(R; D') = grad L(D')' dtheta(R)

IS predicts the change of the loss on D' when R is removed: harmful pairs have IS < 0. Both signs are corrections of
ours to the public notes; whether the paper itself has them is not known to us.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp

from isodistill.influence.fisher import FACTORS, Factors
from isodistill.influence.solvers import Solution, Solutions, solve, solve_by_factors, solve_many
from isodistill.numerics import require_finite
from isodistill.numerics.contrastive import (
    Mode,
    Sides,
    all_removal_derivatives,
    contrastive_loss,
    loss_curvature,
    removal_gain,
    sampled_logit_gradient,
)

__all__ = ["DualEncoder", "Influence", "Items", "segment"]

Items = Tensor | Sequence[Any]
Similarity = Literal["cosine", "dot"]


class DualEncoder(Protocol):
    """A module with two encoders into one space; rows need not have norm 1."""

    def encode_a(self, items: Any) -> Tensor:
        """Embeddings (n, d) of the first items of pairs."""
        ...

    def encode_b(self, items: Any) -> Tensor:
        """Embeddings (n, d) of the second items of pairs."""
        ...


class _Logits(nn.Module):
    """S = <u_i, v_j> / temperature; a forward of its own, for ``functional_call`` calls nothing else."""

    def __init__(self, encoder: nn.Module, temperature: float | str, similarity: Similarity) -> None:
        super().__init__()
        self.encoder, self.temperature, self.similarity = encoder, temperature, similarity

    def forward(self, a: Any, b: Any, negatives: Any = None) -> Tensor:
        u: Tensor = self.encoder.encode_a(a)  # type: ignore[operator]
        v: Tensor = self.encoder.encode_b(b)  # type: ignore[operator]
        if negatives is not None:
            v = torch.cat([v, self.encoder.encode_b(negatives)])  # type: ignore[operator]
        if self.similarity == "cosine":
            u, v = _unit(u), _unit(v)
        S: Tensor = u @ v.T * self.scale()
        return S

    def scale(self) -> Tensor | float:
        """1 / temperature."""
        if isinstance(self.temperature, str):
            scale: Tensor = attrgetter(self.temperature)(self.encoder).exp()
            return scale
        return 1 / self.temperature


def _unit(u: Tensor) -> Tensor:
    """Rows of norm 1, and 0 for 0; its forward derivative takes half the time of that of ``normalize``."""
    return u * u.square().sum(-1, keepdim=True).clamp_min(1e-24).rsqrt()


def segment(n_pairs: int, batch_size: int, seed: int) -> list[Tensor]:
    """Seg: a seeded division of the pairs into batches of indices; the last one may be smaller."""
    order = torch.randperm(n_pairs, generator=torch.Generator().manual_seed(seed))
    return list(order.split(batch_size))


def _require_temperature(encoder: nn.Module, temperature: float | str) -> None:
    if isinstance(temperature, str):
        if temperature not in dict(encoder.named_parameters()):
            raise ValueError(f"temperature names no parameter of the encoder: {temperature!r}.")
    elif temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")


def _take(items: Items, index: Tensor) -> Any:
    return items[index] if isinstance(items, Tensor) else [items[i] for i in index.tolist()]


class Influence:
    """Scores, parameter changes and edits for one fitted dual encoder and the batches that it was fitted on.

    Args:
        encoder: a ``DualEncoder`` module; set to eval mode.
        parameters: patterns of the parameter names that are theta, such as ``["head.*"]`` or ``["*lora_*"]``.
        a: first items, a tensor with a row per pair or a sequence.
        b: second items.
        segments: Seg, the recorded batches as index tensors; a pair may stand in several (one per epoch).
        temperature: as trained, frozen; or the name of the encoder's parameter that is log(1 / temperature), such as
            CLIP's ``"model.logit_scale"``, which is part of theta where a pattern matches it.
        delta: the L2 weight of the summed loss. A fit on the mean of N terms with weight d has delta = N d.
        sides: the sides of the loss.
        similarity: "cosine", or "dot" for encoders trained on inner products.
        negatives: a hard negative for every pair, encoded as ``b`` is: one more column for all rows of the batch, which
            leaves with its pair.
        curvature: those of the segments, say one epoch of several, whose second derivatives stand for those of all,
            counted up by the number of pairs. All of them without it.

    Attributes:
        approximation: factors that invert H where no other solver is named; None until it is set, for conjugate
            gradients on the Gauss-Newton.

    Raises:
        ValueError: if no parameter matches, half precision is used, the items differ in number, a batch holds a pair
            twice, or delta or temperature is not positive or no parameter.
    """

    def __init__(
        self,
        encoder: nn.Module,
        parameters: Sequence[str],
        a: Items,
        b: Items,
        segments: Sequence[Tensor],
        *,
        temperature: float | str,
        delta: float = 1e-4,
        sides: Sides = "both",
        similarity: Similarity = "cosine",
        negatives: Items | None = None,
        curvature: Sequence[Tensor] | None = None,
    ) -> None:
        if len(a) != len(b) or len(b) != len(b if negatives is None else negatives):
            hard = "" if negatives is None else f" and {len(negatives)} hard negatives"
            raise ValueError(f"{len(a)} first items and {len(b)} second items{hard}: a pair has one of each.")
        _require_temperature(encoder, temperature)
        if delta <= 0:
            raise ValueError(f"delta must be positive, got {delta}.")
        self._logits = _Logits(encoder.eval(), temperature, similarity)
        named = {n: p.detach() for n, p in encoder.named_parameters() if any(fnmatchcase(n, t) for t in parameters)}
        if not named:
            raise ValueError(
                f"No parameter matches {list(parameters)}; there are {list(dict(encoder.named_parameters()))}."
            )
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in named.values()):
            raise ValueError("Influence needs fp32 or fp64 parameters: load the encoder with dtype=torch.float32.")
        if any(len(batch.unique()) != len(batch) for batch in segments):
            raise ValueError("A batch of segments holds a pair twice: the loss knows one positive per row.")
        self._shapes = {name: p.shape for name, p in named.items()}
        self.theta = torch.cat([p.reshape(-1) for p in named.values()])
        self.a, self.b, self.negatives, self.segments = a, b, negatives, list(segments)
        self.delta, self.sides = delta, sides
        self.approximation: Factors | None = None
        self._curved = self.segments if curvature is None else list(curvature)
        self._share = sum(map(len, self.segments)) / max(sum(map(len, self._curved)), 1)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Name -> parameter of the encoder, views of the flat theta (P,)."""
        parts = theta.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def logits(self, theta: Tensor, a: Items, b: Items, negatives: Items | None = None) -> Tensor:
        """S (N, M) of the items at theta."""
        named = {f"encoder.{name}": value for name, value in self.named(theta).items()}
        S: Tensor = functional_call(self._logits, named, (a, b, negatives))
        return S

    def batch_logits(self, theta: Tensor, batch: Tensor) -> Tensor:
        """S of one recorded batch."""
        negatives = None if self.negatives is None else _take(self.negatives, batch)
        return self.logits(theta, _take(self.a, batch), _take(self.b, batch), negatives)

    def temperature_at(self, theta: Tensor) -> float:
        """The temperature of the logits at theta."""
        temperature = self._logits.temperature
        if not isinstance(temperature, str):
            return temperature
        here = self.named(theta).get(temperature, attrgetter(temperature)(self._logits.encoder))
        return float((-here.detach()).exp())

    def query_loss(self, theta: Tensor, a: Items, b: Items) -> Tensor:
        """L(D'; theta) of held-out pairs as one batch, without the L2 term; b may be longer by further choices."""
        return contrastive_loss(self.logits(theta, a, b), self.sides)

    def query_gradient(self, a: Items, b: Items) -> Tensor:
        """grad L(D'), (P,); one a with all choices in b, the right one first, is the query of a single prediction.

        Raises:
            ValueError: if there is no a, or fewer than two b: the loss is 0 whatever theta is.
        """
        if len(a) < 1 or len(b) < 2:
            raise ValueError(f"Queries need at least two pairs, got {len(a)}: a pair alone has no contrast.")
        g: Tensor = grad(lambda theta: self.query_loss(theta, a, b))(self.theta)
        return g

    def removal_gradient(self, removed: Tensor, mode: Mode = "exact") -> Tensor:
        """grad[Pos(R) + Neg(R)] summed over the batches, (P,).

        Args:
            removed: (N,) bool over all training pairs; R may lie in several batches.
            mode: "exact" or "first_order".
        """
        g = torch.zeros_like(self.theta)
        for batch in self.segments:
            inside = removed[batch]
            if inside.any():
                g += self._batch_removal_gradient(batch, inside, mode)
        return g

    def _batch_removal_gradient(self, batch: Tensor, inside: Tensor, mode: Mode) -> Tensor:
        theta = self.theta.clone().requires_grad_()
        gain = removal_gain(self.batch_logits(theta, batch), inside, mode, self.sides, self.negatives is not None)
        return torch.autograd.grad(gain, theta)[0]

    def hessian_product(self, x: Tensor, removed: Tensor | None = None) -> Tensor:
        """(Hessian of the summed loss + delta I) x by forward over reverse; without the pairs ``removed`` if given."""
        result = self.delta * x
        for batch in self._remaining(removed):
            gradient = grad(lambda theta, batch=batch: contrastive_loss(self.batch_logits(theta, batch), self.sides))
            result = result + self._share * jvp(gradient, (self.theta,), (x,))[1]
        return result

    def gauss_newton_product(self, x: Tensor, removed: Tensor | None = None) -> Tensor:
        """(sum of J' H_S J + delta I) x, J = dS/dtheta, H_S the Hessian of the loss in S: positive definite."""
        result = self.delta * x
        for batch in self._remaining(removed):
            S, dS = self._directional(batch, x)
            back = vjp(lambda theta, batch=batch: self.batch_logits(theta, batch), self.theta)[1]
            result = result + self._share * back(loss_curvature(S, dS, self.sides))[0]
        return result

    def _remaining(self, removed: Tensor | None) -> list[Tensor]:
        return self._curved if removed is None else [batch[~removed[batch]] for batch in self._curved]

    def _directional(self, batch: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """S of a batch and its change along x (P,), by one JVP."""
        result = jvp(lambda theta: self.batch_logits(theta, batch), (self.theta,), (x,))
        return result[0], result[1]

    def sampled_gradients(self, n_draws: int, seed: int, removed: Tensor | None = None) -> Iterator[Tensor]:
        """Draws s (P,) of mean 0 whose outer products sum to the Gauss-Newton, without delta, in expectation.

        For each batch ``n_draws`` times, the gradient of its loss with answers drawn from the model, / sqrt(n_draws).
        """
        generator = torch.Generator(self.theta.device).manual_seed(seed)
        for batch in self._remaining(removed):
            S, back = vjp(lambda theta, batch=batch: self.batch_logits(theta, batch), self.theta)[:2]
            for _ in range(n_draws):
                yield back(sampled_logit_gradient(S, generator, self.sides) * (self._share / n_draws) ** 0.5)[0]

    def factors(self, solver: str, n_draws: int = 32, seed: int = 0, removed: Tensor | None = None) -> Factors:
        """The Gauss-Newton as "ekfac" or "projected" factors: fitted once, they invert many right-hand sides.

        Raises:
            ValueError: for another solver, or parameters longer than 8,192 on a side.
        """
        if solver not in FACTORS:
            raise ValueError(f"factors are one of {', '.join(FACTORS)}; got {solver!r}.")
        parameters = list(self.named(self.theta).values())
        return FACTORS[solver](lambda seed: self.sampled_gradients(n_draws, seed, removed), parameters, seed)

    def mean_diagonal(self, seed: int = 0) -> float:
        """The mean of the diagonal of the Gauss-Newton without delta, from one draw per batch."""
        return sum(float(s @ s) for s in self.sampled_gradients(1, seed)) / len(self.theta)

    def inverse_product(
        self,
        g: Tensor,
        solver: str | Factors | None = None,
        removed: Tensor | None = None,
        damping: float = 0.0,
        precondition: Factors | None = None,
        **how: Any,
    ) -> Solution:
        """(H + damping * mean diagonal I)^-1 g; H is the Gauss-Newton but for "exact", "cg" and "lissa".

        Args:
            g: (P,).
            solver: a key of ``SOLVERS``, "ekfac", "projected", or factors that are fitted already; None takes
                ``approximation`` where it is set, else "ggn_cg".
            removed: (N,) bool: H is that of the remaining pairs.
            damping: a share; .1 serves where the fit had hardly any weight decay. 0, for delta is in H.
            precondition: factors for "cg" and "ggn_cg".
            how: ``tol`` and ``max_steps`` of ``solve``, or ``n_draws`` and ``seed`` of ``factors``.

        Raises:
            ValueError: for a negative damping, and those of ``solve`` and ``factors``.
        """
        if damping < 0:
            raise ValueError(f"damping must be 0 or more, got {damping:g}.")
        solver = solver or self.approximation or "ggn_cg"
        lam = damping * self.mean_diagonal() if damping else 0.0
        hessian = isinstance(solver, str) and solver in ("exact", "cg", "lissa")
        product = self.hessian_product if hessian else self.gauss_newton_product

        def damped(x: Tensor) -> Tensor:
            return product(x, removed) + lam * x

        if isinstance(solver, str) and solver not in FACTORS:
            if precondition:
                how["precondition"] = lambda x: precondition.inverse(x, self.delta + lam)
            return solve(damped, g, solver, **how)
        factors = self.factors(solver, removed=removed, **how) if isinstance(solver, str) else solver
        return solve_by_factors(damped, g, factors, self.delta + lam)

    def inverse_products(self, G: Tensor, tol: float) -> Solutions:
        """H^-1 g for the rows g of G (k, P) at once, by ``approximation`` or conjugate gradients down to ``tol``."""
        if self.approximation is None:
            return solve_many(self.gauss_newton_product, G, tol)
        Q = torch.stack([self.approximation.inverse(g, self.delta) for g in G])
        residuals = [(self.gauss_newton_product(q) - g).norm() / g.norm() for q, g in zip(Q, G, strict=True)]
        return Solutions(Q, float(max(residuals)), 1, 0)

    def change(
        self,
        removed: Tensor,
        mode: Mode = "exact",
        solver: str | Factors | None = None,
        removed_hessian: bool = False,
        **how: Any,
    ) -> Solution:
        """dtheta(R), the change of theta that removing R would make; ``edited`` makes it.

        ``removed_hessian`` takes the Hessian of the remaining pairs: nearer to retraining, one solve per R.
        """
        g = self.removal_gradient(removed, mode)
        return self.inverse_product(g, solver, removed if removed_hessian else None, **how)

    def edited(self, change: Tensor) -> nn.Module:
        """A copy of the encoder at theta + dtheta, the model edited instead of retrained; ``change`` is (P,)."""
        encoder = deepcopy(self._logits.encoder)
        parameters = dict(encoder.named_parameters())
        with torch.no_grad():
            for name, value in self.named(self.theta + change).items():
                parameters[name].copy_(value)
        return encoder

    def loss_change(self, change: Tensor, a: Items, b: Items) -> float:
        """IS2 = L(D'; theta + dtheta) - L(D'; theta), not to first order in dtheta as IS is; one removed set a time."""
        with torch.no_grad():
            return float(self.query_loss(self.theta + change, a, b) - self.query_loss(self.theta, a, b))

    def score_all(self, q: Tensor, mode: Mode = "exact") -> Tensor:
        """IS(n) = <grad[Pos + Neg](n), q> of every training pair, (N,) fp64: one JVP per batch, no gradient per pair.

        Args:
            q: (P,), H^-1 grad L(D').
            mode: "exact" or "first_order".

        Raises:
            FloatingPointError: if the logits of a batch hold NaN or an infinity.
        """
        scores = torch.zeros(len(self.a), dtype=torch.float64, device=self.theta.device)
        for number, batch in enumerate(self.segments):
            S, dS = self._directional(batch, q)
            require_finite({"S": S, "dS": dS}, where=f"influence, batch {number}")
            scores[batch] += all_removal_derivatives(S, dS, mode, self.sides, self.negatives is not None)
        return scores

    def relative(self, score: float, change: Tensor) -> float:
        """relIS = IS / (norm(dtheta) + 1e-12 norm(theta)), for tracing an error back to few pairs (ours in form)."""
        return score / float(change.norm() + 1e-12 * self.theta.norm())
