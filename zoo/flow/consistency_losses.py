"""The losses of consistency models, discrete and continuous in time, of a batch and an objective.

Equations and sources: `zoo.flow.consistency` and `zoo.flow.consistency_objectives`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.flow.batch import FlowBatch
from zoo.flow.consistency import consistency_target, continuous_tangent
from zoo.flow.consistency_objectives import ContinuousConsistency, DiscreteConsistency
from zoo.flow.preconditioned_network import PreconditionedNetwork
from zoo.flow.teacher import Teacher


def discrete_loss(
    model: PreconditionedNetwork,
    batch: FlowBatch,
    objective: DiscreteConsistency,
    levels: tuple[Tensor, Tensor],
    *,
    teacher: Teacher | None = None,
    target_network: nn.Module | None = None,
    distance: Any = None,
    sigma_data: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """The weighted mean of d(f(z_t, t), sg f(z_r, r)), and the mean square of that difference: two scalars.

    Args:
        model: The denoiser f on its path.
        batch: Data, noise and labels.
        objective: Weight, distance, and the order of the teacher's step.
        levels: Noise levels (s, s'), each (B,) float64: of z_t, and of z_r.
        teacher: Gives z_r by one step from z_t; None takes the state of the same data and noise.
        target_network: An average of the network's weights, which gives the targets; None for the network.
        distance: The objective's own distance, where it is kept elsewhere.
        sigma_data: Standard deviation of the data's values, for the weight "edm".
    """
    path, label = model.path, batch.label
    s, lower = (batch.place(level) for level in levels)  # (B,) twice
    t, r = (batch.place(path.time_of(level)) for level in levels)
    z = path.interpolate(batch.x, batch.noise, t)
    if teacher is None:
        end = path.interpolate(batch.x, batch.noise, r)
    else:
        end = teacher.step(path, z, t, r, label, objective.second_order)
    network: Any = model.network
    averaged = network if target_network is None else target_network
    target = consistency_target(
        PreconditionedNetwork(averaged, model.preconditioning, path), end, r, label, network
    )
    output = model.denoise(z, t, label)
    weights = objective.weigh(s, lower, sigma_data)
    d = objective.distance if distance is None else distance
    return (weights * d(output, target)).mean(), (output.detach() - target).square().mean()


def continuous_loss(
    model: PreconditionedNetwork,
    batch: FlowBatch,
    objective: ContinuousConsistency,
    levels: Tensor,
    *,
    teacher: Teacher | None = None,
    uncertainty: nn.Module | None = None,
    progress: int = 0,
) -> tuple[Tensor, Tensor]:
    """The loss of sCM, and the mean square of the normalized tangent behind it: two scalars.

    Args:
        model: The network on the trigonometric path.
        batch: Data, noise and labels.
        objective: Weight, warm-up and derivative.
        levels: Noise levels (B,) float64.
        teacher: Gives the velocity; None takes that of data and noise.
        uncertainty: Learned variance of each noise level; None for none.
        progress: Updates so far, for the warm-up.
    """
    path, label = model.path, batch.label
    s, t = batch.place(levels), batch.place(path.time_of(levels))  # (B,) twice
    z = path.interpolate(batch.x, batch.noise, t)
    if teacher is None:
        velocity = path.velocity(batch.x, batch.noise, t)
    else:
        velocity = teacher.velocity(path, z, t, label)
    output = model.velocity(z, t, label)  # sd F
    warmup = 1.0 if objective.warmup == 0 else min(1.0, progress / objective.warmup)
    tangent = continuous_tangent(
        model, z, t, output.detach(), velocity, label, objective.derivative, warmup, objective.eps
    )
    sd = path.sigma_data  # type: ignore[attr-defined]
    error = (output / sd - (output / sd + tangent).detach()).square().flatten(1).mean(1)  # (B,)
    loss = (1 / s if objective.weight == "noise" else torch.ones_like(s)) * error
    if uncertainty is not None:
        log_variance = uncertainty(s)
        loss = loss * torch.exp(-log_variance) + log_variance
    return loss.mean(), error.detach().mean()
