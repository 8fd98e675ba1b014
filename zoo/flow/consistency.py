"""Consistency losses and samples: f(z, t), the denoiser, maps a state to the end of its own trajectory.

* discrete (Song et al. 2023, arXiv 2303.01469, and what followed): d(f(z_t, t), f(z_r, r)) with the second
  under a stop-gradient, where z_r is the state of the same data and noise (consistency training: CT, iCT,
  ECT), or one solver step of a teacher from z_t (consistency distillation: CD, ECD). At r = 0, f is the
  identity, so the target is the data.
* continuous (sCM; Lu and Song 2024, arXiv 2410.11081): the limit r -> t on the trigonometric path, with
  tangent normalization and warm-up.

Where we differ from the official codes: both passes of a discrete loss see the same dropout masks on every
device (openai's restores the CPU's generator alone).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.flow.paths import expand
from zoo.flow.tangent import Derivative, total_derivative


@contextmanager
def shared_dropout(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts the random state back after the block, so that the next pass draws the same dropout."""
    if not any(m.training and getattr(m, "p", 0) for m in network.modules() if "Dropout" in type(m).__name__):
        yield
        return
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        yield


def consistency_target(model: Any, z: Tensor, r: Tensor, label: Tensor | None, network: nn.Module) -> Tensor:
    """f(z, r) without gradient, under the dropout that the next pass will draw.

    Args:
        model: `zoo.flow.PreconditionedNetwork` of the target.
        z: States (B, ...) at the cleaner times.
        r: Times (B,); where they are 0 the state itself is the target.
        label: Classes (B,), or None.
        network: The network whose dropout is shared.
    """
    with torch.no_grad(), shared_dropout(network, z.device):
        return model.denoise(z, r, label)


def continuous_tangent(
    model: Any,
    z: Tensor,
    t: Tensor,
    output: Tensor,
    velocity: Tensor,
    label: Tensor | None,
    derivative: Derivative = total_derivative,
    warmup: float = 1.0,
    eps: float = 0.1,
) -> Tensor:
    """The normalized tangent g / (rms(g) + eps) of sCM: what is added to the output F to make its target.

    g = -cos^2 t (v - dz/dt) - w cos t sin t (z + dv/dt), where v = sd F is the model's velocity on its path.

    Args:
        model: `zoo.flow.PreconditionedNetwork` on a trigonometric path.
        z: States (B, ...).
        t: Times (B,).
        output: The model's velocities there (B, ...).
        velocity: dz/dt (B, ...), of the pair of data and noise, or of a teacher.
        label: Classes (B,), or None.
        derivative: Takes dv/dt along the flow.
        warmup: w in [0, 1], which grows from 0 at the start of training.
        eps: Bounds the tangent of a nearly perfect item; 0.1 in the paper.

    Returns:
        (B, ...), without gradient.
    """
    slope = derivative(model, z, t, None, velocity, label)
    with torch.no_grad():
        cosine, sine = expand(t.cos(), z), expand(t.sin(), z)
        tangent = -cosine.square() * (output - velocity) - warmup * cosine * sine * (z + slope)
        rms = tangent.flatten(1).square().mean(1).sqrt()
        return tangent / (expand(rms, tangent) + eps)


@torch.no_grad()
def sample_consistency(
    model: Any, noise: Callable[[int], Tensor], times: Tensor, label: Tensor | None = None
) -> Tensor:
    """Samples in one step, or in more with new noise between them (arXiv 2303.01469, algorithm 1).

    A step's result is a state at the boundary eps, where f is the identity. New noise lifts it to the level
    s of the next step by sqrt(s^2 - eps^2), so that the state there is alpha(t) (x + sqrt(s^2 - eps^2) e).
    The codes of ECT and CMT add s e instead, also where they sample with eps = .003; at their second level,
    .776, the noise differs by 7 parts in a million.

    Args:
        model: `zoo.flow.PreconditionedNetwork`, with the boundary of its preconditioning.
        noise: Gives the standard normal noise (B, ...) of step number 0, 1, ...
        times: Decreasing times (steps,) of the model's path.
        label: Classes (B,), or None.

    Returns:
        Samples (B, ...).
    """
    path, times = model.path, times.to("cpu", torch.float64)
    eps = getattr(model, "boundary", 0.0)
    x = model.denoise(float(path.sigma(times[0])) * noise(0), times[0], label)
    for step, t in enumerate(times[1:], start=1):
        # sqrt(s^2 - eps^2) in units of the state; below the boundary f keeps what it is given.
        added = (path.sigma(t).square() - (eps * path.alpha(t)).square()).clamp(min=0).sqrt()
        x = model.denoise(float(path.alpha(t)) * x + float(added) * noise(step), t, label)
    return x
