"""Few-step generation: mean flow."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    pass

__getattr__, __dir__, __all__ = attach(__name__, __file__)
