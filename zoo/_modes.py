"""Evaluation mode for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(network: Any) -> Iterator[None]:
    """Switches the modules of ``network`` that are in training mode to evaluation, and back at the end.

    A function, which has no modes, is left as it is. Gradients are not switched off.
    """
    modules = [m for m in network.modules() if m.training] if isinstance(network, nn.Module) else []
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True
