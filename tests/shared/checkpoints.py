"""Checkpoints of the official layouts, fabricated: the same pickles, with the zoo's networks inside."""

import pickle
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.flow import DhariwalUNet, DiT, EDM2UNet, SongUNet

SOURCE = "raise SystemExit('the source code in the checkpoint was run')"
SMALL: dict[str, Any] = {
    "input_size": 8, "in_channels": 2, "width": 8, "width_multipliers": [1, 2], "blocks": 1,
    "attention_sizes": [4], "num_classes": 3, "two_times": False,
}  # fmt: skip
NCSN: dict[str, Any] = {
    "embedding": "fourier", "encoder": "residual", "resample_filter": [1, 3, 3, 1], "time_multiplier": 2,
}  # fmt: skip
UNETS: dict[str, Callable[..., nn.Module]] = {
    "ddpm++": lambda **changes: SongUNet(**{**SMALL, "augment_dim": 9, **changes}),
    "ncsn++": lambda **changes: SongUNet(**{**SMALL, **NCSN, **changes}),
    "adm": lambda **changes: DhariwalUNet(**{**SMALL, "head_width": 8, **changes}),
    "edm2": lambda **changes: EDM2UNet(**{**SMALL, "head_width": 8, **changes}),
}


def dit(width: int = 16, **changes: Any) -> DiT:
    """A small DiT with one time input."""
    sizes = {"input_size": 8, "in_channels": 2, "patch_size": 4, "depth": 2, "heads": 2, "num_classes": 3}
    return DiT(**{"width": width, "two_times": False, **sizes, **changes})


def wake(network: Any, seed: int = 0) -> Any:
    """The network with all parameters away from their zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.eval()


class Persistent:
    """Pickles as an object of `torch_utils.persistence` does."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta: Any = {
            "type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name, "state": state,
        }  # fmt: skip

    def __reduce__(self) -> Any:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def persistent(module: nn.Module, class_name: str, **attributes: Any) -> Persistent:
    """A module and its children as the official pickles hold them: their own classes are persistent."""
    state = {**nn.Module().__dict__, "training": False, **attributes}
    state["_parameters"], state["_buffers"] = dict(module._parameters), dict(module._buffers)
    children: dict[str, Any] = {}
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleDict):
            children[name] = nn.ModuleDict()
            for key, inner in child.named_children():
                children[name]._modules[key] = persistent(inner, type(inner).__name__)  # type: ignore
        else:
            children[name] = persistent(child, type(child).__name__)
    state["_modules"] = children
    if getattr(module, "heads", 0):
        state["num_heads"] = module.heads
    return Persistent(class_name, state)


def preconditioned(network: nn.Module, class_name: str | None = None, **attributes: Any) -> Persistent:
    """A network inside the module that reads it, which is what the official pickles hold."""
    whole, magnitude = nn.Module(), isinstance(network, EDM2UNet)
    whole.add_module("unet" if magnitude else "model", network)
    if magnitude:
        whole.logvar_linear = nn.Linear(4, 1, bias=False)
    class_name = class_name or ("Precond" if magnitude else "EDMPrecond")
    return persistent(whole, class_name, **{"sigma_data": 0.5, **attributes})


@contextmanager
def official_modules() -> Iterator[None]:
    """While files are written, there is a `torch_utils` to name; when they are read, there is none."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("the checkpoint was executed")

    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    made = {"torch_utils": package, "torch_utils.persistence": module}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def write_pickle(path: Path, value: Any, protocol: int = 4) -> Path:
    """Writes a value as the official code writes checkpoints."""
    with official_modules():
        path.write_bytes(pickle.dumps(value, protocol))
    return path
