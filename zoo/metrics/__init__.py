"""Metrics that no library has: torchmetrics classes and the pure functions under them."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.metrics.distances import frechet_distance as frechet_distance
    from zoo.metrics.distances import frechet_of_moments as frechet_of_moments
    from zoo.metrics.distances import sliced_wasserstein as sliced_wasserstein
    from zoo.metrics.distances import wasserstein_1d as wasserstein_1d
    from zoo.metrics.features import RandomFeatures as RandomFeatures
    from zoo.metrics.frechet import FrechetDistance as FrechetDistance
    from zoo.metrics.inception import InceptionFeatures as InceptionFeatures
    from zoo.metrics.inception import fid as fid
    from zoo.metrics.intervals import Interval as Interval
    from zoo.metrics.intervals import mean_interval as mean_interval
    from zoo.metrics.intervals import share_interval as share_interval
    from zoo.metrics.kernels import energy_distance as energy_distance
    from zoo.metrics.kernels import mmd as mmd
    from zoo.metrics.lpips import LPIPS as LPIPS
    from zoo.metrics.neighbors import coverage as coverage
    from zoo.metrics.neighbors import memorization as memorization
    from zoo.metrics.sample_quality import SampleQuality as SampleQuality

__getattr__, __dir__, __all__ = attach(__name__, __file__)
