"""The layouts of published checkpoints: which network they are of, with which arguments, under which names.

Sizes are read from the tensors' own shapes. The names are those of the networks here behind a prefix, but for
a few; whatever is left over, missing or of another shape is an error.

* EDM, ECT, CMT (Karras et al. 2022, arXiv 2206.00364): ``model.*`` of a SongUNet or DhariwalUNet.
* EDM2 (Karras et al. 2023, arXiv 2312.02696): ``unet.*``; the learned uncertainty ``logvar_*`` is left out.
* SiT (Ma et al. 2024, arXiv 2401.08740), REPA (Yu et al. 2024, arXiv 2410.06940), MeanFlow in PyTorch: a DiT.
  REPA's ``projectors.*`` are left out; the second time input of the latter is called ``r_embedder``.
* MeanFlow on CIFAR-10 in PyTorch: a SongUNet with two time inputs, in one state dict as ``net.*`` with its
  average ``net_ema.*`` (and others of other decays, ``net_ema1.*`` and so on, which are not taken). Its
  attention has queries, keys and values one after another, where EDM's alternate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zoo.flow.convert.modules import Contents
from zoo.flow.convert.settings import check_settings, number, plain

TimeDirection = Literal["data_at_0", "data_at_1"]
CURRENT, AVERAGE = "net.", "net_ema."  # before the names of MeanFlow's CIFAR-10 network
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of the published widths of DiT and SiT


@dataclass
class Recipe:
    """How a checkpoint becomes a network.

    Attributes:
        network: Name of its class.
        arguments: Arguments of its class, beside the defaults.
        names: Our names of its tensors, by theirs.
        preconditioning: Name and numbers of what its output means.
        left_out: Names of tensors that have no place in the network.
        variance_rows: Whether the last layer has a second half of channels, a variance, to be left out.
        time_direction: Where its data are.
        attention_apart: Whether queries, keys and values come one after another, rather than alternating.
    """

    network: str
    arguments: dict[str, Any]
    names: dict[str, str]
    preconditioning: dict[str, Any]
    left_out: list[str] = field(default_factory=list)
    variance_rows: bool = False
    time_direction: TimeDirection = "data_at_0"
    attention_apart: bool = False


def recognize(
    found: Contents, heads: int | None = None, time_direction: TimeDirection | None = None
) -> Recipe:
    """The recipe of a checkpoint.

    Args:
        found: What it holds.
        heads: Attention heads, where neither the file nor the published sizes say.
        time_direction: Where a DiT's data are, where the file does not say.

    Raises:
        ValueError: it is of no known layout, of one that needs ``heads`` or ``time_direction``, or of a
            network with settings that the networks here do not have.
    """
    recipe = _recipe(found, heads, time_direction)
    check_settings(found, recipe.network)
    return recipe


def _recipe(found: Contents, heads: int | None, time_direction: TimeDirection | None) -> Recipe:
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    for prefix in ("model.", "unet.", "module.", CURRENT, AVERAGE, ""):
        inner = {name.removeprefix(prefix): s for name, s in shapes.items() if name.startswith(prefix)}
        if "emb_fourier.freqs" in inner and "out_gain" in inner:
            return _edm2(found, inner, prefix, heads)
        if "map_layer0.weight" in inner and any(name.startswith("enc.") for name in inner):
            return _edm(found, inner, prefix, heads)
        if "x_embedder.proj.weight" in inner and "t_embedder.mlp.0.weight" in inner:
            return _sit(found, inner, prefix, heads, time_direction)
    first = ", ".join(list(shapes)[:3]) or "none at all"
    raise ValueError(
        f"its tensors ({first}) are of no known network: EDM, ECT, CMT, EDM2, SiT, REPA and MeanFlow "
        "(PyTorch) can be converted"
    )


def _edm(found: Contents, shapes: Mapping[str, Sequence[int]], prefix: str, heads: int | None) -> Recipe:
    is_song = not any(name.startswith("out_conv") for name in shapes)
    arguments = _unet(shapes)
    outputs = arguments.pop("outputs")
    first = arguments.pop("first")
    two_times = prefix in (CURRENT, AVERAGE)
    features, condition = shapes["map_layer0.weight"][1], shapes["map_layer0.weight"][0]
    features //= 2 if two_times else 1
    width = first if is_song else features
    arguments |= {
        "width": width,
        "width_multipliers": [_times(size, width, "features") for size in outputs],
        "num_classes": shapes["map_label.weight"][1] if "map_label.weight" in shapes else None,
        "augment_dim": shapes["map_augment.weight"][1] if "map_augment.weight" in shapes else 0,
        "condition_multiplier": _times(condition, width, "features of the condition"),
        "two_times": two_times,
    }
    if is_song:
        numbers = {plain(attributes.get("num_heads", 0)) for attributes in found.attributes.values()}
        if numbers - {0, 1}:
            raise ValueError(
                f"its blocks have {sorted(map(str, numbers))} attention heads, and DDPM++ has one"
            )
        taps = [shape[-1] for name, shape in shapes.items() if name.endswith("resample_filter")]
        arguments |= {
            "embedding": "fourier" if "map_noise.freqs" in shapes else "sinusoids",
            "encoder": "residual" if any("_aux_residual" in name for name in shapes) else "plain",
            "resample_filter": [1, 3, 3, 1] if 4 in taps else [1, 1],
            "time_multiplier": _times(features, width, "features of a time"),
        }
    else:
        arguments["head_width"] = _head_width(found, prefix, shapes, "qkv", heads)
    return Recipe(
        "SongUNet" if is_song else "DhariwalUNet",
        arguments,
        {prefix + name: name for name in shapes},
        {"class": "VelocityPrediction"} if two_times else _edm_reading(found),
        attention_apart=two_times,
    )


def _edm2(found: Contents, shapes: Mapping[str, Sequence[int]], prefix: str, heads: int | None) -> Recipe:
    arguments = _unet(shapes)
    outputs, width = arguments.pop("outputs"), arguments.pop("first")
    arguments["in_channels"] -= 1  # the channel of ones
    attributes = found.attributes.get(prefix.rstrip("."), {})
    arguments |= {
        "width": width,
        "width_multipliers": [_times(size, width, "features") for size in outputs],
        "num_classes": shapes["emb_label.weight"][1] if "emb_label.weight" in shapes else None,
        "head_width": _head_width(found, prefix, shapes, "attn_qkv", heads),
        "label_balance": number(attributes, "label_balance", 0.5),
        "concat_balance": number(attributes, "concat_balance", 0.5),
        "two_times": False,
    }
    left_out = [name for name in found.tensors if name.removeprefix(prefix).startswith("logvar_")]
    names = {prefix + name: name for name in shapes if prefix + name not in left_out}
    return Recipe("EDM2UNet", arguments, names, _edm_reading(found), left_out)


def _sit(
    found: Contents,
    shapes: Mapping[str, Sequence[int]],
    prefix: str,
    heads: int | None,
    time_direction: TimeDirection | None,
) -> Recipe:
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    if "pos_embed" not in shapes or "final_layer.linear.weight" not in shapes:
        raise ValueError("it looks like a DiT, but has no pos_embed or no final_layer.linear.weight")
    rows = shapes["final_layer.linear.weight"][0]
    if rows not in (patch * patch * channels, 2 * patch * patch * channels):
        raise ValueError(
            f"its final layer gives {rows} numbers for a patch of {patch} x {patch} x {channels}: expected "
            "as many, or twice as many with a learned variance"
        )
    two_times = any(name.startswith(("r_embedder.", "h_embedder.")) for name in shapes)
    said = plain(found.attributes.get(f"{prefix}blocks.0.attn", {}).get("num_heads"))
    if heads is None and type(said) is int:
        heads = said
    if heads is None:
        if width not in HEADS:
            raise ValueError(f"nothing in it says how many heads a width of {width} has: give heads")
        heads = HEADS[width]
    variance = rows == 2 * patch * patch * channels
    if time_direction is None:
        aligned = any(name.startswith("projectors.") for name in shapes)
        if not (variance or two_times or aligned):
            raise ValueError(
                "nothing in it says where its data are: give time_direction=data_at_1 for SiT, or "
                "time_direction=data_at_0 for REPA and MeanFlow"
            )
        time_direction = "data_at_1" if variance and not two_times and not aligned else "data_at_0"
    classes = shapes.get("y_embedder.embedding_table.weight")
    arguments = {
        "input_size": math.isqrt(shapes["pos_embed"][1]) * patch,
        "in_channels": channels,
        "patch_size": patch,
        "width": width,
        "depth": 1
        + max((int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")), default=-1),
        "heads": heads,
        "num_classes": None if classes is None else classes[0] - 1,
        "mlp_ratio": shapes.get("blocks.0.mlp.fc1.weight", (4 * width,))[0] / width,
        "two_times": two_times,
    }
    names = {
        prefix + name: name.replace("r_embedder.", "h_embedder.")
        for name in shapes
        if not name.startswith("projectors.")
    }
    left_out = [prefix + name for name in shapes if name.startswith("projectors.")]
    return Recipe(
        "DiT", arguments, names, {"class": "VelocityPrediction"}, left_out, variance, time_direction
    )


def _unet(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Sizes of any U-Net, and its features: of the first convolution (first), of each size (outputs)."""
    sides: dict[int, dict[str, str]] = {}
    for name in shapes:
        part = name.split(".")
        side, _, layer = part[1].partition("_") if len(part) > 2 and part[0] == "enc" else ("", "", "")
        if side.partition("x")[0].isdecimal() and layer:
            sides.setdefault(int(side.partition("x")[0]), {}).setdefault(layer, f"enc.{part[1]}")
    if not sides:
        raise ValueError("it looks like a U-Net without an encoder")
    size = max(sides)
    first = shapes.get(f"enc.{size}x{size}_conv.weight")
    ordered = [sides[side] for side in sorted(sides, reverse=True)]
    outputs = []
    for layers in ordered:
        last = layers.get("block0", "")
        shape = shapes.get(f"{last}.conv1.weight", shapes.get(f"{last}.conv_res1.weight"))
        if shape is None:
            raise ValueError("it looks like a U-Net, but some size of its encoder has no block")
        outputs.append(shape[0])
    if first is None or len(first) != 4:
        raise ValueError(f"it looks like a U-Net, but has no enc.{size}x{size}_conv.weight")
    return {
        "input_size": size,
        "in_channels": first[1],
        "first": first[0],
        "outputs": outputs,
        "blocks": sum(layer.startswith("block") for layer in ordered[0]),
        "attention_sizes": [
            side
            for side, layers in sorted(sides.items(), reverse=True)
            if any(f"{layers.get('block0')}.{key}.weight" in shapes for key in ("qkv", "attn_qkv"))
        ],
    }


def _times(size: int, unit: int, what: str) -> int:
    if unit < 1 or size % unit:
        raise ValueError(f"its {what} ({size}) are no multiple of its width ({unit})")
    return size // unit


def _head_width(
    found: Contents, prefix: str, shapes: Mapping[str, Sequence[int]], layer: str, heads: int | None
) -> int:
    """Features of an attention head: by the file's own word, by ``heads`` at its last size, or 64."""
    suffix = f".{layer}.weight"
    widths = {name.removesuffix(suffix): shape[1] for name, shape in shapes.items() if name.endswith(suffix)}
    if not widths:
        return 64
    said = {
        width // count
        for name, width in widths.items()
        if type(count := plain(found.attributes.get(prefix + name, {}).get("num_heads"))) is int and count > 0
    }
    if not said:
        said = {64} if heads is None else {max(widths.values()) // heads}
    if len(said) > 1 or any(width % said_width for width in widths.values() for said_width in said):
        raise ValueError(
            f"its attention has {sorted(set(widths.values()))} features, which heads of {sorted(said)} do "
            "not divide: give heads, the number at the largest width"
        )
    return said.pop()


def _edm_reading(found: Contents) -> dict[str, Any]:
    """The preconditioning of the outermost module; of a bare state dict, EDM's."""
    kind = found.kinds.get("", "")
    if kind in ("VPPrecond", "VEPrecond", "iDDPMPrecond"):
        raise ValueError(
            f"its network is read by {kind}, not by EDM's preconditioning: it cannot be converted"
        )
    sigma = number(found.attributes.get("", {}), "sigma_data", 0.5)
    return {"class": "EDMPreconditioning", "sigma_data": sigma}
