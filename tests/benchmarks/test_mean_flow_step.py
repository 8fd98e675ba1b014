"""What a step of mean flow costs beside one of plain flow matching: the same network, batch and optimizer.

On the items with r != t mean flow asks for a derivative, at twice the price of a forward pass. With a quarter
of the items and a backward pass of two forwards, the arithmetic alone is (3 + 2 / 4) / 3 = 1.17 steps. A
full-batch pass that is differentiated through costs about 2.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.flow import DiT, FlowBatch, Guidance, LinearPath, adaptive, mean_flow_error

BATCH, REPEATS, STEPS = 128, 7, 4
PATH = LinearPath()


def setting() -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Tensor]]:
    torch.manual_seed(0)
    network = DiT(8, 1, 2, width=128, depth=4, heads=4, num_classes=10)
    t = torch.rand(BATCH)
    items = {
        "x": torch.randn(BATCH, 1, 8, 8),
        "noise": torch.randn(BATCH, 1, 8, 8),
        "t": t,
        "h": torch.where(torch.arange(BATCH) < BATCH // 4, t / 2, 0),
        "label": torch.arange(BATCH) % 10,
    }
    return network, torch.optim.AdamW(network.parameters(), lr=1e-4), items


def updating(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def flow_matching() -> Callable[[], None]:
    network, optimizer, items = setting()
    still = torch.zeros(BATCH)

    def loss() -> Tensor:
        z = PATH.interpolate(items["x"], items["noise"], items["t"])
        prediction = network(z, items["t"], still, items["label"])
        return (prediction - PATH.velocity(items["x"], items["noise"])).square().mean()

    return updating(optimizer, loss)


def mean_flow(**guidance: float) -> Callable[[], None]:
    network, optimizer, items = setting()
    batch = FlowBatch(**items, count=BATCH // 4)

    def loss() -> Tensor:
        error = mean_flow_error(network, batch, guidance=Guidance(**guidance))
        return adaptive(error, power=1.0, eps=0.01).mean()

    return updating(optimizer, loss)


def full_batch_mean_flow() -> Callable[[], None]:
    """The differentiable forward-mode pass over all items, as the official code has it."""
    network, optimizer, items = setting()
    x, noise, t, h, label = items.values()
    z, v, one = PATH.interpolate(x, noise, t), PATH.velocity(x, noise), torch.ones(BATCH)

    def loss() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            u, derivative = torch.func.jvp(lambda z, t, h: network(z, t, h, label), (z, t, h), (v, one, one))
        error = (u - (v - h[:, None, None, None] * derivative).detach()).square().sum((1, 2, 3))
        return adaptive(error, power=1.0, eps=0.01).mean()

    return updating(optimizer, loss)


def measure() -> dict[str, list[float]]:
    """Seconds of a step of each kind on two threads, one per repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        steps = {
            "flow matching": flow_matching(),
            "mean flow": mean_flow(),
            "guided, kappa = 0": mean_flow(omega=2.0, kappa=0.0),
            "guided, kappa > 0": mean_flow(omega=1.0, kappa=0.5),
            "full batch": full_batch_mean_flow(),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for repeat in range(REPEATS + 1):
            for name, step in steps.items():  # interleaved, so that a busy moment of the machine hits all
                start = time.perf_counter()
                for _ in range(STEPS):
                    step()
                if repeat:  # the first one warms up
                    seconds[name].append((time.perf_counter() - start) / STEPS)
    finally:
        torch.set_num_threads(threads)
    return seconds


@pytest.mark.bench
def test_a_mean_flow_step_against_a_flow_matching_step() -> None:
    medians = {name: statistics.median(values) for name, values in measure().items()}
    ratios = {name: median / medians["flow matching"] for name, median in medians.items()}
    for name, ratio in ratios.items():
        print(f"{name:20} {1000 * medians[name]:7.1f} ms  {ratio:.2f}")
    assert ratios["mean flow"] <= 1.35
    assert ratios["guided, kappa = 0"] <= 2.0
    assert ratios["guided, kappa > 0"] <= 2.0
