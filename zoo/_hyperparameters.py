"""Hyperparameters of plain values: what checkpoints and loggers get of a constructor's arguments."""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Self, TypeVar

from jsonargparse import ArgumentError
from torch import Tensor

from zoo._suggest import suggest
from zoo.import_policy import VARIABLE, allowed_imports, trusted_packages
from zoo.io import load_checkpoint

_DROPPED = "not_saved"  # hyperparameter that lists the arguments a checkpoint could not keep
_PLAIN = (str, int, float, bool, type(None), Tensor)

T = TypeVar("T")


def as_dict(value: Any) -> Any:
    """A dataclass as a dict of its fields, and so its fields; any other value as it is.

    >>> from dataclasses import make_dataclass
    >>> as_dict(make_dataclass("Guidance", [("omega", float)])(1.5))
    {'omega': 1.5}
    """
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {field.name: as_dict(getattr(value, field.name)) for field in fields(value)}


def as_dataclass(kind: type[T], value: T | Mapping[str, Any], argument: str) -> T:
    """The dataclass that a dict of its fields describes; an instance as it is.

    A constructor calls it on each argument that is a dataclass: hyperparameters hold a dict in its place.

    Args:
        kind: The dataclass.
        value: An instance, or a dict of (some of) its fields.
        argument: Name of the constructor's argument, for the messages.

    Raises:
        TypeError: ``value`` is neither.
        ValueError: the dict has a key that is not a field, or a field has an impossible value.

    >>> from dataclasses import make_dataclass
    >>> as_dataclass(make_dataclass("Guidance", [("omega", float)]), {"omga": 1.5}, "guidance")
    Traceback (most recent call last):
    ValueError: guidance: Guidance has no field 'omga'; did you mean omega? It has omega
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"{argument} must be a {kind.__name__} or a dict of its fields, got {value!r}")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise ValueError(
                f"{argument}: {kind.__name__} has no field {key!r}{suggest(str(key), known) or ';'} It has "
                f"{', '.join(known)}"
            )
    try:
        return kind(**value)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    # Subclasses (numpy's float64, a str Enum, nn.Parameter) would be pickled as objects.
    return type(value) in _PLAIN


class PlainHyperparameters:
    """Keeps `hparams` to plain values and tensors, and remembers the names of what was dropped.

    A dataclass is kept as a dict of its fields, from which the constructor makes it again (`as_dataclass`).
    """

    def _set_hparams(self, hp: Any) -> None:
        values = dict(vars(hp)) if hasattr(hp, "__dict__") and not isinstance(hp, Mapping) else dict(hp)
        values = {name: as_dict(value) for name, value in values.items()}
        dropped = sorted(name for name, value in values.items() if not _is_plain(value))
        plain = {name: value for name, value in values.items() if name not in dropped}
        if dropped:
            plain[_DROPPED] = dropped
        super()._set_hparams(plain)  # type: ignore[misc]

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, **kwargs: Any) -> Self:
        """Rebuilds the object from a checkpoint; objects given to the constructor must be given again.

        Args:
            checkpoint_path: The file.
            **kwargs: Lightning's own (``map_location``, ``hparams_file``, ``strict``) and constructor
                arguments, which win over the saved ones. ``weights_only`` is always True.

        Raises:
            TypeError: an argument that the checkpoint could not keep is not among ``kwargs``.
            ValueError: the checkpoint names something outside the import policy (`zoo.import_policy`), which
                allows the package of this class and those in ``ZOO_TRUST`` as well.
        """
        key = cls.CHECKPOINT_HYPER_PARAMS_KEY  # type: ignore[attr-defined]
        saved = load_checkpoint(checkpoint_path, lazy=True).get(key) or {}
        missing = [name for name in saved.get(_DROPPED, []) if name not in kwargs]
        if missing:
            raise TypeError(
                f"{checkpoint_path} does not hold the constructor arguments {', '.join(missing)} of "
                f"{cls.__name__} (objects are not kept in checkpoints): pass them again, for example "
                f"{cls.__name__}.load_from_checkpoint(path, {', '.join(f'{name}=...' for name in missing)})"
            )
        trusted = [cls.__module__.partition(".")[0], *trusted_packages()]
        try:
            with allowed_imports(trusted, keep=True):
                return super().load_from_checkpoint(  # type: ignore[misc]
                    checkpoint_path, **(kwargs | {"weights_only": True})
                )
        except ArgumentError as error:
            text = " ".join(str(error).split())
            if named := re.search(r"Importing '(.+?)' is not allowed", text):
                text = (
                    f"it names {named[1]}, which checkpoints do not import. Pass that argument in Python, or "
                    f"name its package in the variable {VARIABLE}"
                )
            raise ValueError(f"{checkpoint_path} does not rebuild {cls.__name__}: {text}") from error
