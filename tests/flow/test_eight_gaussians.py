"""A small network trained here and now draws eight Gaussians in one step."""

import math

import pytest
import torch
from torch import Tensor

from zoo.flow import (
    MLP,
    FlowBatch,
    GaussianMixture,
    MeanFlowTimes,
    adaptive,
    mean_flow_error,
    sample_mean_flow,
)

UPDATES, BATCH = 1200, 384


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, without the zero distances of points to themselves."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return (2 * torch.cdist(a, b).mean() - within(a) - within(b)).item()


def in_modes(points: Tensor, distribution: GaussianMixture) -> tuple[float, Tensor]:
    """Share of points within 2.5 standard deviations of a mode, and the share of each mode."""
    offsets = torch.cdist(points, distribution.means)
    share = offsets.argmin(1).bincount(minlength=8) / len(points)
    return (offsets.min(1).values < 2.5 * distribution.stds[0]).float().mean().item(), share


@pytest.mark.slow
def test_a_small_network_learns_eight_gaussians_in_one_step() -> None:
    torch.manual_seed(0)
    distribution = GaussianMixture.eight_gaussians(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    network = MLP(2, width=128, depth=3)
    average = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, total_steps=UPDATES, pct_start=0.05, cycle_momentum=False
    )
    times = MeanFlowTimes(prob_r_neq_t=0.5)
    for step in range(UPDATES):
        t, r = times(0, step, torch.arange(BATCH))
        noise = torch.randn(BATCH, 2, generator=generator)
        error = mean_flow_error(
            network,
            FlowBatch(x=distribution.sample(BATCH, generator), noise=noise, t=t.float(), h=(t - r).float()),
        )
        optimizer.zero_grad()
        adaptive(error, power=1.0, eps=0.01).mean().backward()
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], 0.01)
    torch._foreach_copy_([p.data for p in network.parameters()], average)

    size = 4000
    truth = distribution.sample(size, generator)
    floor = energy_distance(truth, distribution.sample(size, generator))
    angle = torch.rand(size, generator=generator) * 2 * math.pi
    thickness = torch.randn(size, 1, generator=generator)
    ring = (1 + 0.1 * thickness) * torch.stack([angle.cos(), angle.sin()], dim=1)  # right but for the modes
    one_mode = torch.randn(size, 2, generator=generator) * truth.std()  # the best single Gaussian
    far = energy_distance(truth, one_mode)
    noise = torch.randn(size, 2, generator=generator)
    for steps in (1, 2, 4):
        samples = sample_mean_flow(network, noise, steps=steps)
        distance = energy_distance(truth, samples)
        near, share = in_modes(samples, distribution)
        report = (
            f"{steps} steps: energy distance {distance:.4f} of {far:.4f}, floor {floor:.4f}, near {near:.2f}"
        )
        # Seen after these seconds of training: 89 % in modes with one step, 96 % with two (the distribution
        # itself has 95.6 %). The adaptive weight buys this sharpness with uneven modes, of 9 to 16 % of the
        # samples: that is what the energy distance sees: 0.008 to 0.012; one Gaussian is at 0.033.
        assert near > (0.8 if steps == 1 else 0.92), report
        assert distance < far / 2, report
        assert (share - 1 / 8).abs().max() < 1 / 16, (report, share)  # no mode lost, none twice its size
    assert in_modes(ring, distribution)[0] < 0.7  # the yardstick tells modes from a ring
    assert in_modes(truth, distribution)[0] > 0.94
