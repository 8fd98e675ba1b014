"""Networks with two clocks, u(z, t, t - r, label).

Whatever stands in their place takes the same arguments and has two attributes: ``shape``, the shape of one
item, and ``num_classes``, the number of classes (label ``num_classes`` means "no class") or None.
"""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.flow.networks.dit import DiT as DiT
    from zoo.flow.networks.mlp import MLP as MLP

__getattr__, __dir__, __all__ = attach(__name__, __file__)
