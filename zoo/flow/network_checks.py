"""Checks before training: of a network's attributes, by one call of it, and of probabilities."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo._modes import evaluating


def check_attributes(network: nn.Module, two_times: bool | None, owner: str) -> None:
    """Refuses a network without ``shape`` and ``num_classes``, or with another number of time inputs.

    Args:
        network: The network.
        two_times: Whether it must have a second time input; None for either.
        owner: Who trains it, for the message.

    Raises:
        ValueError: an attribute is missing, or the time inputs are not those.
    """
    for name in ("shape", "num_classes"):
        if not hasattr(network, name):
            raise ValueError(
                "network must have the attributes 'shape' (of one item) and 'num_classes' (or None): "
                f"{type(network).__name__} has no {name!r}"
            )
    if two_times is not None and getattr(network, "two_times", two_times) != two_times:
        inputs = "two time inputs, t and h = t - r" if two_times else "one time input"
        raise ValueError(
            f"{owner} trains a network with {inputs}: build {type(network).__name__} with "
            f"two_times={two_times}"
        )


def check_probability(argument: str, value: float) -> None:
    """Refuses a number that is not a probability."""
    if not 0 <= value <= 1:
        raise ValueError(f"{argument} must be a probability in [0, 1], got {value}")


def check_call(network: Any, z: Tensor, two_times: bool | None, owner: str) -> None:
    """Calls the network once, since a derivative would fail by errors that are not the user's.

    Args:
        network: F(z, t, h, label) with the attribute ``num_classes``.
        z: States (B, ...).
        two_times: Whether it is called with h; the network's own attribute says more.
        owner: Who will call it, for the message.

    Raises:
        ValueError: it cannot be called so, or gives something else than a tensor of the shape of ``z``.
    """
    t = torch.full((len(z),), 0.5, device=z.device, dtype=torch.promote_types(z.dtype, torch.float32))
    h = t / 2 if getattr(network, "two_times", two_times) else None
    label = None if network.num_classes is None else t.new_zeros(len(z), dtype=torch.long)

    def shape(given: Tensor | None) -> str:
        return "None" if given is None else "(B,)"

    call = (
        f"{owner} calls network(z, t, h, label), with z (B, {', '.join(map(str, z.shape[1:]))}), t (B,), h "
        f"{shape(h)} and label {shape(label)}, and takes a Tensor of the shape of z"
    )
    wrap = "wrap it in a module whose forward has these arguments and returns that tensor"
    kind = type(network).__name__
    try:
        with torch.no_grad(), evaluating(network):
            output = network.forward(z, t, h, label)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise ValueError(f"{call}; {kind} cannot be called so ({error}): {wrap}") from error
    if not isinstance(output, Tensor):
        raise ValueError(f"{call}; {kind} returned {type(output).__name__}: {wrap}")
    if output.shape != z.shape:
        raise ValueError(
            f"{call}; {kind} made {tuple(output.shape)} of {tuple(z.shape)}: give it as many output "
            "channels as 'shape' says"
        )
