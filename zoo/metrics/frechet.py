"""The Frechet distance between two streams of images, on the features of any extractor.

With an Inception network as extractor and a reference's ``mu`` and ``sigma`` this is the FID of Heusel et al.
2017, arXiv 1706.08500. Sums are kept in float64, so 50,000 images cost no more memory than one batch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from zoo.metrics.distances import frechet_of_moments


class FrechetDistance(Metric):
    """Squared Frechet distance of features, accumulated batch by batch and over processes.

    Args:
        features: From a batch to vectors (B, D), a module or function; the flattened values if not given.
        reference: ``.npz`` with ``mu`` (D,) and ``sigma`` (D, D), as EDM and others publish; then only
            samples are asked for.

    >>> metric = FrechetDistance()
    >>> metric.update(torch.tensor([[0.0], [2.0]]), real=True)
    >>> metric.update(torch.tensor([[3.0], [5.0]]), real=False)
    >>> metric.compute().item()
    9.0
    """

    full_state_update = False
    higher_is_better = False

    def __init__(
        self,
        features: nn.Module | Callable[[Tensor], Tensor] | None = None,
        reference: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.features = features
        self._moments = None if reference is None else load_moments(reference)
        for kind in ("real", "made"):
            self.add_state(f"{kind}_count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            # Sized by the first batch: a scalar zero adds to any vector.
            self.add_state(f"{kind}_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{kind}_outer", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, x: Tensor, real: bool) -> None:
        """Takes a batch in.

        Args:
            x: (B, ...), what ``features`` expects.
            real: Whether it is of the reference.

        Raises:
            ValueError: real data come though a reference was given, or the features are not (B, D).
        """
        if real and self._moments is not None:
            raise ValueError("the reference was loaded from a file: update with real=False only")
        vectors = x.flatten(1) if self.features is None else self.features(x)
        if vectors.ndim != 2 or len(vectors) != len(x):
            raise ValueError(f"features must give one vector per item (B, D), got {tuple(vectors.shape)}")
        vectors = vectors.double()
        kind = "real" if real else "made"
        setattr(self, f"{kind}_count", getattr(self, f"{kind}_count") + len(vectors))
        setattr(self, f"{kind}_sum", getattr(self, f"{kind}_sum") + vectors.sum(0))
        setattr(self, f"{kind}_outer", getattr(self, f"{kind}_outer") + vectors.T @ vectors)

    def compute(self) -> Tensor:
        """The distance, a float64 scalar.

        Raises:
            ValueError: fewer than two items of a kind, or a reference of another dimension.
        """
        made = self._estimate("made")
        real = self._estimate("real") if self._moments is None else self._moments
        if made[0].shape != real[0].shape:
            raise ValueError(f"the features have {len(made[0])} dimensions, the reference has {len(real[0])}")
        return frechet_of_moments(*made, *(moment.to(made[0].device) for moment in real))

    def _estimate(self, kind: str) -> tuple[Tensor, Tensor]:
        count, total, outer = (getattr(self, f"{kind}_{name}") for name in ("count", "sum", "outer"))
        if count < 2:
            word = "reference" if kind == "real" else "generated"
            raise ValueError(f"a covariance needs two {word} items at least, got {int(count)}")
        mean = total / count
        return mean, (outer - count * torch.outer(mean, mean)) / (count - 1)


def load_moments(path: str | Path) -> tuple[Tensor, Tensor]:
    """``mu`` (D,) and ``sigma`` (D, D) of an ``.npz`` of reference statistics, as float64.

    Raises:
        ValueError: the file is missing, no such archive, or lacks one of the two.
    """
    if not Path(path).is_file():
        raise ValueError(f"reference={str(path)!r}: no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            mean, covariance = (
                torch.from_numpy(np.asarray(archive[key], dtype=np.float64)) for key in ("mu", "sigma")
            )
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"reference={str(path)!r} is not an .npz with 'mu' and 'sigma': {error}") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"reference={str(path)!r}: expected mu (D,) and sigma (D, D), got {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}"
        )
    return mean, covariance
