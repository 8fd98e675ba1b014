"""The bi-gram toy: its distribution, its draws, and its closed forms against plain numpy."""

import math

import numpy as np
import pytest
import torch

from zoo.datamodules import Bigram


def batches(data: Bigram, count: int) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    found: list[dict[str, torch.Tensor]] = []
    while len(found) < count:  # an iterator is one pass, of which there is no end
        for batch in loader:
            found.append(batch)
            if len(found) == count:
                break
    return found


def ready(**options: object) -> Bigram:
    data = Bigram(**({"seed": 0} | options))  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_pairs_follow_the_law() -> None:
    data = ready(n=8, certain=3, p_uncertain=0.2, size=20_000, batch_size=5000)
    drawn = batches(data, 8)
    first, second = (torch.cat([batch[name] for batch in drawn]) for name in ("first", "next"))
    count = torch.bincount(first, minlength=8).double()
    assert count.sum() == 40_000 and (count - 5000).abs().max() < 5 * (40_000 * 7 / 64) ** 0.5
    ones = torch.bincount(first, second.double(), minlength=8) / count
    assert ones[:3].equal(torch.ones(3).double())
    assert (ones[3:] - 0.2).abs().max() < 5 * (0.16 / 4700) ** 0.5  # five standard errors


def test_passes_and_seeds_draw_anew_and_positions_draw_again() -> None:
    data = ready(size=256, batch_size=256)
    one, other = batches(data, 2)
    assert set(one) == {"first", "next", "index"} and one["first"].dtype == one["next"].dtype == torch.int64
    by_index = [batch["first"][batch["index"].argsort()] for batch in (one, other)]
    assert not by_index[0].equal(by_index[1])  # the same places, drawn again: there is no end of pairs
    again = batches(ready(size=256, batch_size=256), 2)
    assert all(again[k][name].equal([one, other][k][name]) for k in range(2) for name in one)
    assert not batches(ready(size=256, batch_size=256, seed=1), 1)[0]["first"].equal(one["first"])


def test_a_pair_does_not_depend_on_the_batch() -> None:
    def pairs(batch_size: int) -> dict[int, tuple[int, int]]:
        drawn = batches(ready(size=96, batch_size=batch_size), 96 // batch_size)
        rows = zip(
            *(torch.cat([b[k] for b in drawn]).tolist() for k in ("index", "first", "next")), strict=True
        )
        return {index: (first, second) for index, first, second in rows}

    assert pairs(8) == pairs(96) == pairs(32) and len(pairs(8)) == 96


def test_a_resumed_loader_goes_on() -> None:
    whole = batches(ready(size=64, batch_size=16), 11)
    loader = ready(size=64, batch_size=16).train_dataloader()
    stream = iter(loader)
    for _ in range(3):
        next(stream)
    resumed = ready(size=64, batch_size=16).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    for wanted, got in zip(whole[3:7], resumed, strict=True):
        assert all(wanted[name].equal(got[name]) for name in wanted)


def test_validation_is_the_law() -> None:
    data = ready(n=6, certain=2, p_uncertain=0.25)
    [batch] = data.val_dataloader()
    assert batch["first"].equal(torch.arange(6)) and batch["certain"].tolist() == [True] * 2 + [False] * 4
    assert batch["probabilities"].tolist() == [[0.0, 1.0]] * 2 + [[0.75, 0.25]] * 4
    assert data.entropy == pytest.approx(4 / 6 * -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), rel=1e-14)


def excess(z: np.ndarray, p: float) -> np.ndarray:
    """Excess cross-entropy of the logit difference z where 1 has probability p."""
    entropy = -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
    return p * np.logaddexp(0, -z) + (1 - p) * np.logaddexp(0, z) - entropy


def sgd(n: int, batch: int, p: float, rate: float, updates: int, replicas: int) -> list[np.ndarray]:
    """The exact recursion of one row's z, in many replicas: (updates + 1) arrays."""
    draw, z = np.random.default_rng(0), np.zeros(replicas)
    path = [z]
    for _ in range(updates):
        seen = draw.binomial(batch, 1 / n, replicas)
        ones = draw.binomial(seen, p)
        z = z - 2 * rate / batch * (seen / (1 + np.exp(-z)) - ones)
        path.append(z)
    return path


def test_the_river() -> None:
    data = Bigram(n=16, certain=8, batch_size=16)
    path = sgd(16, 16, 1.0, 2.0, 1000, 400)
    assert excess(path[-1], 1.0).mean() == pytest.approx(data.certain_excess([2.0] * 1000), rel=0.1)
    assert data.certain_excess([2.0] * 1000) == 0.004


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_the_hill(p: float) -> None:
    """At a small rate; the next order is of the relative size of the rate times p (1 - p) over B."""
    data = Bigram(n=16, certain=8, batch_size=16, p_uncertain=p)
    path = sgd(16, 16, p, 0.25, 2000, 400)
    settled = np.mean([excess(z, p).mean() for z in path[1000:]])
    assert settled == pytest.approx(data.uncertain_excess(0.25), rel=0.05)


def test_the_hill_of_the_paper_file() -> None:
    """At rate 8 the true height is 8 % above the first order: what the docstring says."""
    path = sgd(64, 64, 0.5, 8.0, 500, 10_000)
    settled = np.mean([excess(z, 0.5).mean() for z in path[200:]])
    assert settled == pytest.approx(0.0169, rel=0.01)
    assert Bigram().uncertain_excess(8.0) == 0.015625 and Bigram().uncertain_excess(1.0) == 0.001953125


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_relaxation(p: float) -> None:
    """The mean distance from the truth decays as said: from a start close by, without noise."""
    data, rate = Bigram(n=16, certain=8, batch_size=16, p_uncertain=p), 0.05
    truth = math.log(p / (1 - p))
    z, updates = truth + 1e-3, round(2 * data.relaxation(rate))
    for _ in range(updates):
        z -= 2 * rate / 16 * (1 / (1 + math.exp(-z)) - p)
    assert math.log(1e-3 / (z - truth)) == pytest.approx(updates / data.relaxation(rate), rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"certain": 0}, "certain must be from 1 to n - 1.*got certain=0 of n=64"),
        ({"n": 4, "certain": 4}, "got certain=4 of n=4"),
        ({"p_uncertain": 1.0}, "p_uncertain must lie between 0 and 1.*got 1.0"),
        ({"size": 63}, "size must be at least batch_size=64, got 63"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bigram(**options)


def test_no_rates_no_river() -> None:
    with pytest.raises(ValueError, match="rates must sum to more than 0, got 0 rates"):
        Bigram().certain_excess([])
