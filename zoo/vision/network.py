"""Networks of timm by name, with weights drawn from a seed or read from a local file."""

from typing import Any

import torch
from torch import nn

from zoo import rng
from zoo._suggest import suggest
from zoo.io import load_tensors
from zoo.state_dicts import compare, differences


def build_network(
    name: str, options: dict[str, Any], num_classes: int, seed: int, pretrained: str | None = None
) -> nn.Module:
    """A network of timm that classifies images.

    Weights are drawn from ``seed`` on the CPU, and the global random state is left as it was; within ``with
    torch.device("meta")`` nothing is drawn or read.

    Args:
        name: Of timm's models (`timm.list_models`); nothing is downloaded.
        options: Arguments of `timm.create_model` for the model.
        num_classes: Classes.
        seed: Seed of the weights.
        pretrained: File of the model's weights in safetensors; those of the last layer may be of other
            classes, and are then left out.

    Raises:
        ValueError: timm has no model of the name, it does not take the options, or the file does not fit.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{suggest(name, timm.list_models())}")
    if taken := {"pretrained", "num_classes", "checkpoint_path"} & options.keys():
        raise ValueError(f"options must not hold {sorted(taken)[0]!r}: that is an argument of its own")
    place = "meta" if torch.get_default_device().type == "meta" else "cpu"
    with rng.seeded(seed), torch.device(place):
        try:
            network = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ValueError(f"options={options} do not make a {name}: {error}") from error
    if pretrained is not None and place == "cpu":
        _load(network, pretrained)
    return network


def image_shape(network: nn.Module) -> tuple[int, int | None]:
    """Channels and side of the images that a network takes; the side is None where any will do."""
    config: Any = network.pretrained_cfg
    patches = getattr(network, "patch_embed", None)
    side = getattr(patches, "img_size", None)
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else config["input_size"][0]
    return channels, None if side is None or getattr(patches, "dynamic_img_pad", False) else int(side[0])


def _load(network: nn.Module, path: str) -> None:
    try:
        found, _ = load_tensors(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"pretrained={path!r} cannot be read: {error}") from error
    own = network.state_dict()
    other = compare(own, found).mismatched
    if all(name.rpartition(".")[0] in _head(network) for name in other):
        own, found = ({k: v for k, v in weights.items() if k not in other} for weights in (own, found))
    if problem := differences(own, found):
        raise ValueError(f"pretrained={path!r} does not fit the network: {problem}")
    network.load_state_dict(found, strict=False)  # all but a last layer of other classes


def _head(network: nn.Module) -> set[str]:
    """Names of the last layer: timm says it in the model's configuration."""
    config: Any = network.pretrained_cfg
    named = config.get("classifier")
    return {named} if isinstance(named, str) else set(named or ())
