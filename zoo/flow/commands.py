"""The command line's verbs of this room."""

import sys
from pathlib import Path
from typing import Literal


def convert(
    source: Path,
    dest: Path,
    weights: Literal["ema", "net"] = "ema",
    heads: int | None = None,
    time_direction: Literal["data_at_0", "data_at_1"] | None = None,
) -> None:
    """Converts a published checkpoint (EDM, EDM2, ECT, CMT, SiT, REPA, MeanFlow); nothing in it is executed.

    Args:
        source: The checkpoint, .pkl or .pt.
        dest: The .safetensors file to make.
        weights: The averaged weights (ema) or those the optimizer updated (net), where it has both.
        heads: Attention heads (of a U-Net: at its largest width), where the file does not say.
        time_direction: Where the data of a transformer are, where the file does not say: data_at_1 for SiT.
    """
    from zoo.flow.convert.convert import convert_checkpoint

    info = convert_checkpoint(source, dest, weights, heads, time_direction)
    arguments = ", ".join(f"{name}={value}" for name, value in info["network"]["arguments"].items())
    notes = "; its time was reversed, the data are at t = 0" if info["time_reversed"] else ""
    if info["left_out"]:
        notes += f"; {len(info['left_out'])} tensors left out ({', '.join(info['left_out'][:3])}, ...)"
    sys.stdout.write(
        f"{dest} written: {info['network']['class']}({arguments}), read by "
        f"{info['preconditioning']['class']}{notes}\n"
    )
