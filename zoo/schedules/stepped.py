"""The learning rates of a module's own schedulers, as `zoo plan` prints them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from zoo.schedules.plot import bars

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.utilities.types import LRSchedulerConfig

_MOST = 100_000  # steps that are drawn: about a second
_WIDTH = 72


def stepped(
    module: "LightningModule", schedulers: "Sequence[LRSchedulerConfig]", trainer: "Trainer"
) -> list[str]:
    """What the schedulers do in the run that a Trainer is set to, found by stepping them.

    Args:
        module: Whose they are.
        schedulers: Built with optimizers that nobody uses afterwards.
        trainer: Its limits say how far.

    Returns:
        Pieces of text, for each scheduler a line and, if its steps are known in advance, a plot.

    Raises:
        ValueError: a scheduler fails within the run.
    """
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    pieces: list[str] = []
    for config in schedulers:
        scheduler = config.scheduler
        owner = f"{type(scheduler).__name__} of {type(module).__name__}, stepped every {config.interval}"
        if isinstance(scheduler, ReduceLROnPlateau):
            rate = scheduler.optimizer.param_groups[0]["lr"]
            pieces.append(
                f"{owner}, follows {config.monitor}: it begins at {rate:g}, and the rest is not known"
            )
            continue
        limit = trainer.max_steps if config.interval == "step" else trainer.max_epochs
        if limit is None or limit < 1:
            key = "max_steps" if config.interval == "step" else "max_epochs"
            pieces.append(f"{owner}: say --trainer.{key} N to see it for N")
            continue
        rates = _rates(config, min(limit, _MOST), owner)
        peak = max(rates)
        cut = f" (drawn for {_MOST:,} of {limit:,})" if limit > _MOST else ""
        text = (
            f"{rates[0]:g} at first, {peak:g} at most (from {rates.index(peak):,} on), {rates[-1]:g} at last"
        )
        pieces.append(f"{owner}{cut}: learning rate {text}")
        edges = [n * len(rates) // _WIDTH for n in range(_WIDTH + 1)]
        cells = [rates[first : max(last, first + 1)] for first, last in pairwise(edges)]
        heights = [sum(cell) / len(cell) / peak if peak > 0 else 0.0 for cell in cells]
        pieces.append(f"\n{bars(heights, len(rates))}")
    return pieces


def _rates(config: "LRSchedulerConfig", count: int, owner: str) -> list[float]:
    """The learning rate of the first group in each step."""
    scheduler = config.scheduler
    group = scheduler.optimizer.param_groups[0]
    scheduler.optimizer.step()  # nothing has a gradient; torch warns of schedulers that go first
    rates: list[float] = []
    for step in range(count):
        rates.append(float(group["lr"]))
        if (step + 1) % config.frequency == 0:
            try:
                scheduler.step()  # type: ignore[call-arg]  # that of a plateau needs a number
            except ValueError as error:
                raise ValueError(f"{owner}, fails after {step + 1:,} of {count:,}: {error}") from error
    return rates
