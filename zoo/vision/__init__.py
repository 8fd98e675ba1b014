"""Image models as hosts: small, so that callbacks have an honest one."""

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.vision.image_classifier_module import ImageClassifier as ImageClassifier

__getattr__, __dir__, __all__ = attach(__name__, __file__)
