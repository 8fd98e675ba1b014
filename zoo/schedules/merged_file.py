"""A weighted mean of checkpoints as a file, in the memory of two models for any number of them.

Files are mapped and read one after the other, a part of the tensors at a time. A mean of weights fits
WSM (arXiv 2507.17634), LAWA, EMA and soups; the weights come from `weights_of_shape` and its kin.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.io import atomic_path, load_checkpoint, load_tensors, save_tensors
from zoo.schedules.merging import check_weights
from zoo.state_dicts import checkpoint_weights

Take = Literal["raw", "ema"]
# What makes a checkpoint one to go on training from, which a mean of several is not.
_TRAINING = (
    "optimizer_states",
    "lr_schedulers",
    "callbacks",
    "loops",
    "current_model_state",
    "averaging_state",
    "native_amp_scaling_state",
    "MixedPrecision",
)
_PARTS = 8  # of a model that are summed up one after the other
_MINIMUM = 64 << 20  # bytes of such a part, below which opening files again costs more than it saves


def merge_checkpoints(
    paths: Sequence[str | Path], weights: Sequence[float], dest: str | Path, take: Take = "raw"
) -> None:
    """Writes the weighted mean of checkpoints.

    Sums are taken in float64 and rounded once to each tensor's own type, so the order of the files makes
    no difference beyond that rounding. What is not a floating-point number (counters, masks) is the last
    file's. Running statistics of batch normalization are averaged like weights, which is not what the
    averaged weights would measure: re-estimate them (`torch.optim.swa_utils.update_bn`).

    Args:
        paths: Lightning checkpoints (``.ckpt``, read with ``weights_only=True``) or safetensors files, all
            of one model, the latest last.
        weights: One for each, with sum 1; a negative one extrapolates.
        dest: The file to make. ``.safetensors`` holds the tensors, their checksums and, as metadata, where
            they come from. ``.ckpt`` is the last checkpoint (hyperparameters, step) with these weights and
            the entry ``merged``; ``init_from`` starts a run from it and ``zoo test --ckpt_path`` tests it.
            It holds no state of optimizer, loops or callbacks, so it cannot be resumed by accident.
        take: Of checkpoints that keep an average beside the weights: ``raw`` for what the optimizer
            updated, ``ema`` for the average. Files without one have one set, which both names mean.

    Raises:
        ValueError: weights that make no mean or are not one for each file, a ``dest`` of another kind, a
            ``.ckpt`` of safetensors files, or files that differ in names, shapes or types. Nothing is
            written then.
        FileNotFoundError: a file is missing.
    """
    files, target = [Path(path) for path in paths], Path(dest)
    if len(files) != len(weights) or not files:
        raise ValueError(f"each file needs one weight, got {len(files)} files and {len(weights)} weights")
    check_weights(weights)
    if take not in ("raw", "ema"):
        raise ValueError(f"take must be 'raw' or 'ema', got {take!r}")
    if target.suffix not in (".safetensors", ".ckpt"):
        raise ValueError(f"dest must end in .safetensors or .ckpt, got {target}")
    if target.suffix == ".ckpt" and files[-1].suffix == ".safetensors":
        raise ValueError(
            f"{files[-1]} holds tensors alone, and a .ckpt also needs what a Lightning checkpoint says of "
            "its module: let dest end in .safetensors, or merge .ckpt files"
        )
    _check_alike(files, take)
    merged = _mean(files, weights, take)
    facts = {"sources": [str(file) for file in files], "weights": [float(w) for w in weights], "take": take}
    if target.suffix == ".safetensors":
        save_tensors(target, merged, {"merged": json.dumps(facts)})
        return
    # Mapped: what is kept of it is small, and the optimizer's state is never read.
    last = load_checkpoint(files[-1], lazy=True)
    whole: dict[str, Any] = {key: value for key, value in last.items() if key not in _TRAINING}
    with atomic_path(target) as temporary:
        torch.save(whole | {"state_dict": merged, "merged": facts}, temporary)


def _open(path: Path, take: Take) -> Mapping[str, Tensor]:
    """The weights of a file, mapped: a tensor is read when it is used."""
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"no file of tensors at {path}")
        return load_tensors(path, lazy=True)[0]
    checkpoint = load_checkpoint(path, lazy=True)
    source = checkpoint_weights(checkpoint, take)
    state: dict[str, Tensor] = {name: value for name, value in source.items() if isinstance(value, Tensor)}
    return state


def _check_alike(files: Sequence[Path], take: Take) -> None:
    """Compares names, shapes and types of all files with the first's, without reading values."""
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for file in files:
        found = {name: (tuple(t.shape), t.dtype) for name, t in _open(file, take).items()}
        expected = expected or found
        for name in sorted(expected.keys() | found.keys()):
            if name not in found or name not in expected:
                has, lacks = (file, files[0]) if name in found else (files[0], file)
                raise ValueError(
                    f"tensor {name!r} is in {has} and not in {lacks}: only checkpoints of one model can be "
                    "merged"
                )
            if expected[name] != found[name]:
                (shape, dtype), (other, kind) = expected[name], found[name]
                raise ValueError(
                    f"tensor {name!r} is {shape} of {dtype} in {files[0]} and {other} of {kind} in {file}: "
                    "only checkpoints of one model and one precision can be merged"
                )


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names in groups of about an eighth of the model, so that little is held in float64 at a time."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    limit, part, held = max(sum(sizes.values()) // _PARTS, _MINIMUM), list[str](), 0
    for name, size in sizes.items():
        if part and held + size > limit:
            yield part
            part, held = [], 0
        part.append(name)
        held += size
    if part:
        yield part


def _mean(files: Sequence[Path], weights: Sequence[float], take: Take) -> dict[str, Tensor]:
    shapes = _open(files[-1], take)
    parts = list(_parts(shapes))
    sizes = {name: _real(tensor).numel() for name, tensor in shapes.items() if _averages(tensor)}
    # Buffers for all parts and tensors: pieces freed between those that stay would scatter the memory.
    room = max((sum(sizes.get(name, 0) for name in part) for part in parts), default=0)
    sums = torch.empty(room, dtype=torch.float64)
    wide = torch.empty(max(sizes.values(), default=0), dtype=torch.float64)
    merged: dict[str, Tensor] = {}
    for part in parts:
        names = [name for name in part if name in sizes]
        lengths = [sizes[name] for name in names]
        places = sums[: sum(lengths)].zero_().split(lengths) if names else ()
        totals = dict(zip(names, places, strict=True))
        for file, weight in zip(files, weights, strict=True):
            # Opened again for each part: the pages of a mapping count as memory until it is closed.
            tensors = _open(file, take)
            for name, total in totals.items():
                total.add_(wide[: len(total)].copy_(_real(tensors[name]).flatten()), alpha=weight)
        for name in part:
            merged[name] = tensors[name].clone()
            if name in totals:
                _real(merged[name]).copy_(totals[name].view(_real(merged[name]).shape))
        del tensors
    return merged


def _averages(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
