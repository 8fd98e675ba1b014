"""Consistency mid-training (CMT, arXiv 2509.24526): learning a teacher's trajectories, without a derivative.

A trajectory z_0, ..., z_M of the teacher from noise to data, at the times the solver used, gives

* M pairs to a consistency student: f(z_k, t_k) is to be z_M,
* M (M + 1) / 2 pairs to a mean-flow student: u(z_i, t_i, t_i - t_j) is to be (z_i - z_j) / (t_i - t_j).

The targets come from the frozen teacher, so there is no stop-gradient, no average of the student and no
schedule. The minimum of the loss is zero at the *teacher's* map. Where we differ from the official code: both
kinds of students are offered; the labels of a trajectory follow its pairs; and times are those of the solver
(the public mean-flow code labels states of a shifted grid with even times). Here trajectories run from noise
to data; the paper counts them the other way.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from zoo import rng
from zoo.flow.distances import distance_to_targets
from zoo.flow.paths import expand
from zoo.flow.solvers import Trajectory
from zoo.flow.weighting import squared_error


@dataclass(frozen=True)
class TrajectoryDraws:
    """Where the teacher's trajectories start, and how many pairs of states of each are learned.

    Args:
        start: Where trajectories start: at the "prior", as in the paper, or at "data" with noise, as in its
            official code.
        pairs: Pairs drawn from each trajectory; null takes all M, or M (M + 1) / 2.
    """

    start: Literal["prior", "data"] = "prior"
    pairs: int | None = None

    def __post_init__(self) -> None:
        if self.start not in ("prior", "data"):
            raise ValueError(f"start must be 'prior' or 'data', got {self.start!r}")

    def check(self, steps: int, two_times: bool) -> None:
        """Refuses a number of pairs that a trajectory of ``steps`` steps does not hold for a student."""
        check_pairs(self.pairs, steps, two_times)


def pair_count(steps: int, two_times: bool) -> int:
    """How many pairs a trajectory of ``steps`` steps holds for a student with one time input or two.

    >>> pair_count(16, two_times=False), pair_count(16, two_times=True)
    (16, 136)
    """
    return steps * (steps + 1) // 2 if two_times else steps


def check_pairs(count: int | None, steps: int, two_times: bool) -> None:
    """Refuses a number of pairs that a trajectory of ``steps`` steps does not hold.

    Raises:
        ValueError: it is less than 1, or more than there are.
    """
    total = pair_count(steps, two_times)
    if count is not None and not 1 <= count <= total:
        raise ValueError(
            f"pairs must be from 1 to {total}, which is what {steps} steps of the teacher give; got {count}"
        )


def draw_pairs(
    seed: int, step: int, index: Tensor, steps: int, two_times: bool, count: int | None = None, name: str = ""
) -> tuple[Tensor, Tensor]:
    """Which states of each trajectory make pairs, drawn without replacement.

    Args:
        seed: The run's seed.
        step: The optimizer step.
        index: Global item indices (B,) of the trajectories.
        steps: The solver's steps M.
        two_times: For a mean-flow student any two states make a pair; for a consistency student one is the
            last.
        count: Pairs of each trajectory; None takes all of them, and draws nothing.
        name: Prefix of the draw's name.

    Returns:
        ``(i, j)``, each (B, count) with 0 <= i < j <= M, on the device of ``index``.

    Raises:
        ValueError: a trajectory does not hold ``count`` pairs.
    """
    total = pair_count(steps, two_times)
    if two_times:
        first, second = torch.triu_indices(steps + 1, steps + 1, offset=1, device=index.device)  # (total,)
    else:
        first = torch.arange(steps, device=index.device)
        second = torch.full_like(first, steps)
    if count is None or count == total:
        return first.expand(len(index), -1), second.expand(len(index), -1)
    check_pairs(count, steps, two_times)
    draws = rng.uniform(seed, step, index, (total,), name + "pairs", torch.float64)  # (B, total)
    chosen = draws.argsort(dim=1)[:, :count]
    return first[chosen], second[chosen]


def take_states(trajectory: Trajectory, places: Tensor) -> tuple[Tensor, Tensor]:
    """The states (B * K, ...) and times (B * K,) at some places of each trajectory, item after item.

    Args:
        trajectory: States (M + 1, B, ...) and times (M + 1,).
        places: (B, K) from 0, the noise, to M, the data.
    """
    states = trajectory.states
    rows = (
        torch.arange(states.shape[1], device=places.device)[:, None].expand_as(places).flatten()
    )  # (B * K,)
    places = places.flatten()
    precise = torch.promote_types(states.dtype, torch.float32)
    times = trajectory.times.to(states.device, precise, non_blocking=True)
    return states[places, rows], times[places]


def take_pairs(trajectory: Trajectory, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The states and times of pairs: (B * count, ...) twice and (B * count,) twice, item after item.

    Args:
        trajectory: States (M + 1, B, ...) and times (M + 1,).
        i: Places (B, count) of the noisier states.
        j: Places (B, count) of the cleaner states.
    """
    (z, t), (end, r) = take_states(trajectory, i), take_states(trajectory, j)
    return z, end, t, r


def consistency_error(
    model: Any, z: Tensor, t: Tensor, end: Tensor, distance: Any, label: Tensor | None = None
) -> Tensor:
    """d(f(z, t), z_M) of each pair (N,), where f is the student's denoiser.

    Args:
        model: `zoo.flow.PreconditionedNetwork` of the student.
        z: States (N, ...).
        t: Times (N,).
        end: Last states of their trajectories: (N, ...), or (B, ...) for N / B pairs of each trajectory, item
            after item, whose features a distance that has any then computes once (`distance_to_targets`).
        distance: (N, ...), (N, ...) -> (N,).
        label: Classes (N,), or None.
    """
    return distance_to_targets(distance, model.denoise(z, t, label), end)


def mean_flow_pair_error(
    model: Any, z: Tensor, t: Tensor, end: Tensor, r: Tensor, label: Tensor | None = None
) -> Tensor:
    """The mean square of u(z_i, t_i, t_i - t_j) - (z_i - z_j) / (t_i - t_j) of each pair (N,).

    Args:
        model: `zoo.flow.PreconditionedNetwork` of the student, on the trajectory's path.
        z: States (N, ...).
        t: Their times (N,).
        end: Later states of their trajectories (N, ...).
        r: Their times (N,).
        label: Classes (N,), or None.
    """
    slope = (z - end) / expand(t - r, z)
    return squared_error(model(z, t, t - r, label), slope, "mean")


def mid_training_error(
    model: Any,
    trajectory: Trajectory,
    i: Tensor,
    j: Tensor,
    label: Tensor | None = None,
    *,
    distance: Any = None,
) -> Tensor:
    """The error of each pair (B * K,) of a student, item after item.

    Args:
        model: `zoo.flow.PreconditionedNetwork` of the student, on the trajectory's path.
        trajectory: States (M + 1, B, ...) and times (M + 1,).
        i: Places (B, K) of the noisier states.
        j: Places (B, K) of the cleaner states; for a consistency student the last.
        label: Classes (B,) of the trajectories, or None.
        distance: d of the loss of a consistency student; None for a mean-flow student.
    """
    label = None if label is None else label.repeat_interleave(i.shape[1])
    if distance is None:
        z, end, t, r = take_pairs(trajectory, i, j)
        return mean_flow_pair_error(model, z, t, end, r, label)
    z, t = take_states(trajectory, i)
    return consistency_error(model, z, t, trajectory.states[-1], distance, label)
