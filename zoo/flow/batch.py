"""Batches of this room: what a user gives in any form, and what a loss function takes, with its draws.

A user gives dicts with ``x`` (B, ...), ``label`` (B,) if the network has classes, and ``index`` (B,), the
global index of each item, on which all draws depend. Tuples ``(x,)`` and ``(x, label)`` work too: their items
are then numbered by place (batch, process, position), so draws depend on the batch size and the number of
processes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo import rng


class Draws(NamedTuple):
    """What draws depend on beside the item: the run's seed, the optimizer step, a prefix of their names."""

    seed: int
    step: int
    name: str = ""


@dataclass(frozen=True)
class FlowBatch:
    """Data and noise of a batch, with the times that an objective adds.

    Plain Python gives ``x``, ``noise``, ``t``, ``h`` and, with classes, ``label``; the LightningModules draw
    the rest, on the CPU, so that nothing waits for a device to count.

    Attributes:
        x: Data (B, ...).
        noise: Standard normal (B, ...).
        t: Times (B,), float32 or better whatever the dtype of the data.
        h: Steps t - r (B,), at least 0, as ``t``.
        label: Classes (B,), or None.
        count: Promise that exactly the first ``count`` items have h > 0. None looks for them, which on a GPU
            waits for the device.
        index: Global numbers of the items (B,), on the CPU.
        times: ``t`` as it was drawn (B,): in float64, on the CPU.
        dropped: Which labels were dropped (B,), on the CPU: those items are unconditional, and unguided.
    """

    x: Tensor
    noise: Tensor
    t: Tensor | None = None
    h: Tensor | None = None
    label: Tensor | None = None
    count: int | None = None
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    times: Tensor | None = None
    dropped: Tensor | None = None

    def mean_flow_times(self) -> tuple[Tensor, Tensor]:
        """``t`` and ``h`` (B,).

        Raises:
            ValueError: there are none.
        """
        if self.t is None or self.h is None:
            raise ValueError("a mean-flow loss needs a FlowBatch with times t and steps h = t - r")
        return self.t, self.h

    def inside(self, start: Tensor | float, end: Tensor | float) -> Tensor:
        """Which items have ``start`` <= t <= ``end`` (B,), where the times were drawn."""
        times = self.mean_flow_times()[0] if self.times is None else self.times
        return (start <= times) & (times <= end)

    def rows(self, chosen: Tensor) -> Tensor:
        """The rows (R,) of the items ``chosen`` (B,) bool whose label was not dropped, where the data are."""
        if self.dropped is not None:
            chosen = chosen & ~self.dropped
        return chosen.nonzero()[:, 0].to(self.x.device, non_blocking=True)

    def place(self, drawn: Tensor) -> Tensor:
        """Times drawn on the CPU, where the data are; in float32 at least, since bfloat16 would blur them."""
        return drawn.to(self.x.device, torch.promote_types(self.x.dtype, torch.float32), non_blocking=True)


def read_batch(
    batch: Any, shape: tuple[int, ...], num_classes: int | None, owner: str, needs_data: bool = True
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``x``, ``label`` and ``index`` of a batch in any form: a dict, a tuple ``(x, label)``, or data alone.

    Args:
        batch: The batch.
        shape: Shape of the network's items.
        num_classes: Its classes; without any, the label is left out.
        owner: Who asks, for the messages.
        needs_data: Whether there must be ``x``.

    Returns:
        What there is of the three; with ``num_classes`` there is a label.

    Raises:
        ValueError: data or labels are missing, or the data have another shape.
    """
    if not isinstance(batch, dict):
        fields = [batch] if isinstance(batch, Tensor) else list(batch)
        batch = dict(zip(("x", "label"), fields, strict=False))
    if needs_data and "x" not in batch:
        raise ValueError(f"{owner} needs data: the batch has {sorted(batch)}, but no 'x'")
    if num_classes is not None and "label" not in batch:
        raise ValueError(
            f"the network has {num_classes} classes, but the batch has no 'label': give labels, or a network "
            "with num_classes=null"
        )
    x = batch.get("x")
    if x is not None and tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"the data have items of shape {tuple(x.shape[1:])}, the network takes {shape}: give one of the "
            "two the other's size"
        )
    return x, None if num_classes is None else batch["label"], batch.get("index")


def size_of(batch: Any) -> int:
    """How many items a batch in any form has."""
    if isinstance(batch, Tensor):
        return len(batch)
    return len(next(iter(batch.values() if isinstance(batch, dict) else batch)))


def draw_batch(
    x: Tensor,
    label: Tensor | None,
    index: Tensor,
    draws: Draws,
    *,
    noise: Callable[[int, int, Tensor, str], Tensor],
    null: int | None = None,
    label_dropout: float = 0.0,
    times: Callable[[int, int, Tensor, str], tuple[Tensor, Tensor]] | None = None,
) -> FlowBatch:
    """A batch with its draws, each a pure function of (seed, step, index, name).

    Args:
        x: Data (B, ...).
        label: Classes (B,), or None.
        index: Global numbers of the items (B,), on the CPU.
        draws: What the draws depend on, beside the items.
        noise: Draws standard normal noise (B, ...).
        null: The label that means unconditional.
        label_dropout: Probability that an item's label becomes ``null``.
        times: Draws (t, r), such as `MeanFlowTimes`; items with r < t then come first.
    """
    seed, step, name = draws
    t = h = count = dropped = None
    if times is not None:
        t, r = times(seed, step, index, name)
        order = (r < t).argsort(descending=True, stable=True)
        count = int((r < t).sum())
        t, r, index = t[order], r[order], index[order]
        rows, h = order.to(x.device, non_blocking=True), t - r
        x, label = x[rows], None if label is None else label[rows]
    if label is not None and null is not None:
        dropped = rng.uniform(seed, step, index, (), name + "label") < label_dropout
        on_device = dropped.to(label.device, non_blocking=True)
        label = torch.where(on_device, torch.full_like(label, null), label)
    made = FlowBatch(
        x,
        noise(seed, step, index, name + "noise"),
        label=label,
        count=count,
        index=index,
        times=t,
        dropped=dropped,
    )
    return made if t is None or h is None else replace(made, t=made.place(t), h=made.place(h))
