"""State dicts: which of a checkpoint's two sets of weights is meant, and how two of them differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from zoo.io import load_checkpoint

Weights = Literal["ema", "raw"]


def check_weights_name(weights: str, argument: str = "weights") -> None:
    """Refuses any name of a set of weights but "ema" and "raw"."""
    if weights not in ("ema", "raw"):
        raise ValueError(f"{argument} must be 'ema' or 'raw', got {weights!r}")


def checkpoint_weights(checkpoint: Mapping[str, Any], weights: str) -> Mapping[str, Tensor]:
    """The averaged weights of a Lightning checkpoint, or those that the optimizer updated.

    Args:
        checkpoint: Its contents.
        weights: ``"ema"`` for the average where the run kept one, ``"raw"`` for what the optimizer updated. A
            run without an average has one set, which both names mean.

    Raises:
        ValueError: ``weights`` is neither name.

    >>> import torch
    >>> checkpoint = {"state_dict": {"w": torch.ones(1)}, "current_model_state": {"w": torch.zeros(1)}}
    >>> checkpoint_weights(checkpoint, "ema")["w"].item(), checkpoint_weights(checkpoint, "raw")["w"].item()
    (1.0, 0.0)
    """
    check_weights_name(weights)
    # Lightning's WeightAveraging puts the average under `state_dict` and the raw weights beside it.
    averaged = checkpoint["state_dict"]
    return averaged if weights == "ema" else checkpoint.get("current_model_state", averaged)


@dataclass(frozen=True)
class WeightReport:
    """How the weights for a module compare with its own: names of parameters and buffers."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # in the module, not among the weights
    unexpected: tuple[str, ...]  # among the weights, not in the module
    mismatched: tuple[str, ...]  # in both, with other shapes

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors matched"
        for kind in ("missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            if names:
                text += f"; {len(names)} {kind} ({_some(names)})"
        return text


def compare(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> WeightReport:
    """Compares the names and shapes of a module's own state dict with those of another one.

    >>> import torch
    >>> own, other = {"a": torch.ones(1), "b": torch.ones(2)}, {"b": torch.ones(3), "c": torch.ones(1)}
    >>> str(compare(own, other))
    '0 tensors matched; 1 missing (a); 1 unexpected (c); 1 mismatched (b)'
    """
    matched = tuple(name for name in own if name in other and other[name].shape == own[name].shape)
    return WeightReport(
        matched=matched,
        missing=tuple(name for name in own if name not in other),
        unexpected=tuple(name for name in other if name not in own),
        mismatched=tuple(name for name in own if name in other and name not in matched),
    )


def differences(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """What keeps ``other`` from being loaded in place of ``own``, in words; nothing if they agree.

    >>> import torch
    >>> own, other = {"a": torch.ones(1), "b": torch.ones(2)}, {"b": torch.ones(3), "c": torch.ones(1)}
    >>> differences(own, other)
    '1 missing (a); 1 unknown (c); 1 of another shape (b is (3,) instead of (2,))'
    """
    report = compare(own, other)
    shapes = {name: (tuple(other[name].shape), tuple(own[name].shape)) for name in report.mismatched}
    parts = [
        ("missing", report.missing),
        ("unknown", report.unexpected),
        ("of another shape", [f"{name} is {a} instead of {b}" for name, (a, b) in shapes.items()]),
    ]
    return "; ".join(f"{len(names)} {words} ({_some(names)})" for words, names in parts if names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def load_weights(module: nn.Module, path: str | Path, weights: Weights = "ema") -> WeightReport:
    """Copies into ``module`` the tensors of a Lightning checkpoint whose names and shapes agree.

    Args:
        module: The module to fill.
        path: A checkpoint of a module with (some of) the same parameter names.
        weights: ``"ema"`` for the averaged weights where the run kept an average, ``"raw"`` for the weights
            that the optimizer updated. A run without an average has one set, which both names mean.

    Returns:
        What matched and what did not.

    Raises:
        ValueError: nothing matched, or ``weights`` is neither name.
    """
    check_weights_name(weights)  # before the file is read
    source = checkpoint_weights(load_checkpoint(path), weights)
    report = compare(module.state_dict(), source)
    if not report.matched:
        raise ValueError(f"no tensor of {path} fits {type(module).__name__}: {report}")
    module.load_state_dict({name: source[name] for name in report.matched}, strict=False)
    return report
