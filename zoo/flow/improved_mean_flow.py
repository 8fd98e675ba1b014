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
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from zoo import rng
from zoo.flow.mean_flow import squared_error
from zoo.flow.paths import LinearPath, expand
from zoo.flow.tangent import Derivative, evaluating, total_derivative


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
    x: Tensor,
    noise: Tensor,
    t: Tensor,
    h: Tensor,
    label: Tensor | None = None,
    guidance: Tensor | None = None,
    omega: Tensor | None = None,
    count: int | None = None,
    guided: Tensor | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    derivative: Derivative = total_derivative,
) -> tuple[Tensor, Tensor | None]:
    """The squared errors of V and of the head for velocities, of each item.

    Args:
        model: `zoo.flow.PreconditionedNetwork` on the linear path.
        x: Data (B, ...).
        noise: Standard normal (B, ...).
        t: Times (B,) in [0, 1].
        h: Steps t - r (B,), at least 0.
        label: Classes (B,), or None.
        guidance: What the network is given (B, 3): strengths, first and last times; None for a network that
            knows no guidance.
        omega: Strengths at the items' own times (B,): 1 where t is outside of the guidance's.
        count: Promise that exactly the first ``count`` items have h > 0. None looks for them, which on a GPU
            waits for the device.
        guided: Which items are guided (R,): those with ``omega`` above 1 and a class. None for none.
        reduction: Sum or mean over an item's values.
        derivative: How u is differentiated.

    Returns:
        Two (B,) with gradient; the second is None for a network without a head for velocities.
    """
    path = LinearPath()
    z = path.interpolate(x, noise, t).to(x.dtype)
    rows = t.new_empty(0, dtype=torch.long) if guided is None or label is None else guided
    own, free = own_velocity(model, z, t, label, omega, rows)
    target = path.velocity(x, noise)
    if len(rows) and omega is not None:
        share = expand(1 - 1 / omega[rows], z)
        target = target.index_add(0, rows, (share * (own[rows] - free)).to(target.dtype))
    apart: slice | Tensor = slice(0, count) if count is not None else h.nonzero()[:, 0]
    more = {} if guidance is None else {"guidance": guidance}
    both = velocity_head(model) == "velocity"
    output = model(z, t, h, label, **more, **({"head": "both"} if both else {}))
    mean, velocity = output if both else (output, None)
    slope = torch.zeros_like(mean)
    if len(t[apart]):
        function = partial(model.eager, **({} if guidance is None else {"guidance": guidance[apart]}))
        with evaluating(model):
            slope[apart] = derivative(
                function, z[apart], t[apart], h[apart], own[apart], None if label is None else label[apart]
            ).to(slope.dtype)
    compound = mean + expand(h, z).to(mean.dtype) * slope
    error = squared_error(compound, target, reduction)
    return error, None if velocity is None else squared_error(velocity, target, reduction)
