"""Modules in a checkpoint that was read without executing it: which class they were, and their tensors.

Whole modules are pickled as their ``__dict__``: parameters, buffers and submodules by name. The checkpoints
of EDM and EDM2 wrap that in a record of `torch_utils.persistence`, which also holds the class's source code;
that source is text here, and stays it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.flow.convert.stored import StoredTensor
from zoo.pickles import Global, Inert

_PERSISTENT = Global("torch_utils.persistence", "_reconstruct_persistent_obj")
_COMPILED = "_orig_mod"  # the name that torch.compile puts before those of the network within
_LIMIT = 100_000  # tensors and modules; a file can name one module twice in each of many, and have 2^n paths


@dataclass
class Contents:
    """What a network in a checkpoint holds.

    Attributes:
        tensors: Parameters and buffers by their full names, without what `torch.compile` puts before them.
        kinds: Names of the classes of the modules, by their full names; "" is the whole.
        attributes: Plain attributes of the modules, by their full names.
        trained_with: Arguments of the program that made the checkpoint, where it says.
    """

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Mapping[Any, Any]] = field(default_factory=dict)
    trained_with: Mapping[Any, Any] = field(default_factory=dict)


def is_network(value: Any) -> bool:
    """Whether ``value`` is a module, or a state dict."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(item, StoredTensor) for item in value.values())
    return _attributes(value) is not None


def contents(value: Any) -> Contents:
    """The tensors of a module or a state dict.

    Raises:
        ValueError: it is neither, or its modules contain each other.
    """
    found = Contents()
    if isinstance(value, dict):
        found.tensors = {
            str(name).replace(f"{_COMPILED}.", ""): tensor
            for name, tensor in value.items()
            if isinstance(tensor, StoredTensor)
        }
        return found
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        name, module = waiting.pop()
        attributes = _attributes(module)
        if attributes is None:
            raise ValueError(f"{name or 'the network'} is no module, nor a record of tensors")
        prefix = f"{name}." if name else ""
        found.kinds[name], found.attributes[name] = _kind(module), attributes
        passing = attributes.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, set) else set()
        for group in ("_parameters", "_buffers"):
            for key, tensor in _mapping(attributes.get(group)).items():
                if isinstance(tensor, StoredTensor) and key not in passing:
                    found.tensors[f"{prefix}{key}"] = tensor
        for key, child in _mapping(attributes.get("_modules")).items():
            if child is not None:
                waiting.append((name if key == _COMPILED else f"{prefix}{key}", child))
        if len(found.tensors) + len(found.kinds) + len(waiting) > _LIMIT or name.count(".") > 50:
            raise ValueError("its modules contain each other, or are more than any network has")
    return found


def training_arguments(value: Any) -> Mapping[Any, Any]:
    """The arguments of the training program that a checkpoint keeps as ``args``: a dict, or a Namespace."""
    arguments = value.get("args") if isinstance(value, dict) else None
    return _mapping(arguments.state if isinstance(arguments, Inert) else arguments)


def _record(module: Any) -> Mapping[Any, Any] | None:
    """The record of a persistent object: type, version, source, class name, state."""
    if isinstance(module, Inert) and module.made_by == _PERSISTENT and len(module.arguments) == 1:
        return _mapping(module.arguments[0])
    return None


def _attributes(module: Any) -> Mapping[Any, Any] | None:
    """The ``__dict__`` of a pickled module, or None where it is no module."""
    if not isinstance(module, Inert):
        return None
    record = _record(module)
    state = module.state if record is None else record.get("state")
    if isinstance(state, tuple) and state:  # with slots
        state = state[0]
    attributes = _mapping(state)
    return attributes if "_parameters" in attributes and "_modules" in attributes else None


def _kind(module: Any) -> str:
    record = _record(module)
    if record is not None:
        name = record.get("class_name")
        return name if isinstance(name, str) else ""
    made_by = module.made_by
    if isinstance(made_by, Global) and made_by.name in ("_reconstructor", "__newobj__") and module.arguments:
        made_by = module.arguments[0]
    return made_by.name if isinstance(made_by, Global) else ""


def _mapping(value: Any) -> Mapping[Any, Any]:
    """The items of a dict, or of an object of a subclass of dict."""
    if isinstance(value, Inert):
        return value.pairs
    return value if isinstance(value, dict) else {}
