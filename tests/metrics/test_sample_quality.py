"""Intervals, and the report on samples whose quality is known."""

import pytest
import torch
from scipy import stats

from zoo.datamodules import Digits
from zoo.metrics import SampleQuality, mean_interval, share_interval


def test_intervals_against_scipy() -> None:
    values = [1.0, 2.5, 3.0, 4.5]
    low, high = stats.t.interval(0.95, 3, loc=2.75, scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((2.75, low, high))
    for hits, total in ((0, 10), (3, 7), (10, 10), (999, 1000)):
        reference = stats.binomtest(hits, total).proportion_ci(method="wilson")
        assert share_interval(hits, total) == pytest.approx(
            (hits / total, reference.low, reference.high), abs=1e-12
        )
    with pytest.raises(ValueError, match="two values at least, got 1"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="got 3 of 2"):
        share_interval(3, 2)


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.setup("test")
    return data


def quality(digits: Digits, samples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    metric = SampleQuality()
    train, held_out = digits.train_set.columns, digits.test_set.columns
    metric.update(train["x"], train["label"], "train")
    metric.update(held_out["x"], held_out["label"], "held_out")
    for replicate, (x, label) in enumerate(samples):
        metric.update(x, label, "samples", replicate)
    return {name: score.value for name, score in metric.compute().items()}


def test_real_images_score_their_floor(digits: Digits) -> None:
    """Held-out images given as samples are the floor, to the bit."""
    held_out = digits.test_set.columns
    scores = quality(digits, [(held_out["x"], held_out["label"])] * 2)
    assert scores["recognized"] == scores["recognized_real"] > 0.97
    assert scores["frechet"] == scores["frechet_floor"]
    assert scores["sliced_wasserstein"] == scores["sliced_wasserstein_floor"]
    assert scores["memorization"] == 0.5
    assert scores["coverage"] == 1


def test_each_fault_shows_in_its_score(digits: Digits) -> None:
    held_out, train = digits.test_set.columns, digits.train_set.columns
    real = quality(digits, [(held_out["x"], held_out["label"])] * 2)
    wrong = quality(digits, [(held_out["x"], (held_out["label"] + 1) % 10)] * 2)
    assert wrong["recognized"] < 0.05
    rows = torch.cat(
        [(train["label"] == c).nonzero()[: (held_out["label"] == c).sum(), 0] for c in range(10)]
    )
    copies = quality(digits, [(train["x"][rows], train["label"][rows])] * 2)
    assert copies["memorization"] > 0.99 and copies["recognized"] > 0.99
    single = train["x"][torch.stack([(train["label"] == c).nonzero()[0, 0] for c in range(10)])][
        held_out["label"]
    ]
    collapsed = quality(digits, [(single, held_out["label"])] * 2)
    assert collapsed["coverage"] < 0.5 * real["coverage_real"]
    assert collapsed["frechet"] > 10 * real["frechet_floor"]


def test_missing_and_broken_input(digits: Digits) -> None:
    metric = SampleQuality()
    with pytest.raises(ValueError, match="'train'"):
        metric.update(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), "test")  # type: ignore[arg-type]
    x = torch.zeros(10, 2)
    label = torch.zeros(10, dtype=torch.long)
    metric.update(x, label, "train")
    with pytest.raises(ValueError, match="no items of the split 'held_out'"):
        metric.compute()
    metric.update(x, label, "held_out")
    metric.update(x * torch.nan, label, "samples")
    with pytest.raises(ValueError, match="10 of 10 samples are not finite"):
        metric.compute()
