"""Learning-rate schedules as plans: WSD, WSD-S and their peers as data that is seen before it is paid for.

WSD-S and the river-valley landscape: Wen et al. 2024, arXiv 2410.05192. The callback
`zoo.callbacks.WSDS` runs a `Schedule` under any LightningModule; `zoo plan CONFIG` draws the one of a config.
"""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.schedules.builders import constant as constant
    from zoo.schedules.builders import cosine as cosine
    from zoo.schedules.builders import cyclic_cosine as cyclic_cosine
    from zoo.schedules.builders import from_breakpoints as from_breakpoints
    from zoo.schedules.builders import wsd as wsd
    from zoo.schedules.builders import wsds as wsds
    from zoo.schedules.builders import wsm as wsm
    from zoo.schedules.learning_rate import InverseSquareRootLR as InverseSquareRootLR
    from zoo.schedules.learning_rate import ScheduleLR as ScheduleLR
    from zoo.schedules.ledger import Entry as Entry
    from zoo.schedules.ledger import read_ledger as read_ledger
    from zoo.schedules.on_demand import DecayOnDemand as DecayOnDemand
    from zoo.schedules.schedule import Budget as Budget
    from zoo.schedules.schedule import Leg as Leg
    from zoo.schedules.schedule import Merge as Merge
    from zoo.schedules.schedule import Schedule as Schedule
    from zoo.schedules.schedule import Segment as Segment
    from zoo.schedules.shapes import level as level
    from zoo.schedules.shapes import mean_level as mean_level

__getattr__, __dir__, __all__ = attach(__name__, __file__)
