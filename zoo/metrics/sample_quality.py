"""How good are class-conditional samples, next to what real data of the same size would score?"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.metrics.distances import frechet_distance, sliced_wasserstein
from zoo.metrics.intervals import Interval, mean_interval, share_interval
from zoo.metrics.neighbors import coverage, memorization

Split = Literal["train", "held_out", "samples"]


class SampleQuality(Metric):
    """Compares class-conditional samples with a training and a held-out split, in the data space itself.

    Each replicate asks the model for one sample per held-out item, with its label: as many samples, with the
    same labels, as there are held-out items. A perfect model therefore scores what the held-out split itself
    scores against the training split, and those floors are reported beside. The items are compared as flat
    vectors, so no pretrained network is needed; meant for small data (digits, points), kept whole in memory.

    `compute` returns, each with a 95 % interval over the replicates (Wilson's for the share):

    * ``recognized``: share of samples that a support-vector classifier trained on the training split takes
    for the
      class asked for; ``recognized_real`` is its held-out accuracy.
    * ``frechet``: Frechet distance to the training split; ``frechet_floor`` that of the held-out split.
    * ``sliced_wasserstein`` and ``sliced_wasserstein_floor``: likewise.
    * ``coverage`` and ``coverage_worst``: per-class coverage of the held-out items, its mean over classes and
    that of
      the worst class; ``coverage_real`` and ``coverage_worst_real``: what training items in place of samples
      reach.
    * ``memorization``: probability that a sample lies nearer to the training split than a held-out item does;
    0.5 for
      a model that copies nothing.

    Args:
        neighbors: Neighbors that set the radius in `coverage`.
        directions: Directions of the sliced Wasserstein distance.

    States are gathered over processes.
    """

    full_state_update = False

    def __init__(self, neighbors: int = 5, directions: int = 256) -> None:
        super().__init__()
        self.neighbors = neighbors
        self.directions = directions
        for split in ("train", "held_out", "samples"):
            for field in ("x", "label", "replicate"):
                self.add_state(f"{split}_{field}", default=[], dist_reduce_fx="cat")

    def update(self, x: Tensor, label: Tensor, split: Split, replicate: int = 0) -> None:
        """Adds items.

        Args:
            x: (B, ...) items or samples.
            label: (B,) their classes, or the classes asked for.
            split: What they are.
            replicate: Number of the replicate, for samples.

        Raises:
            ValueError: ``split`` is none of the three.
        """
        if split not in ("train", "held_out", "samples"):
            raise ValueError(f"split must be 'train', 'held_out' or 'samples', got {split!r}")
        getattr(self, f"{split}_x").append(x.detach().flatten(1).float())
        getattr(self, f"{split}_label").append(label)
        getattr(self, f"{split}_replicate").append(torch.full_like(label, replicate))

    def compute(self) -> dict[str, Interval]:
        """All values with intervals; a value of real data, which has no replicates, is its own interval.

        Raises:
            ValueError: a split is empty, a sample is not finite, or there are fewer than two replicates.
        """
        train, train_label, _ = self._split("train")
        held_out, held_out_label, _ = self._split("held_out")
        samples, label, replicate = self._split("samples")
        if not samples.isfinite().all():
            raise ValueError(
                f"{int((~samples.isfinite()).any(1).sum())} of {len(samples)} samples are not finite"
            )
        recognize = _classifier(train, train_label)
        hits = recognize(samples) == label
        real_hits = recognize(held_out) == held_out_label

        runs: dict[str, list[float]] = {}
        for number in replicate.unique().tolist():
            mine = replicate == number
            scores = self._scores(train, held_out, held_out_label, samples[mine], label[mine])
            for name, value in scores.items():
                runs.setdefault(name, []).append(value)
        stand_in = _matching(train_label, held_out_label)
        real = self._coverage(held_out, held_out_label, train[stand_in], train_label[stand_in])
        single = {
            "frechet_floor": frechet_distance(held_out, train),
            "sliced_wasserstein_floor": sliced_wasserstein(held_out, train, self.directions),
            "coverage_real": real.mean(),
            "coverage_worst_real": real.min(),
        }
        return {
            "recognized": share_interval(int(hits.sum()), len(hits)),
            "recognized_real": share_interval(int(real_hits.sum()), len(real_hits)),
            **{name: mean_interval(values) for name, values in runs.items()},
            **{name: Interval(*[float(value)] * 3) for name, value in single.items()},
        }

    def _scores(
        self, train: Tensor, held_out: Tensor, held_out_label: Tensor, samples: Tensor, label: Tensor
    ) -> dict[str, float]:
        covered = self._coverage(held_out, held_out_label, samples, label)
        return {
            "frechet": float(frechet_distance(samples, train)),
            "sliced_wasserstein": float(sliced_wasserstein(samples, train, self.directions)),
            "coverage": float(covered.mean()),
            "coverage_worst": float(covered.min()),
            "memorization": float(memorization(train, held_out, samples)),
        }

    def _coverage(self, real: Tensor, real_label: Tensor, samples: Tensor, label: Tensor) -> Tensor:
        """Coverage of each class (classes,)."""
        classes = real_label.unique()
        return torch.stack(
            [coverage(real[real_label == c], samples[label == c], self.neighbors) for c in classes]
        )

    def _split(self, split: Split) -> tuple[Tensor, Tensor, Tensor]:
        parts = [getattr(self, f"{split}_{field}") for field in ("x", "label", "replicate")]
        if not len(parts[0]):
            raise ValueError(f"no items of the split {split!r} were given to update")
        x, label, replicate = (part if isinstance(part, Tensor) else torch.cat(part) for part in parts)
        return x.cpu(), label.cpu(), replicate.cpu()


def _classifier(x: Tensor, label: Tensor) -> Callable[[Tensor], Tensor]:
    """A support-vector classifier with Gaussian kernel, trained on (N, D) items."""
    from sklearn.svm import SVC

    machine = SVC(C=10.0).fit(x.numpy(), label.numpy())
    return lambda items: torch.from_numpy(machine.predict(items.numpy()))


def _matching(label: Tensor, wanted: Tensor) -> Tensor:
    """Positions in ``label`` of as many items of each class as ``wanted`` has, the first ones."""
    counts = torch.bincount(wanted)
    return torch.cat([(label == c).nonzero()[:count, 0] for c, count in enumerate(counts.tolist())])
