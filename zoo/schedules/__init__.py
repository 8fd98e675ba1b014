"""Learning-rate schedules as plain data, whose cost is known before they run: WSD, WSD-S and their peers.

WSD-S and the river-valley landscape: Wen et al. 2024, arXiv 2410.05192. The callback
`zoo.callbacks.WSDS` runs a `Schedule` under any LightningModule; `zoo plan CONFIG` draws the one of a config.
"""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.schedules.analytic import ValleyLosses as ValleyLosses
    from zoo.schedules.analytic import greedy_rates as greedy_rates
    from zoo.schedules.analytic import hill_losses as hill_losses
    from zoo.schedules.analytic import spectrum_losses as spectrum_losses
    from zoo.schedules.analytic import stationary_hill as stationary_hill
    from zoo.schedules.analytic import valley_run as valley_run
    from zoo.schedules.bounds import ConvexBound as ConvexBound
    from zoo.schedules.bounds import anytime_bounds as anytime_bounds
    from zoo.schedules.bounds import convex_bound as convex_bound
    from zoo.schedules.builders import cyclic_cosine as cyclic_cosine
    from zoo.schedules.builders import from_breakpoints as from_breakpoints
    from zoo.schedules.builders import wsd as wsd
    from zoo.schedules.builders import wsds as wsds
    from zoo.schedules.builders import wsm as wsm
    from zoo.schedules.curves import constant as constant
    from zoo.schedules.curves import cosine as cosine
    from zoo.schedules.curves import one_cycle as one_cycle
    from zoo.schedules.decay import Decay as Decay
    from zoo.schedules.hessian import HessianSpectrum as HessianSpectrum
    from zoo.schedules.hessian import hessian_eigenvalues as hessian_eigenvalues
    from zoo.schedules.landscape import EntropyBuckets as EntropyBuckets
    from zoo.schedules.landscape import interpolate as interpolate
    from zoo.schedules.landscape import loss_by_entropy as loss_by_entropy
    from zoo.schedules.landscape import predictive_entropy as predictive_entropy
    from zoo.schedules.landscape import update_energy as update_energy
    from zoo.schedules.learning_rate import InverseSquareRootLR as InverseSquareRootLR
    from zoo.schedules.learning_rate import ScheduleLR as ScheduleLR
    from zoo.schedules.ledger import LedgerEntry as LedgerEntry
    from zoo.schedules.ledger import read_ledger as read_ledger
    from zoo.schedules.merged_file import merge_checkpoints as merge_checkpoints
    from zoo.schedules.merging import decay_of_weights as decay_of_weights
    from zoo.schedules.merging import ema_weights as ema_weights
    from zoo.schedules.merging import merge_weights as merge_weights
    from zoo.schedules.merging import uniform_weights as uniform_weights
    from zoo.schedules.merging import weights_of as weights_of
    from zoo.schedules.merging import weights_of_shape as weights_of_shape
    from zoo.schedules.on_demand import DecayOnDemand as DecayOnDemand
    from zoo.schedules.power_law import PowerLaw as PowerLaw
    from zoo.schedules.power_law_fit import TrainingCurve as TrainingCurve
    from zoo.schedules.power_law_fit import fit_power_law as fit_power_law
    from zoo.schedules.schedule import RunSchedule as RunSchedule
    from zoo.schedules.schedule import Schedule as Schedule
    from zoo.schedules.schedule import SubRun as SubRun
    from zoo.schedules.segments import Budget as Budget
    from zoo.schedules.segments import Merge as Merge
    from zoo.schedules.segments import Segment as Segment
    from zoo.schedules.shapes import level as level
    from zoo.schedules.shapes import mean_level as mean_level

__getattr__, __dir__, __all__ = attach(__name__, __file__)
