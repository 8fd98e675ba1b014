"""Networks F(z, t, h, label): one time input t, or a second one h = t - r for mean velocities.

Whatever stands in their place takes the same arguments and has three attributes: ``shape``, the shape of one
item; ``num_classes``, the number of classes (label ``num_classes`` means unconditional) or None; and
``two_times``, whether it has the second time input.
"""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.flow.networks.dhariwal_unet import DhariwalUNet as DhariwalUNet
    from zoo.flow.networks.dit import DiT as DiT
    from zoo.flow.networks.edm2_unet import EDM2UNet as EDM2UNet
    from zoo.flow.networks.mlp import MLP as MLP
    from zoo.flow.networks.song_unet import SongUNet as SongUNet

__getattr__, __dir__, __all__ = attach(__name__, __file__)
