"""Callbacks of which a run has one at most."""

from lightning.pytorch import Callback, Trainer


def only_one(callback: Callback, trainer: Trainer, why: str) -> None:
    """Refuses a second callback of this kind, which a config with ``callbacks+`` easily adds.

    Args:
        callback: One of them.
        trainer: The Trainer that has them.
        why: What there can be one of, to go on after "and".

    Raises:
        ValueError: there are several.
    """
    kind = type(callback)
    if sum(isinstance(other, kind) for other in trainer.callbacks) > 1:  # type: ignore[attr-defined]
        raise ValueError(f"there are two {kind.__name__} callbacks, and {why}: remove one")
