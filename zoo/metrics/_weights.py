"""Weights of published networks from local files: tensors and plain containers, never objects."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.io import load_tensors
from zoo.state_dicts import differences


def read_weights(path: str | Path, argument: str) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file, or in any other file that `torch.load` reads.

    Args:
        path: The file; ``~`` is the home folder.
        argument: Name of the argument that gave it, for the messages.

    Raises:
        ValueError: the file does not exist, it is damaged, or it holds anything but tensors by name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{argument}={str(path)!r}: no such file. Download the weights and give their path")
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{argument}={str(path)!r} cannot be loaded as tensors: {cause}. A file cut short is damaged; "
            "one that holds Python objects is refused, since loading it could run code"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{argument}={str(path)!r} must hold a state dict, tensors by name, got {type(state).__name__}"
        )
    return dict(state)


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies ``state`` into ``module``, every name with its shape, and nothing else.

    Raises:
        ValueError: a name is missing, unknown, or has another shape.
    """
    if found := differences(module.state_dict(), state):
        raise ValueError(f"{source} does not fit {type(module).__name__}: {found}")
    module.load_state_dict(state)
