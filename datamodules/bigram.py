"""Pairs of tokens of a known distribution, some certain and some not: river and hills of a language.

The idea is of Wen et al. 2024 (arXiv 2410.05192, section 4): tokens whose successor is certain have no
curvature at the optimum and are learned along the river, uncertain ones make the hills, on which SGD's noise
keeps the loss up. The constants and the closed forms below are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo import rng
from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._loader import Batch, Loader, Places, Table, Transform


class Bigram(SplitDataModule):
    """A first token, uniform over ``n``, and a next token, 0 or 1, of a known probability.

    The next token of the first ``certain`` tokens is always 1; that of the others is 1 with probability
    ``p_uncertain``. Training pairs never end: each pass over the data draws new ones, which depend on (seed,
    pass, index) alone, so no run sees a pair of noise twice.

    Training batches are dicts: ``first`` (B,) int64, ``next`` (B,) int64, and ``index`` (B,) int64.
    Validation and test are the distribution itself, each first token once, so that what is measured has no
    sampling error: ``first`` (B,) int64, ``probabilities`` (B, 2) float64 of the two next tokens,
    ``certain`` (B,) bool, and ``index`` (B,). `zoo.lm.BigramTable` learns from both.

    For that table, started from zeros and trained by SGD with learning rates eta, batches of B and the
    cross-entropy in nats, the difference z of the two logits of a token goes z - (2 eta / B) sum(sigmoid(z) -
    y) over the token's pairs in the batch. From this follow `certain_excess`, `uncertain_excess` and
    `relaxation`.

    Args:
        n: First tokens.
        certain: How many of them have a certain successor.
        p_uncertain: Probability of 1 after the others.
        size: Pairs in a pass, of which there is no end; a multiple of the batch wastes none.
        batch_size: Pairs per batch and process.
        num_workers: Worker processes that read ahead; a draw is cheap, so 0 is fastest.
        seed: Seed of the draws. None takes the run's, or 0 without one.

    Raises:
        ValueError: there are not both kinds of tokens, ``p_uncertain`` is certain, or a pass is too short.
    """

    def __init__(
        self,
        n: int = 64,
        certain: int = 32,
        p_uncertain: float = 0.5,
        size: int = 65536,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()
        if not 1 <= certain < n:
            raise ValueError(
                f"certain must be from 1 to n - 1, so that both kinds of tokens exist, got certain={certain} "
                f"of n={n}"
            )
        if not 0 < p_uncertain < 1:
            raise ValueError(
                f"p_uncertain must lie between 0 and 1, both excluded, got {p_uncertain}; tokens of a "
                "certain successor are counted by the argument certain"
            )
        if size < batch_size:
            raise ValueError(f"size must be at least batch_size={batch_size}, got {size}: give a longer pass")
        self.n, self.certain, self.p_uncertain, self.size = n, certain, p_uncertain, size

    @property
    def distribution(self) -> Tensor:
        """Probabilities (n, 2) in float64 of the next token 0 or 1 after each first token.

        >>> Bigram(n=3, certain=1, p_uncertain=0.25).distribution.tolist()
        [[0.0, 1.0], [0.75, 0.25], [0.75, 0.25]]
        """
        one = torch.full((self.n,), self.p_uncertain, dtype=torch.float64)
        one[: self.certain] = 1.0
        return torch.stack([1 - one, one], dim=1)

    @property
    def entropy(self) -> float:
        """Mean entropy in nats of the next token given the first: the least cross-entropy there is.

        >>> round(Bigram().entropy, 6)  # half of the tokens toss a coin: ln(2) / 2
        0.346574
        """
        distribution = self.distribution
        return float(-torch.xlogy(distribution, distribution).sum() / self.n)

    def certain_excess(self, rates: Sequence[float]) -> float:
        """Expected excess cross-entropy of a certain token after one update of each rate: the river.

        In the mean z grows by (2 eta / n) (1 - sigmoid(z)), about (2 eta / n) exp(-z) once z is large, so
        exp(z) is 2 sum(eta) / n and the excess, log(1 + exp(-z)), is n / (2 sum(eta)). It holds where that is
        small.

        Args:
            rates: Learning rates of the updates made.

        Returns:
            n / (2 sum(eta)), in nats.

        >>> round(Bigram().certain_excess([8.0] * 2000), 6)
        0.002
        """
        total = float(sum(rates))
        if total <= 0:
            raise ValueError(f"rates must sum to more than 0, got {len(rates)} rates with sum {total}")
        return self.n / (2 * total)

    def uncertain_excess(self, rate: float, batch_size: int | None = None) -> float:
        """Expected excess of an uncertain token that a constant learning rate settles at: the hill.

        With w = p (1 - p), to first order in the rate, z has the stationary variance rate / B around the
        truth, and the excess is w / 2 times that. At p = 1/2 it is rate / (8 B). The terms left out make the
        true value larger at high rates: at rate 8, B = 64 and n = 64 it is .0169, 8 % above.

        Args:
            rate: Learning rate.
            batch_size: Pairs of one update over all processes; None takes the datamodule's ``batch_size``.

        Returns:
            rate p (1 - p) / (2 B), in nats.

        >>> Bigram().uncertain_excess(8.0)
        0.015625
        """
        size = self.batch_size if batch_size is None else batch_size
        return rate * self.p_uncertain * (1 - self.p_uncertain) / (2 * size)

    def relaxation(self, rate: float) -> float:
        """Updates in which an uncertain token's distance from the truth falls by e at a small constant rate.

        Each update multiplies the mean distance of z by 1 - 2 rate p (1 - p) / n. The excess, its square,
        falls twice as fast.

        Args:
            rate: Learning rate.

        Returns:
            n / (2 rate p (1 - p)), in updates; 2 n / rate at p = 1/2.

        >>> Bigram().relaxation(8.0)
        16.0
        """
        return self.n / (2 * rate * self.p_uncertain * (1 - self.p_uncertain))

    def setup(self, stage: str) -> None:
        """Writes down the distribution; training pairs are drawn when they are asked for."""
        self.train_set = Places(self.size)
        distribution = self.distribution
        self.test_set = Table(
            {
                "first": torch.arange(self.n),
                "probabilities": distribution,
                "certain": torch.arange(self.n) < self.certain,
            }
        )
        self.val_set = self.test_set

    def reference_dataloader(self) -> Loader:
        """Not offered: the distribution itself is the reference.

        Raises:
            ValueError: always.
        """
        raise ValueError("Bigram has no items to compare with: its validation is the distribution itself")

    def transform(self, train: bool) -> Transform | None:
        """Draws the pairs of a training batch."""
        return _Pairs(self.distribution[:, 1], self.seed) if train else None


class _Pairs:
    """From the numbers of a batch to its pairs of tokens."""

    def __init__(self, one: Tensor, seed: int) -> None:
        self.one, self.seed = one, seed  # (n,) probability of the next token 1

    def __call__(self, batch: Batch, number: int) -> Batch:
        """The pairs of pass ``number``."""
        draws = rng.uniform(self.seed, number, batch["index"], (2,), "bigram", torch.float64)  # (B, 2)
        first = (draws[:, 0] * len(self.one)).long()
        return {"first": first, "next": (draws[:, 1] < self.one[first]).long()} | batch
