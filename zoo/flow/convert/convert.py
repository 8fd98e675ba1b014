"""Published checkpoints as safetensors files that say what they are, and networks from such files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from zoo.flow.convert.attention import join_attention, split_attention
from zoo.flow.convert.layouts import AVERAGE, CURRENT, Recipe, TimeDirection, recognize
from zoo.flow.convert.modules import Contents, contents, is_network, training_arguments
from zoo.flow.convert.tensors import read_checkpoint
from zoo.flow.convert.time_reversal import drop_variance, reverse_time
from zoo.flow.networks.dhariwal_unet import DhariwalUNet
from zoo.flow.networks.dit import DiT
from zoo.flow.networks.edm2_unet import EDM2UNet
from zoo.flow.networks.song_unet import SongUNet
from zoo.flow.networks.unet import filter_kernel
from zoo.flow.preconditioning import EDMPreconditioning, Preconditioning, VelocityPrediction
from zoo.io import load_tensors, save_tensors

NETWORKS: dict[str, Any] = {kind.__name__: kind for kind in (SongUNet, DhariwalUNet, EDM2UNet, DiT)}
READINGS: dict[str, Any] = {kind.__name__: kind for kind in (EDMPreconditioning, VelocityPrediction)}
_KEYS = {
    "ema": ("ema", "ema_state_dict", "model_ema"),
    "net": ("net", "model", "model_state_dict", "state_dict"),
}


class Converted(NamedTuple):
    """A network with the weights of a converted checkpoint.

    Attributes:
        network: The network, in evaluation mode.
        preconditioning: What its output means.
        info: The header of the file: class, arguments, source and its sha256, what was left out.
    """

    network: nn.Module
    preconditioning: Preconditioning
    info: dict[str, Any]


def convert_checkpoint(
    source: str | Path,
    dest: str | Path,
    weights: Literal["ema", "net"] = "ema",
    heads: int | None = None,
    time_direction: TimeDirection | None = None,
) -> dict[str, Any]:
    """Converts a published checkpoint into a safetensors file, without executing anything in it.

    Checkpoints of EDM, ECT, CMT, EDM2, SiT, REPA and MeanFlow (PyTorch) are known. The tensors keep their
    types; a time with the data at t = 1 (SiT) is reversed, so that `VelocityPrediction` reads it.

    Args:
        source: The checkpoint: a pickle, or a file of torch.save.
        dest: The safetensors file to make.
        weights: The averaged weights ("ema") or those the optimizer updated ("net"), where it has both.
        heads: Attention heads (of a U-Net: at its largest width), where neither the file nor the published
            sizes say.
        time_direction: Where a DiT's data are, where the file does not say.

    Returns:
        What the header of the new file says.

    Raises:
        ValueError: the source cannot be read, is of no known layout, or has tensors too many or too few.
    """
    if Path(dest).suffix != ".safetensors":
        raise ValueError(f"dest must be a name that ends in .safetensors, got {dest}")
    if weights not in _KEYS:
        raise ValueError(f"weights must be 'ema' or 'net', got {weights!r}")
    if Path(source).suffix == ".safetensors":
        raise ValueError(
            f"{source} is already in safetensors: if zoo convert made it, give it to init_from or to a "
            "teacher as it is; if not, convert the checkpoint it came from (.pkl, .pt)"
        )
    value = read_checkpoint(source)
    try:
        found = contents(_select(value, weights))
        found.trained_with = training_arguments(value)
        recipe = recognize(found, heads, time_direction)
        state = _state(found, recipe)
    except ValueError as error:
        raise ValueError(f"{source} cannot be converted: {error}") from error
    info = {
        "network": {"class": recipe.network, "arguments": recipe.arguments},
        "preconditioning": recipe.preconditioning,
        "source": Path(source).name,
        "source_sha256": _sha256(source),
        "weights": weights,
        "time_reversed": recipe.time_direction == "data_at_1",
        "left_out": recipe.left_out,
    }
    save_tensors(dest, state, {"zoo.flow": json.dumps(info)})
    return info


def load_converted(path: str | Path) -> Converted:
    """The network of a converted checkpoint, with its weights in float32.

    Args:
        path: A file that `convert_checkpoint` made.

    Raises:
        ValueError: the file is not whole, or not such a file.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}: make it with zoo convert")
    state, header = load_tensors(path)
    if "zoo.flow" not in header:
        raise ValueError(f"{path} does not say what network it is of: it was not made by zoo convert")
    info = json.loads(header["zoo.flow"])
    reading = dict(info["preconditioning"])
    # Names are looked up in two short lists, and nowhere else: a header cannot have anything imported.
    kind, meaning = NETWORKS.get(info["network"]["class"]), READINGS.get(reading.pop("class"))
    if kind is None or meaning is None:
        raise ValueError(f"{path} is of a network or preconditioning that this version does not know: {info}")
    try:
        with torch.device("meta"):
            network = kind(**info["network"]["arguments"])
        network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path} holds other tensors than its header tells of: {error}") from error
    return Converted(network.eval(), meaning(**reading), info)


def official_state(network: nn.Module, time_direction: TimeDirection = "data_at_0") -> dict[str, Tensor]:
    """The weights of a network under the names of the official checkpoints.

    Args:
        network: A SongUNet, DhariwalUNet, EDM2UNet or DiT.
        time_direction: Where the data of a DiT shall be: "data_at_1" gives SiT's layout (without a learned
            variance), "data_at_0" that of REPA and MeanFlow.

    Raises:
        ValueError: it is another network.
    """
    state = dict(network.state_dict())
    if isinstance(network, DiT):
        if time_direction == "data_at_1":
            return reverse_time(state)
        return {name.replace("h_embedder.", "r_embedder."): value for name, value in state.items()}
    if isinstance(network, SongUNet) and network.two_times:
        return {AVERAGE + name: value for name, value in split_attention(state).items()}
    for kind, prefix in ((SongUNet, "model."), (DhariwalUNet, "model."), (EDM2UNet, "unet.")):
        if isinstance(network, kind):
            return {prefix + name: value for name, value in state.items()}
    raise ValueError(
        f"network must be one of {', '.join(NETWORKS)}, which have official layouts; got a "
        f"{type(network).__name__}"
    )


def _select(value: Any, weights: str) -> Any:
    """The network that is wanted; a file of one network has no choice."""
    whole = value.get("model", value) if isinstance(value, dict) else None
    if isinstance(whole, dict) and any(str(name).startswith(AVERAGE) for name in whole):
        prefix = AVERAGE if weights == "ema" else CURRENT
        return {name: item for name, item in whole.items() if str(name).startswith(prefix)}
    if is_network(value):
        return value
    if not isinstance(value, dict):
        raise ValueError("it holds neither a network nor a dict with one")
    if "pytorch-lightning_version" in value and "flow" in value:
        raise ValueError(
            "it is a checkpoint of zoo.flow, not a published one: init_from and a teacher take it as it is"
        )
    networks = {str(key): inner for key, item in value.items() if (inner := _unwrapped(item)) is not None}
    for key in _KEYS[weights]:
        if key in networks:
            return networks[key]
    other = next((name for name, keys in _KEYS.items() if set(keys) & set(networks)), None)
    hint = f": take weights={other}" if other else ""
    if networks and not other:
        hint = f": save one of them, such as {next(iter(networks))!r}, in a file of its own (torch.save)"
    raise ValueError(
        f"it holds no network as {weights!r}, but {', '.join(map(repr, networks)) or 'none at all'}{hint}"
    )


def _unwrapped(item: Any) -> Any:
    """A network, also where it is all that a dict has under "state_dict" or the like; None if it is none."""
    if is_network(item) or not isinstance(item, dict):
        return item if is_network(item) else None
    inner = [value for key, value in item.items() if str(key) in _KEYS["net"] and is_network(value)]
    return inner[0] if len(inner) == 1 else None


def _state(found: Contents, recipe: Recipe) -> dict[str, Tensor]:
    """Our state dict, compared key by key with what the network has."""
    with torch.device("meta"):
        network = NETWORKS[recipe.network](**recipe.arguments)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    shapes = {ours: found.tensors[theirs].shape for theirs, ours in recipe.names.items()}
    if recipe.variance_rows:
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            shapes[name] = (shapes[name][0] // 2, *shapes[name][1:]) if name in shapes else ()
    known = recipe.names.keys() | set(recipe.left_out)
    _compare(expected, shapes | {name: t.shape for name, t in found.tensors.items() if name not in known})
    state = {ours: found.tensors[theirs].read() for theirs, ours in recipe.names.items()}
    for name, value in state.items():
        if name.endswith("resample_filter"):  # the network computes with its own, which is the same
            _check_filter(name, value, recipe.arguments.get("resample_filter", [1, 1]))
    if recipe.variance_rows:
        state = drop_variance(state, recipe.arguments["patch_size"], recipe.arguments["in_channels"])
    if recipe.attention_apart:
        state = join_attention(state)
    return reverse_time(state) if recipe.time_direction == "data_at_1" else state


def _compare(expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = {
        "missing": [name for name in expected if name not in shapes],
        "unknown": [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} {shapes[name]} for {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    if any(wrong.values()):
        parts = [f"{len(names)} {what}: {', '.join(names)}" for what, names in wrong.items() if names]
        raise ValueError(f"its tensors do not fit the network that their shapes tell of; {'; '.join(parts)}")


def _check_filter(name: str, value: Tensor, taps: list[int]) -> None:
    if not torch.allclose(value.double(), filter_kernel(taps).double(), atol=1e-3):  # float16 has 3 digits
        raise ValueError(f"{name} is not the filter {taps} of the published networks: no other is supported")


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
