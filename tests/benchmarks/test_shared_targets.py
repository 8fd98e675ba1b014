"""Mid-training with LPIPS: the features of a trajectory's target once, or again for each of its pairs.

A student's step with VGG16 of random weights on images of 32 x 32 pixels, 16 pairs of each of 2 trajectories.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zoo.flow import DiT, EDMPreconditioning, PreconditionedNetwork
from zoo.flow.cmt import consistency_error
from zoo.metrics import LPIPS

TRAJECTORIES, PAIRS, REPEATS = 2, 16, 7


def random_lpips() -> LPIPS:
    """LPIPS without a weight file."""
    with torch.device("meta"):
        distance = LPIPS("none.pth")
    torch.manual_seed(0)
    distance = distance.to_empty(device="cpu")
    for parameter in distance.parameters():
        nn.init.normal_(parameter, std=0.05)
    distance.shift.zero_()
    distance.scale.fill_(1)
    distance._loaded = True  # values are at hand
    return distance


def arms() -> dict[str, Callable[[], float]]:
    """A step of each: the loss, its gradient in the student's weights."""
    torch.manual_seed(0)
    network = DiT(32, 3, 4, width=64, depth=2, heads=4, num_classes=None, two_times=False)
    model, distance = PreconditionedNetwork(network, EDMPreconditioning()), random_lpips()
    count = TRAJECTORIES * PAIRS
    z, t, end = torch.randn(count, 3, 32, 32), torch.rand(count) + 0.1, torch.randn(TRAJECTORIES, 3, 32, 32)

    def step(target: Tensor, d: Callable[[Tensor, Tensor], Tensor]) -> float:
        network.zero_grad()
        loss = consistency_error(model, z, t, target, d).mean()
        loss.backward()
        return float(loss.detach())

    return {
        "for each pair": lambda: step(end.repeat_interleave(PAIRS, 0), distance),
        "once": lambda: step(end, distance),
    }


@pytest.mark.bench
def test_features_of_a_target_once() -> None:
    steps = arms()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses = {name: step() for name, step in steps.items()}
    assert losses["once"] == pytest.approx(losses["for each pair"], rel=1e-6)
    for _ in range(REPEATS):
        for name, step in steps.items():  # interleaved, so that a busy moment of the machine hits both
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["for each pair"], seconds["once"], strict=True)]
    for name, values in seconds.items():
        print(f"{name:15} {1000 * statistics.median(values):7.1f} ms")
    print(f"a step with features for each pair takes {statistics.median(ratios):.2f} times as long")
    assert statistics.median(ratios) > 1.1
