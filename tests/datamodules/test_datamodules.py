"""What the datamodules hold."""

import math

import pytest
import torch

from zoo.datamodules import Digits, EightGaussians


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data = Digits()
    data.setup("fit")
    train, test = data.train_set.columns, data.test_set.columns
    assert len(train["x"]) + len(test["x"]) == 1797
    assert train["x"].shape[1:] == (1, 8, 8) and train["x"].min() == -1 and train["x"].max() == 1
    rows = torch.cat([train["x"], test["x"]]).flatten(1)
    original = torch.tensor(load_digits().data).float() / 8 - 1
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, original.tolist()))
    counts = torch.bincount(test["label"])
    assert len(counts) == 10 and counts.min() >= 34 and counts.max() <= 37  # a fifth of each class
    assert abs(float(train["x"].std()) - 0.75) < 0.01


def test_the_split_is_the_same_for_every_seed() -> None:
    one, other = Digits(seed=0), Digits(seed=5)
    one.setup("fit")
    other.setup("test")
    assert one.test_set.columns["x"].equal(other.test_set.columns["x"])
    assert not next(iter(one.train_dataloader()))["index"].equal(
        next(iter(other.train_dataloader()))["index"]
    )


def test_eight_gaussians_have_their_law() -> None:
    data = EightGaussians(size=8000, radius=2.0, std=0.1)
    data.setup("fit")
    x, label = data.train_set.columns["x"], data.train_set.columns["label"]
    for k in range(8):
        angle = k * math.pi / 4
        points = x[label == k]
        assert len(points) == 1000
        mean = torch.tensor([2 * math.cos(angle), 2 * math.sin(angle)])
        assert (points.mean(0) - mean).abs().max() < 5 * 0.1 / 1000**0.5  # five standard errors
        assert abs(float((points - mean).std()) - 0.1) < 5 * 0.1 / (2 * 2000) ** 0.5
    assert not torch.isin(data.test_set.columns["x"][:, 0], x[:, 0]).any()


def test_every_training_item_is_in_the_reference() -> None:
    data = Digits(batch_size=100)
    data.setup("test")
    index = torch.cat([batch["index"] for batch in data.reference_dataloader()])
    assert index.equal(torch.arange(len(data.train_set)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Digits(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: Digits(num_workers=-1), r"num_workers must be 0 to \d+ .*, got -1"),
        (lambda: EightGaussians(std=0), "std positive"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
