"""Callbacks of which a run has one at most."""

from lightning.pytorch import Callback, Trainer


def only_one(callback: Callback, trainer: Trainer, why: str, kind: type[Callback] | None = None) -> None:
    """Refuses a second callback of this kind, which a config with ``callbacks+`` easily adds.

    Args:
        callback: One of them.
        trainer: The Trainer that has them.
        why: What there can be one of, to go on after "and".
        kind: The class, subclasses included, that there can be one of; None for the callback's own.

    Raises:
        ValueError: there are several.
    """
    kind = type(callback) if kind is None else kind
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    names = [type(other).__name__ for other in callbacks if isinstance(other, kind)]
    if len(set(names)) > 1:
        raise ValueError(f"there are the callbacks {' and '.join(names)}, and {why}: remove one")
    if len(names) > 1:
        raise ValueError(f"there are two {names[0]} callbacks, and {why}: remove one")
