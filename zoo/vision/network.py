"""Networks of timm by name, with weights drawn from a seed or read from a local file."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo._suggest import suggest


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
        ValueError: there is no such model, it does not take such options, or the file does not fit it.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{suggest(name, timm.list_models())}")
    if taken := {"pretrained", "num_classes", "checkpoint_path"} & options.keys():
        raise ValueError(f"options must not hold {sorted(taken)[0]!r}: that is an argument of its own")
    place = "meta" if torch.get_default_device().type == "meta" else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(place):
        torch.default_generator.manual_seed(seed)
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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise ValueError(f"pretrained={path!r}: there is no such file")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"pretrained={path!r} is not a file of safetensors: {error}") from error
    wanted = network.state_dict()
    head = _head(network)
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape)
    if other and all(name.rpartition(".")[0] in head for name in other):
        found = {name: value for name, value in found.items() if name not in other}
        other = []
    if missing or unexpected or other:
        parts = (("lacks", missing), ("has, unasked,", unexpected), ("has other shapes of", other))
        said = "; ".join(f"{word} {', '.join(names[:3])} ({len(names)})" for word, names in parts if names)
        raise ValueError(f"pretrained={path!r} does not fit the network: it {said}")
    network.load_state_dict(found, strict=False)


def _head(network: nn.Module) -> set[str]:
    """Names of the last layer: timm says it in the model's configuration."""
    config: Any = network.pretrained_cfg
    named = config.get("classifier")
    return {named} if isinstance(named, str) else set(named or ())
