"""What a network of transformers calls its cache of keys and values."""

import inspect

from torch import nn

NAMES = ("cache", "past_key_values")  # since transformers 5.24, and before


def cache_argument(network: nn.Module) -> str:
    """The argument of a network's forward that takes a cache: "cache" or "past_key_values".

    transformers renamed it in 5.24, and warns where the older name is used; custom networks may have either.

    Raises:
        ValueError: it has neither.
    """
    known = inspect.signature(network.forward).parameters
    for name in NAMES:
        if name in known:
            return name
    raise ValueError(
        f"{type(network).__name__} cannot continue a text token by token: its forward has no argument "
        f"{' or '.join(NAMES)}; it has {', '.join(known)}"
    )
