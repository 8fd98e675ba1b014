"""Tokens per second by the wall clock, without asking the accelerator anything."""

import time
from collections.abc import Callable


class TokenRate:
    """Counts tokens between two readings of the clock.

    On an accelerator the clock runs on while work is queued, so one step's time says little; over a window
    at whose end logged values are fetched it is the time that the work took.

    Args:
        clock: Seconds.

    >>> ticks = iter([10.0, 12.0])
    >>> rate = TokenRate(clock=lambda: next(ticks))
    >>> rate.start(); rate.count(300); rate.read()
    150.0
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since: float | None = None
        self._tokens = 0

    @property
    def running(self) -> bool:
        """Whether a window is open."""
        return self._since is not None

    @property
    def counted(self) -> bool:
        """Whether an open window has tokens."""
        return self.running and self._tokens > 0

    def start(self) -> None:
        """Opens a window."""
        self._since, self._tokens = self._clock(), 0

    def stop(self) -> None:
        """Drops the window: what follows (a validation, say) is not training."""
        self._since = None

    def count(self, tokens: int) -> None:
        """Adds tokens to the window."""
        self._tokens += tokens

    def read(self) -> float:
        """Tokens per second since the window was opened, and opens the next.

        Raises:
            RuntimeError: no window is open.
        """
        if self._since is None:
            raise RuntimeError("no window is open: call start first")
        now = self._clock()
        rate = self._tokens / max(now - self._since, 1e-9)
        self._since, self._tokens = now, 0
        return rate
