"""A zoo of PyTorch Lightning components from recent papers, which compose through LightningCLI configs.

``import zoo`` loads nothing else: take what you need from its rooms, for example ``from zoo.flow import
MeanFlow`` or ``from zoo.callbacks import ExactResume``.
"""

__version__ = "0.1.0"
