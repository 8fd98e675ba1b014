"""A mixture of Gaussians on the line, whose flow map is known: what a one-step model should learn."""

import torch

from zoo import rng
from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._loader import Table
from zoo.flow.analytic import GaussianMixture


class Mixture1D(SplitDataModule):
    """Numbers drawn from a one-dimensional mixture of Gaussians, or vectors of several such numbers.

    Batches are dicts: ``x`` (B, dim) float32, each coordinate drawn from the mixture on its own, ``label``
    (B,) int64, the component, for dim = 1 only, and ``index`` (B,) int64, the row in its split. Every number
    is a function of its row. `distribution` is the truth: velocity, score, denoiser, flow map and mean
    velocity of one coordinate, which for a product hold coordinate by coordinate.

    The default is the mixture that the tests of `zoo.flow` use.

    Args:
        weights: Shares of the components; they are scaled to sum to 1.
        means: Their means.
        stds: Their standard deviations.
        dim: Coordinates.
        size: Items in the training split; the held-out split has a quarter as many, drawn apart.
        batch_size: Items per batch and process.
        num_workers: Worker processes that read ahead; the table is in memory, so 0 is fastest.
        seed: Seed of the training order. None takes the run's, or 0 without one.

    Raises:
        ValueError: the three lists differ in length or are empty, or a weight or std is not positive.
    """

    def __init__(
        self,
        weights: list[float] = [0.3, 0.7],
        means: list[float] = [-1.0, 0.8],
        stds: list[float] = [0.2, 0.35],
        dim: int = 1,
        size: int = 16384,
        batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()
        lengths = (len(weights), len(means), len(stds))
        if len(set(lengths)) > 1 or not weights:
            raise ValueError(
                f"weights, means and stds must be lists of one length of at least 1, got {lengths} entries"
            )
        if min(*weights, *stds) <= 0:
            raise ValueError(f"weights and stds must be positive, got {weights} and {stds}")
        if size < 4 or dim < 1:
            raise ValueError(f"size must be at least 4 and dim at least 1, got {size} and {dim}")
        self.weights, self.means, self.stds = list(weights), list(means), list(stds)
        self.dim, self.size = dim, size
        self.num_classes = len(weights) if dim == 1 else None

    @property
    def distribution(self) -> GaussianMixture:
        """The distribution of one coordinate on the linear path, in float64.

        >>> z = torch.tensor([[-1.2]]).double()
        >>> round(Mixture1D().distribution.flow_map(z, t=1.0, r=0.0).item(), 6)
        -1.059226
        """
        weights, means, stds = (
            torch.tensor(values, dtype=torch.float64) for values in (self.weights, self.means, self.stds)
        )
        return GaussianMixture(weights, means[:, None], stds)

    def setup(self, stage: str) -> None:
        """Draws both splits, the same for every stage and seed."""
        self.train_set = self._draw(self.size, "train")
        self.test_set = self._draw(self.size // 4, "test")
        self.val_set = self.test_set

    def _draw(self, size: int, split: str) -> Table:
        index = torch.arange(size)
        levels = (torch.tensor(self.weights, dtype=torch.float64) / sum(self.weights)).cumsum(0)
        draws = rng.uniform(0, 0, index, (self.dim,), f"{split}/component", torch.float64)
        component = torch.bucketize(draws, levels[:-1], right=True)  # (N, dim)
        means, stds = torch.tensor(self.means)[component], torch.tensor(self.stds)[component]
        x = means + stds * rng.normal(0, 0, index, (self.dim,), split)
        return Table({"x": x} if self.dim > 1 else {"x": x, "label": component[:, 0]})
