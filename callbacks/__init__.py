"""Callbacks for any LightningModule: one run-time behaviour, one file."""

if __name__ != "zoo.callbacks":
    raise ImportError(
        "import zoo.callbacks, not callbacks: this folder installs inside zoo (pip install -e .)"
    )

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.callbacks._lr_schedule import LRSchedule as LRSchedule
    from zoo.callbacks.ema_gap import EMAGap as EMAGap
    from zoo.callbacks.exact_resume import ExactResume as ExactResume
    from zoo.callbacks.graceful_stop import GracefulStop as GracefulStop
    from zoo.callbacks.graceful_stop import Interrupted as Interrupted
    from zoo.callbacks.loss_curve import LossCurve as LossCurve
    from zoo.callbacks.sample_grid import SampleGrid as SampleGrid
    from zoo.callbacks.sample_report import SampleReport as SampleReport
    from zoo.callbacks.sample_writer import SampleWriter as SampleWriter
    from zoo.callbacks.sink_logger import SinkLogger as SinkLogger
    from zoo.callbacks.text_writer import TextWriter as TextWriter
    from zoo.callbacks.trajectory_writer import TrajectoryWriter as TrajectoryWriter
    from zoo.callbacks.update_bar import UpdateBar as UpdateBar
    from zoo.callbacks.wsds import WSDS as WSDS

__getattr__, __dir__, __all__ = attach(__name__, __file__)
