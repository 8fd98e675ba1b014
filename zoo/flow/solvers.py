"""Solvers of the probability-flow ODE, from noise to data along a given grid of times, on any path.

* `Euler`, `Heun`: the latter is EDM's second-order sampler (Karras et al. 2022, arXiv 2206.00364, algorithm 1
  without churn): no correction on the last step where the noise ends, for there is no velocity to correct
  with.
* `DPMSolver`: DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), multistep, in data prediction; with
  lambda = ln(alpha / sigma), h the step in lambda and e^-h taken from the ratio of noise levels, so that pure
  noise and clean data (lambda = -inf, +inf) are ordinary ends: e^-h is 0 there, and a difference over an
  infinite step is 0.
* `MeanFlowSteps`: steps of a network that knows mean velocities.

A solver is called with a model (`path`, ``velocity(z, t, label)``, ``denoise(z, t, label)``), states, times
and labels, and yields the state after each step. All steps share their times, which are numbers on the CPU in
float64: no coefficient waits for a device. `solve` collects the states *together with those times*.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from zoo.flow.paths import Path, bridge, expand


class Field(Protocol):
    """What a solver asks of a model; times are (B,) or single numbers () on the CPU."""

    path: Path

    def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """v(z, t)."""

    def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """D(z, t)."""


class Solver(Protocol):
    """A generator of states."""

    def __call__(self, model: Any, z: Tensor, times: Tensor, label: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the state (B, ...) after each of the steps from ``times[0]`` on."""


class Trajectory(NamedTuple):
    """States and the times they belong to: what a solver returns, and what a student learns from.

    Attributes:
        states: (M + 1, B, ...), from noise to data.
        times: (M + 1,) decreasing, float64, on the CPU, in the time of ``path``: those of the solver.
        path: The path of states and times.
    """

    states: Tensor
    times: Tensor
    path: Path

    def on(self, path: Path) -> "Trajectory":
        """The same trajectory on another path, exactly (`bridge`)."""
        times, factor = bridge(self.times, self.path, path)
        if not bool((factor.isfinite() & times.isfinite()).all()):
            raise ValueError(f"a trajectory that begins at pure noise has no place on {path}")
        if repr(path) == repr(self.path):
            return self
        factor = factor.to(self.states.device, self.states.dtype, non_blocking=True)
        return Trajectory(self.states * expand(factor, self.states), times, path)


@torch.no_grad()
def solve(model: Field, solver: Solver, z: Tensor, times: Tensor, label: Tensor | None = None) -> Trajectory:
    """The trajectory of the states ``z`` (B, ...) at ``times[0]`` along ``times``.

    Args:
        model: The field.
        solver: The rule.
        z: States at the first time, for example ``path.sigma(times[0]) * noise``.
        times: (M + 1,) decreasing, in the time of ``model.path``.
        label: Classes (B,), or None.

    Raises:
        ValueError: the times do not decrease.
    """
    times = times.to("cpu", torch.float64)
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must be at least two, and decrease from noise to data; got {times.tolist()}")
    return Trajectory(torch.stack([z, *solver(model, z, times, label)]), times, model.path)


@torch.no_grad()
def integrate(model: Field, solver: Solver, z: Tensor, times: Tensor, label: Tensor | None = None) -> Tensor:
    """The last state of `solve`, without keeping those before it."""
    end = z
    for end in solver(model, z, times.to("cpu", torch.float64), label):  # noqa: B007 (only the last is kept)
        pass
    return end


class Euler:
    """z_r = z_t + (r - t) v(z_t, t): one evaluation a step.

    On the variance-exploding path it is DPM-Solver of order 1 and DDIM.
    """

    def __call__(
        self, model: Field, z: Tensor, times: Tensor, label: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yields the state after each step."""
        for t, r in pairwise(times):
            z = z + float(r - t) * model.velocity(z, t, label)
            yield z


class Heun:
    """The trapezoidal rule after an Euler step: two evaluations a step, one where the noise ends."""

    def __call__(
        self, model: Field, z: Tensor, times: Tensor, label: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yields the state after each step."""
        for t, r in pairwise(times):
            slope = model.velocity(z, t, label)
            ahead = z + float(r - t) * slope
            if model.path.sigma(r) > 0:
                slope = (slope + model.velocity(ahead, r, label)) / 2
                ahead = z + float(r - t) * slope
            z = ahead
            yield z


class DPMSolver:
    """DPM-Solver++ multistep: one evaluation a step, of order up to three.

    Args:
        order: 1, 2 or 3. Order 2 is more accurate than order 3 in up to about 12 steps, less in more.
        lower_order_final: End with steps of orders 2 and 1, whatever the number of steps.
    """

    def __init__(self, order: Literal[1, 2, 3] = 2, lower_order_final: bool = True) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}")
        self.order, self.lower_order_final = order, lower_order_final

    def __call__(
        self, model: Field, z: Tensor, times: Tensor, label: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yields the state after each step."""
        alphas, sigmas = model.path.alpha(times).tolist(), model.path.sigma(times).tolist()
        lambdas = [_log_ratio(alpha, sigma) for alpha, sigma in zip(alphas, sigmas, strict=True)]
        steps = len(times) - 1
        data: list[Tensor] = []  # the newest first
        for i in range(steps):
            data = [model.denoise(z, times[i], label), *data[: self.order - 1]]
            order = min(self.order, i + 1, steps - i) if self.lower_order_final else min(self.order, i + 1)
            h = lambdas[i + 1] - lambdas[i]
            if math.isinf(h):
                order = 1
            decay = math.exp(-h)
            update = (1 - decay) * data[0]  # -phi1 m0
            if order > 1:
                update = update + _correction(order, h, decay, data, lambdas[i::-1])
            ratio = sigmas[i + 1] / sigmas[i]
            z = ratio * z + alphas[i + 1] * update
            yield z


def _log_ratio(alpha: float, sigma: float) -> float:
    if alpha == 0:
        return -math.inf
    return math.inf if sigma == 0 else math.log(alpha / sigma)


def _correction(order: int, h: float, decay: float, data: list[Tensor], lambdas: list[float]) -> Tensor:
    """The terms of orders 2 and 3 of one step, from the data predictions and lambdas, both newest first."""
    phi1 = decay - 1
    # Differences over the steps behind, in units of this step; 0 over an infinite one.
    first = (data[0] - data[1]) * (h / (lambdas[0] - lambdas[1]))
    if order == 2:
        return -phi1 / 2 * first
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 0.5
    r0, r1 = (lambdas[0] - lambdas[1]) / h, (lambdas[1] - lambdas[2]) / h
    if math.isinf(r1):
        return phi2 * first
    second = (data[1] - data[2]) / r1
    slope = first + r0 / (r0 + r1) * (first - second)
    return phi2 * slope - phi3 * (first - second) / (r0 + r1)


class MeanFlowSteps:
    """z_r = z_t - (t - r) u(z_t, t, t - r): a model of mean velocities as the teacher of another one."""

    def __call__(self, model: Any, z: Tensor, times: Tensor, label: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the state after each step."""
        for t, r in pairwise(times):
            z = z - float(t - r) * model.mean_velocity(z, t, t - r, label)
            yield z


def default_solver(steps: int) -> DPMSolver:
    """DPM-Solver++ of order 2 in up to 12 steps, of order 3 in more (each the more accurate there)."""
    return DPMSolver(order=2 if steps <= 12 else 3)
