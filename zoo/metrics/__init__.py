"""Metrics that no library has: torchmetrics classes and the pure functions under them."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.metrics.distances import frechet_distance, sliced_wasserstein, wasserstein_1d
    from zoo.metrics.intervals import Interval, mean_interval, share_interval
    from zoo.metrics.neighbors import coverage, memorization
    from zoo.metrics.sample_quality import SampleQuality

__getattr__, __dir__, __all__ = attach(__name__, __file__)
