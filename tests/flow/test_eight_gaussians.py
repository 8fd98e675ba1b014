"""A small network trained here and now draws eight Gaussians in one step."""

import pytest
import torch
from torch import Tensor

from zoo.flow import MLP, GaussianMixture, MeanFlowTimes, adaptive, mean_flow_error, sample_mean_flow

UPDATES, BATCH = 1200, 384


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, without the zero distances of points to themselves."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return (2 * torch.cdist(a, b).mean() - within(a) - within(b)).item()


@pytest.mark.slow
def test_a_small_network_learns_eight_gaussians_in_one_step() -> None:
    torch.manual_seed(0)
    law = GaussianMixture.eight_gaussians(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    network = MLP(2, width=128, depth=3)
    average = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, total_steps=UPDATES, pct_start=0.05, cycle_momentum=False
    )
    times = MeanFlowTimes(share=0.5)
    for step in range(UPDATES):
        t, r = times(0, step, torch.arange(BATCH))
        noise = torch.randn(BATCH, 2, generator=generator)
        error = mean_flow_error(network, law.sample(BATCH, generator), noise, t.float(), (t - r).float())
        optimizer.zero_grad()
        adaptive(error, power=0.5, eps=0.01).mean().backward()
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], 0.01)
    torch._foreach_copy_([p.data for p in network.parameters()], average)

    size = 4000
    truth = law.sample(size, generator)
    floor = energy_distance(truth, law.sample(size, generator))
    spread = energy_distance(truth, torch.randn(size, 2, generator=generator) * truth.std())
    noise = torch.randn(size, 2, generator=generator)
    for steps in (1, 2, 4):
        samples = sample_mean_flow(network, noise, steps=steps)
        distance = energy_distance(truth, samples)
        offsets = torch.cdist(samples, law.means)
        near = (offsets.min(1).values < 0.4).float().mean()  # four standard deviations: 99.97 % of the law
        share = offsets.argmin(1).bincount(minlength=8) / size
        # Some seconds of training do not end at the floor. Seen here: 0.005, where one Gaussian with the
        # variance of the law is at 0.034 and the floor at 0.002 or less; 95 % near a mode in one step; shares
        # of 11 to 14 %.
        assert distance < spread / 4, (steps, distance, spread, floor)
        assert near > 0.93, (steps, near)
        assert (share - 1 / 8).abs().max() < 0.03, (steps, share)
    assert floor < spread / 10  # the yardstick can tell them apart
