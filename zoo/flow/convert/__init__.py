"""Published checkpoints (EDM, EDM2, ECT, CMT, SiT, REPA, MeanFlow), read without executing what they hold."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.flow.convert.convert import convert_checkpoint as convert_checkpoint
    from zoo.flow.convert.convert import load_converted as load_converted
    from zoo.flow.convert.convert import official_state as official_state
    from zoo.flow.convert.tensors import read_checkpoint as read_checkpoint
    from zoo.flow.convert.time_reversal import reverse_time as reverse_time

__getattr__, __dir__, __all__ = attach(__name__, __file__)
