"""Messages that tell a user of ``zoo`` nothing, silenced in one place and by their text alone."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Regular expressions for the beginning of a warning.
WARNINGS = (
    # jsonargparse 4.50+ about three of its functions that LightningCLI 2.6 calls.
    r"(?s).*(instantiate_classes|skip_none|add_instantiator).*(deprecated|will be removed)",
    r"\s*By default only one JsonargparseDeprecationWarning",
    # A resumed run goes on in its own folder.
    r".*Checkpoint directory .* exists and is not empty",
    # So do its tests, in a folder inside it, and runs that start from another run's checkpoint.
    r".*The dirpath has changed from",
    # torch 2.15 about what Lightning 2.6 does.
    r".*LeafSpec.*deprecated",
    # Advice that is wrong under LightningCLI, which stores the config of a module rather than the module.
    r".*is an instance of `nn\.Module` and is already saved during checkpointing",
    # A test of averaged weights loads them: that is its point.
    r".*loading a checkpoint outside the 'fit' stage",
    # The zoo's small datasets are in memory; workers would slow them down.
    r".*does not have many workers which may be a bottleneck",
)
# Beginnings of lines that Lightning logs.
TIPS = ("💡 Tip:", "Trainer already configured with model summary callbacks")
MACHINE = ("GPU available:", "TPU available:", *TIPS)  # what a Trainer says of the machine when it is made


class _Without(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginnings)


@contextmanager
def quiet(lines: tuple[str, ...] = TIPS) -> Iterator[None]:
    """Silences them within the block.

    Args:
        lines: Beginnings of the log lines to leave out.
    """
    tips = _Without(lines)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with warnings.catch_warnings():
        for pattern in WARNINGS:
            warnings.filterwarnings("ignore", message=pattern)
        logger.addFilter(tips)
        try:
            yield
        finally:
            logger.removeFilter(tips)
