"""What the ground costs beside the usual way: the loader, counter-based noise, the random state."""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from zoo import rng
from zoo.callbacks.exact_resume import get_random_state
from zoo.datamodules import Digits

pytestmark = pytest.mark.bench


def medians(repeats: int, **work: Callable[[], object]) -> dict[str, float]:
    """Seconds of each piece of work, the repeats interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def test_loader_against_stock_loader() -> None:
    """A pass over the digits; the stock loader collates item by item, ours indexes whole batches."""
    data = Digits(batch_size=128)
    data.setup("fit")
    columns = data.train_set.columns
    stock = DataLoader(TensorDataset(columns["x"], columns["label"]), 128, shuffle=True, drop_last=True)  # type: ignore[var-annotated]
    ours = data.train_dataloader()
    times = medians(15, stock=lambda: list(stock), ours=lambda: list(ours))
    print(f"\npass over digits: stock {times['stock'] * 1e3:.1f} ms, ours {times['ours'] * 1e3:.1f} ms, "
          f"ratio {times['ours'] / times['stock']:.2f}")  # fmt: skip
    assert times["ours"] < times["stock"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_noise_against_the_generator(shape: tuple[int, ...]) -> None:
    """Counter-based normals cost more than torch.randn: hash, logarithm and cosine in float64."""
    index = torch.arange(128)
    times = medians(15, torch=lambda: torch.randn(128, *shape), ours=lambda: rng.normal(0, 0, index, shape))
    print(f"\nnoise {shape}: torch.randn {times['torch'] * 1e3:.2f} ms, zoo.rng {times['ours'] * 1e3:.2f} ms")
    assert times["ours"] < 0.03  # of a step of 0.1 s and more on such a batch


def test_random_state() -> None:
    times = medians(15, state=get_random_state)
    print(f"\nrandom state of a rank: {times['state'] * 1e3:.2f} ms per checkpoint")
    assert times["state"] < 0.05
