"""Mean flow: learning u(z, t, h), the average velocity of a flow over the last h = t - r, without a teacher.

Geng, Deng, Bai, Kolter, He 2025, "Mean Flows for One-step Generative Modeling", arXiv 2505.13447:

* the identity u = v - (t - r) du/dt (equation 6), whose right side is the regression target (equations 9 to
  11),
* classifier-free guidance inside the target (equations 19 to 21, and its form with kappa in appendix B),
* the adaptive weight 1 / (L + eps)^p of each item's squared error L (appendix B.2; p = 1 makes the loss about
  flat, so watch L itself) is in `zoo.flow.weighting`.

Where we differ from the official code: it differentiates through one pass over the whole batch that also
gives the target. Here the derivative du/dt is taken without gradient, on the items with r != t alone, and the
gradient runs through an ordinary call of the network. Loss and gradients are the same; the call may be
compiled, wrapped for several processes, or use attention kernels without a forward-mode derivative. With
dropout the derivative and the guidance velocities are taken without it, so that dropout stays out of the
target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from zoo._modes import evaluating
from zoo.flow.batch import FlowBatch
from zoo.flow.paths import LinearPath, expand
from zoo.flow.tangent import Derivative, FiniteDifference, eager, total_derivative
from zoo.flow.teacher import Teacher
from zoo.flow.weighting import squared_error


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance inside the target of mean flow; its effective scale is omega / (1 - kappa).

    Args:
        omega: Share of the data's velocity. 1 with kappa 0 disables guidance.
        kappa: Share of the network's own conditional velocity.
        start: Guide only where t is at least this.
        end: Guide only where t is at most this.
    """

    omega: float = 1.0
    kappa: float = 0.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"start and end must satisfy 0 <= start <= end <= 1, got {self.start} and {self.end}"
            )

    @property
    def active(self) -> bool:
        """Whether anything is guided."""
        return self.omega != 1 or self.kappa != 0


@dataclass(frozen=True)
class MeanFlowTarget:
    """What the mean velocity regresses on: v - h du/dt, of which velocity v and how du/dt is taken.

    Args:
        teacher: A frozen model whose (guided) velocities take the place of the data's e - x, as in MFD: the
            target has no variance then. None trains from data, as in MFT.
        tangent: Along what the derivative is taken: the velocity that is learned ("data"), or the network's
            own velocity at h = 0 ("network"), as in improved mean flow.
        derivative: How it is taken; exactly, by forward mode, if not given.
    """

    teacher: Teacher | None = None
    tangent: Literal["data", "network"] = "data"
    derivative: FiniteDifference | None = None

    def __post_init__(self) -> None:
        if self.tangent not in ("data", "network"):
            raise ValueError(f"tangent must be 'data' or 'network', got {self.tangent!r}")


def mean_flow_error(
    network: Any,
    batch: FlowBatch,
    *,
    guidance: Guidance | None = None,
    teacher: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
    tangent: Literal["data", "network"] = "data",
    derivative: Derivative = total_derivative,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """The squared error of each item: algorithm 1 of the paper, up to the adaptive weight.

    Args:
        network: u(z, t, h, label), a module or a function. With ``guidance`` it has an attribute
            ``num_classes``.
        batch: Data, noise, times t in [0, 1] and steps h = t - r.
        guidance: Guides the velocity of items within its times whose label was not dropped.
        teacher: v(z, t, label) of a frozen model, in place of the velocity e - x of the pair (MFD).
        tangent: Along what u is differentiated: the velocity of the target ("data"), or the network's own
            velocity u(z, t, 0) ("network"; improved mean flow).
        derivative: How it is differentiated: `total_derivative` or a `zoo.flow.FiniteDifference`.
        reduction: Sum or mean over an item's values.

    Returns:
        (B,), with gradient to the network's parameters.

    >>> zero = lambda z, t, h, label: torch.zeros_like(z)  # its error is the square of the velocity e - x
    >>> one = torch.ones(1)
    >>> mean_flow_error(zero, FlowBatch(x=one[None], noise=4 * one[None], t=one, h=one)).item()
    9.0
    """
    path, (t, h), label = LinearPath(), batch.mean_flow_times(), batch.label
    z = path.interpolate(batch.x, batch.noise, t).to(batch.x.dtype)  # (B, ...)
    velocity = path.velocity(batch.x, batch.noise) if teacher is None else teacher(z, t, label).to(z.dtype)
    if guidance is not None and guidance.active and label is not None:
        rows = batch.rows(batch.inside(guidance.start, guidance.end))  # (R,)
        velocity = guided_velocity(network, z, t, velocity, label, rows, guidance.omega, guidance.kappa)
    target = mean_flow_target(
        network, z, t, h, velocity, label, count=batch.count, tangent=tangent, derivative=derivative
    )
    return squared_error(network(z, t, h, label), target, reduction)


def mean_flow_target(
    network: Any,
    z: Tensor,
    t: Tensor,
    h: Tensor,
    velocity: Tensor,
    label: Tensor | None = None,
    *,
    count: int | None = None,
    tangent: Literal["data", "network"] = "data",
    derivative: Derivative = total_derivative,
) -> Tensor:
    """The regression target of u(z, t, h): v - h du/dt, which is v itself where h = 0.

    Args:
        network: u(z, t, h, label), a module or a function.
        z: States (B, ...).
        t: Times (B,).
        h: Steps t - r (B,).
        velocity: dz/dt, conditional or guided (B, ...).
        label: Classes (B,), or None.
        count: Promise that exactly the first ``count`` items have h > 0. None looks for them, which on a GPU
            waits for the device.
        tangent: Along what u is differentiated: ``velocity`` ("data"), or the network's own velocity
            u(z, t, 0) ("network").
        derivative: How it is differentiated.

    Returns:
        (B, ...), without gradient.

    >>> u = lambda z, t, h, label: z * t[:, None]  # du/dt = v t + z
    >>> z, velocity, one = torch.tensor([[5.0]]), torch.tensor([[2.0]]), torch.ones(1)
    >>> mean_flow_target(u, z, one, 0.5 * one, velocity).item()  # 2 - 0.5 * (2 + 5)
    -1.5
    """
    rows: slice | Tensor = slice(0, count) if count is not None else h.nonzero()[:, 0]
    target = velocity.detach().clone()
    if count == 0 or (isinstance(rows, Tensor) and not len(rows)):
        return target
    z, t, h, velocity = z[rows], t[rows], h[rows], velocity[rows]
    label = None if label is None else label[rows]
    if tangent == "network":
        with torch.no_grad(), evaluating(network):
            velocity = eager(network)(z, t, torch.zeros_like(h), label)
    slope = derivative(network, z, t, h, velocity, label)
    target[rows] -= (expand(h, slope) * slope).to(target.dtype)
    return target


def guide(
    velocity: Tensor, unconditional: Tensor, conditional: Tensor | None, omega: float, kappa: float
) -> Tensor:
    """The guided velocity omega v + (1 - omega - kappa) v_u + kappa v_c; its effective scale is omega / (1 -
    kappa).

    Args:
        velocity: v (B, ...), of the pair of data and noise.
        unconditional: v_u (B, ...), the network's unconditional velocity.
        conditional: v_c (B, ...), the network's velocity with the class; not looked at where ``kappa`` is 0.
        omega: Share of the velocity itself.
        kappa: Share of the network's conditional velocity.

    >>> guide(torch.tensor(3.0), torch.tensor(1.0), None, omega=2.0, kappa=0.0).item()  # 1 + 2 * (3 - 1)
    5.0
    """
    guided = omega * velocity + (1 - omega - kappa) * unconditional
    if kappa == 0:
        return guided
    if conditional is None:
        raise ValueError(f"kappa={kappa} mixes the conditional velocity in: conditional must not be None")
    return guided + kappa * conditional


def guided_velocity(
    network: Any,
    z: Tensor,
    t: Tensor,
    velocity: Tensor,
    label: Tensor,
    rows: Tensor,
    omega: float,
    kappa: float,
) -> Tensor:
    """The velocities with those in ``rows`` guided by the network's own, which one joined forward pass gives.

    Args:
        network: u(z, t, h, label); asked at h = 0, without gradient or dropout, with the label
            ``network.num_classes`` for unconditional.
        z: States (B, ...).
        t: Times (B,).
        velocity: v (B, ...).
        label: Classes (B,).
        rows: Which items to guide (R,): those inside the guidance interval whose label was not dropped.
        omega: Share of the velocity itself.
        kappa: Share of the network's conditional velocity; 0 saves asking for it.

    Returns:
        (B, ...), without gradient.
    """
    if not len(rows):
        return velocity
    forward = eager(network)
    z, t, label = z[rows], t[rows], label[rows]
    null = torch.full_like(label, network.num_classes)
    with torch.no_grad(), evaluating(network):
        if kappa == 0:
            unconditional, conditional = forward(z, t, torch.zeros_like(t), null), None
        else:
            twice = torch.cat([z, z]), torch.cat([t, t]), t.new_zeros(2 * len(t)), torch.cat([null, label])
            unconditional, conditional = forward(*twice).chunk(2)
        guided = guide(velocity[rows], unconditional, conditional, omega, kappa)
        return velocity.index_copy(0, rows, guided.to(velocity.dtype))
