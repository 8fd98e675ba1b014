"""Settings of a published network that its tensors do not show, compared with those of the networks here.

Whole modules are pickled with their plain attributes. Some of them change what the network computes, are the
same in every published checkpoint, and are fixed here: a file with another value is refused, since the
network here would compute something else. A bare state dict has none of them, and is taken as published.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any

from zoo.flow.convert.modules import Contents
from zoo.pickles import Global, Inert, describe

_UNET = {"max_positions": 10_000, "fused_resample": False}
FIXED: dict[str, dict[str, Any]] = {
    "SongUNet": {
        **_UNET,
        "skip_scale": math.sqrt(0.5),
        "eps": 1e-6,
        "adaptive_scale": False,
        "endpoint": True,
    },
    "DhariwalUNet": {**_UNET, "skip_scale": 1.0, "eps": 1e-5, "adaptive_scale": True, "endpoint": False},
    "EDM2UNet": {"res_balance": 0.3, "attn_balance": 0.3, "clip_act": 256, "resample_filter": [1, 1]},
    "DiT": {"eps": 1e-6, "approximate": "tanh"},
}
_TRAINED = {"path_type": "linear", "prediction": "velocity"}  # of SiT and REPA, which has "v" for the latter


def check_settings(found: Contents, network: str) -> None:
    """Refuses a checkpoint whose network computes something else than the one here.

    Args:
        found: What the checkpoint holds.
        network: Name of the network's class here.

    Raises:
        ValueError: a setting has a value that the network here does not have.
    """
    for name, attributes in found.attributes.items():
        for setting, expected in FIXED[network].items():
            if setting == "fused_resample" and name.endswith("_aux_residual"):
                expected = True  # NCSN++ convolves before it filters on the way of the shrunken image
            if setting in attributes and not _same(value := plain(attributes[setting]), expected):
                raise ValueError(
                    f"{name or 'its network'} has {setting}={describe(value)}, and {network} computes with "
                    f"{expected}, as the published networks do: no other is supported"
                )
    if network == "DiT":
        for setting, expected in _TRAINED.items():
            value = plain(found.trained_with.get(setting, expected))
            if not isinstance(value, str) or value.lower() not in (expected, expected[0]):
                raise ValueError(
                    f"it was trained with {setting}={describe(value)}, and only networks of "
                    f"{setting}={expected} can be converted: their output is read as a velocity on the "
                    "linear path"
                )


def plain(value: Any) -> Any:
    """A value, with a scalar of NumPy as a number; what cannot be read stays what it is."""
    if isinstance(value, Inert) and isinstance(value.made_by, Global) and value.made_by.name == "scalar":
        kind, data = value.arguments if len(value.arguments) == 2 else (None, None)
        code = kind.arguments[0] if isinstance(kind, Inert) and kind.arguments else None
        formats = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i"}
        if code in formats and isinstance(data, bytes) and len(data) == int(code[1]):
            return struct.unpack(formats[code], data)[0]
    return value


def number(attributes: Mapping[Any, Any], name: str, default: float) -> float:
    """A number among the attributes of a module, or the default where it has none of that name.

    Raises:
        ValueError: it is no number.
    """
    value = plain(attributes.get(name, default))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"its {name} is {describe(value)}, and must be a finite number")
    return float(value)


def _same(value: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(value, int | float):
        return math.isclose(value, expected, rel_tol=1e-6)
    return bool(list(value) == expected if isinstance(value, tuple) else value == expected)
