"""Improved mean flow: mean flow as a regression of velocities, by a network that knows its guidance.

Geng et al. 2025, "Improved Mean Flows: On the Challenges of Fastforward Generative Models", arXiv 2512.02012:

* V = u + (t - r) sg(du/dt), where u is differentiated along the network's *own* velocity, is regressed on the
  velocity of the data: the target no longer depends on the network, but through its guidance;
* a second head learns that velocity too, and gives the network's own; without one it is u at h = 0;
* the strength w of guidance and the times in which it acts are drawn for each item and given to the network,
  whose target is v + (1 - 1 / w) (v_c - v_u): at its fixed point v_c is guided with the scale w.

Where we differ from the official code: a dropped label's tangent is the unconditional velocity, as its
target is (there it is that of the class that was dropped); the network's velocities come from one pass
without dropout, in which only guided items ask for the unconditional one (there three passes ask for
everything); the items with r = t have no derivative to take.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from zoo import rng
from zoo._modes import evaluating
from zoo.flow.batch import FlowBatch
from zoo.flow.paths import LinearPath, expand
from zoo.flow.samplers import Noise, sample_mean_flow
from zoo.flow.tangent import Derivative, total_derivative
from zoo.flow.time_grids import check_steps
from zoo.flow.weighting import squared_error


class GuidanceDraws:
    """Draws the strength of guidance and its first and last time for each item.

    Args:
        largest: Largest strength; the official code's 8.
        power: The density of a strength w in [1, largest] is proportional to 1 / w^power; 1 is even in ln(w).

    >>> guidance = GuidanceDraws()(seed=0, step=0, index=torch.arange(1000))
    >>> guidance.amin(0).round(decimals=1).tolist(), guidance.amax(0).round(decimals=1).tolist()
    ([1.0, 0.0, 0.5], [8.0, 0.5, 1.0])
    """

    def __init__(self, largest: float = 8.0, power: float = 1.0) -> None:
        if not 1 < largest < math.inf:
            raise ValueError(f"largest must be a strength above 1, got {largest}")
        self.largest, self.power = largest, power

    def __call__(self, seed: int, step: int, index: Tensor, name: str = "") -> Tensor:
        """(strength, first time, last time) of each item (B, 3), float64, a pure function of all arguments.

        The first time is uniform in [0, 1/2], the last in [1/2, 1].
        """
        draws = rng.uniform(seed, step, index, (3,), name + "guidance", torch.float64)  # (B, 3)
        share, start, end = draws.unbind(1)
        if self.power == 1:
            omega = self.largest**share
        else:
            rest = 1 - self.power
            omega = (1 + share * (self.largest**rest - 1)) ** (1 / rest)
        return torch.stack([omega, start / 2, (1 + end) / 2], dim=1)


@dataclass(frozen=True)
class GuidedMeanFlowSampler:
    """Samples of the mean velocity, guided as the network is asked to.

    Args:
        steps: Number of steps.
        omega: Strength of guidance; 1 disables it. Above 1 it needs a network that knows guidance.
        start: First time of guidance.
        end: Last time of guidance.
    """

    steps: int = 1
    omega: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not self.omega >= 1:
            raise ValueError(f"omega must be at least 1 (1 disables guidance), got {self.omega}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"start and end must satisfy 0 <= start <= end <= 1, got {self.start} and {self.end}"
            )

    def __call__(self, model: Any, noise: Noise, label: Tensor | None, steps: int | None = None) -> Tensor:
        """Samples (B, ...) of ``model``, a `zoo.flow.PreconditionedNetwork`."""
        z = noise(0)
        if knows_guidance(model.network):
            given = torch.tensor([[self.omega, self.start, self.end]], device=z.device)  # (1, 3)
            model = partial(model, guidance=given.expand(len(z), -1))
        return sample_mean_flow(model, z, label, self.steps if steps is None else steps)


def knows_guidance(network: Any) -> bool:
    """Whether guidance is an input of the network."""
    return getattr(network, "guidance_embedder", None) is not None


def velocity_head(model: Any) -> Literal["mean", "velocity"]:
    """Which output of a model's network is its velocity at h = 0."""
    return "velocity" if getattr(model.network, "velocity_head", False) else "mean"


def own_velocity(
    model: Any, z: Tensor, t: Tensor, label: Tensor | None, omega: Tensor | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """The network's own velocities v_c (B, ...), and the unconditional v_u (R, ...) of some items.

    Args:
        model: `zoo.flow.PreconditionedNetwork` on the linear path.
        z: States (B, ...).
        t: Times (B,).
        label: Classes (B,), or None.
        omega: Strengths of guidance (B,) that v_c is asked for, at all times; None for a network that knows
            none.
        rows: Which items need v_u (R,).

    Returns:
        Both without gradient or dropout.
    """
    count, more = len(z), {"head": velocity_head(model)}
    if more["head"] == "mean":
        more = {}
    if len(rows) and label is not None:
        null = torch.full_like(label[rows], model.num_classes)
        z, t, label = torch.cat([z, z[rows]]), torch.cat([t, t[rows]]), torch.cat([label, null])
    guidance = {}
    if omega is not None:
        omega = torch.cat([omega, omega.new_ones(len(z) - count)])
        always = torch.zeros_like(omega), torch.ones_like(omega)
        guidance = {"guidance": torch.stack([omega, *always], dim=1)}
    with torch.no_grad(), evaluating(model):
        velocity = model.eager(z, t, torch.zeros_like(t), label, **guidance, **more)
    return velocity[:count], velocity[count:]


def improved_mean_flow_error(
    model: Any,
    batch: FlowBatch,
    *,
    guidance: Tensor | None = None,
    derivative: Derivative = total_derivative,
    reduction: Literal["sum", "mean"] = "sum",
) -> tuple[Tensor, Tensor | None]:
    """The squared errors of V and of the head for velocities, of each item.

    Args:
        model: `zoo.flow.PreconditionedNetwork` on the linear path.
        batch: Data, noise, times t in [0, 1] and steps h = t - r.
        guidance: What the network is given (B, 3): strengths, first and last times, drawn where
            ``batch.times`` were; None for a network that knows no guidance. Items are guided where the
            strength is above 1, t is within the times, and the label was not dropped.
        derivative: How u is differentiated.
        reduction: Sum or mean over an item's values.

    Returns:
        Two (B,) with gradient; the second is None for a network without a head for velocities.
    """
    path, (t, h), label, count = LinearPath(), batch.mean_flow_times(), batch.label, batch.count
    z = path.interpolate(batch.x, batch.noise, t).to(batch.x.dtype)  # (B, ...)
    given = omega = None
    rows = t.new_empty(0, dtype=torch.long)
    if guidance is not None:
        inside = batch.inside(guidance[:, 1], guidance[:, 2])
        strength = torch.where(inside, guidance[:, 0], 1.0)  # (B,), at the items' own times
        given, omega = batch.place(guidance), batch.place(strength)
        if label is not None:
            rows = batch.rows(strength > 1)  # (R,)
    own, free = own_velocity(model, z, t, label, omega, rows)
    target = path.velocity(batch.x, batch.noise)
    if len(rows) and omega is not None:
        share = expand(1 - 1 / omega[rows], z)
        target = target.index_add(0, rows, (share * (own[rows] - free)).to(target.dtype))
    apart: slice | Tensor = slice(0, count) if count is not None else h.nonzero()[:, 0]
    more = {} if given is None else {"guidance": given}
    both = velocity_head(model) == "velocity"
    output = model(z, t, h, label, **more, **({"head": "both"} if both else {}))
    mean, velocity = output if both else (output, None)
    slope = torch.zeros_like(mean)
    if len(t[apart]):
        function = partial(model.eager, **({} if given is None else {"guidance": given[apart]}))
        with evaluating(model):
            slope[apart] = derivative(
                function, z[apart], t[apart], h[apart], own[apart], None if label is None else label[apart]
            ).to(slope.dtype)
    compound = mean + expand(h, z).to(mean.dtype) * slope
    error = squared_error(compound, target, reduction)
    return error, None if velocity is None else squared_error(velocity, target, reduction)
