"""`SinkLogger`: which tokens are attention sinks, in which layers, while a model trains."""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor
from typing_extensions import override

from zoo import events
from zoo.attention.layers import find_stack
from zoo.base import as_dataclass, refuse_sharding
from zoo.callbacks._only_one import only_one
from zoo.callbacks._validation_probe import ValidationProbe
from zoo.io import atomic_write
from zoo.sinks.analysis import attention_names, record
from zoo.sinks.detector import detect
from zoo.sinks.figures import save_figure
from zoo.sinks.report import SinkReport, make_report
from zoo.sinks.sink import Sink, Thresholds

_NAMED = 4  # sinks that an event names


class SinkLogger(ValidationProbe):
    """Looks every N updates for attention sinks on a fixed batch, by one forward in evaluation mode.

    The batch is the first of the validation data (of the test data in ``trainer.test``), cut to a few
    sequences; rank zero alone looks. Training is left as it is, bit by bit: no gradient, no dropout, the
    random states as before, compiled networks run as written meanwhile. Works on any module that has layers
    with attention (`zoo.attention.find_stack`): transformers, timm, `nn.MultiheadAttention`, modules that
    call `F.scaled_dot_product_attention`.

    Logs ``sinks/...``, the numbers of `zoo.sinks.report.SCALARS` (numbers of sinks and levels, attention on
    the first token, dormant heads, value drain, entropy, largest logit, massive activations, norm outliers),
    and ``sinks/seconds``, what the look took. The run folder gets ``sinks.json``, the last report, and
    ``sinks.png`` when training or a test ends; ``events.jsonl`` says when sinks are born and die.

    Not supported: strategies that shard the network.

    Args:
        every_n_steps: Updates between two looks.
        probe: Name of the module's method that runs the network on a batch. It must not log.
        sequences: How many of the batch.
        layers: Layers whose attention is looked at; null for all. States are followed through all.
        queries: Rows of attention that are looked at, drawn evenly; null for all.
        stack: Name of the stack of layers, where a module has several.
        dirpath: Folder for ``sinks.json`` and ``sinks.png``; the run's own if not given.
        thresholds: What makes a sink.

    Raises:
        ValueError: numbers below 1; a module without attention or without the method; no validation data.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        probe: str = "loss",
        sequences: int = 4,
        layers: list[int] | None = None,
        queries: int | None = 256,
        stack: str | None = None,
        dirpath: str | None = None,
        thresholds: Thresholds = Thresholds(),
    ) -> None:
        super().__init__(every_n_steps, batches=1)
        for name, value in (("sequences", sequences), ("queries", queries)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.probe, self.sequences, self.layers = probe, sequences, layers
        self.queries, self.stack, self.dirpath = queries, stack, dirpath
        self.thresholds = as_dataclass(Thresholds, thresholds, "thresholds")
        self.report: SinkReport | None = None  # the last one, on rank zero
        self._alive: list[list[Any]] | None = None  # [kind, sequence, place] of the last look

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what cannot be looked at.

        Raises:
            ValueError: the module has no attention, or none of the name and numbers that are given, or not
                the method; the strategy shards it; or there are two of this callback.
        """
        if stage not in ("fit", "test"):
            return
        only_one(self, trainer, "they would write the same files")
        refuse_sharding(pl_module, trainer.strategy)
        attention_names(find_stack(pl_module, self.stack), self.layers)
        self.check_method(pl_module, "probe", self.probe, "which runs the network on a batch")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._kept = [first_items(self._kept[0], self.sequences)]

    @override
    def look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._look(trainer, pl_module, self._kept[0])

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._draw(trainer)

    @override
    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Looks at the first batch."""
        if batch_idx == dataloader_idx == 0 and trainer.is_global_zero:
            self._alive = None
            self._look(trainer, pl_module, first_items(batch, self.sequences))

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"alive": self._alive}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._alive = state_dict["alive"]

    def _look(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        started = time.perf_counter()
        moved = move_data_to_device(trainer.precision_plugin.convert_input(batch), pl_module.device)

        def run() -> None:
            with trainer.precision_plugin.val_step_context():
                getattr(pl_module, self.probe)(moved)

        states, attention = record(
            pl_module,
            run,
            stack=self.stack,
            layers=self.layers,
            norm_ratio=self.thresholds.norm_ratio,
            queries=self.queries,
            step=trainer.global_step,
        )
        self.report = make_report(states, attention, detect(states, attention, self.thresholds))
        self._tell_changes(trainer, self.report.sinks)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            whole = {"step": trainer.global_step} | self.report.as_dict()
            atomic_write(self._folder(trainer) / "sinks.json", json.dumps(whole, indent=1) + "\n")
        values = {f"sinks/{name}": x for name, x in self.report.scalars.items() if math.isfinite(x)}
        values["sinks/seconds"] = time.perf_counter() - started
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _tell_changes(self, trainer: Trainer, sinks: Sequence[Sink]) -> None:
        """Events for primary and secondary sinks that are new since the last look, and for those gone."""
        now = [[s.kind, s.sequence, s.place] for s in sinks if s.kind in ("primary", "secondary")]
        before, self._alive = self._alive, now
        if before is None and not now:
            return
        before = before or []
        new = [item for item in now if item not in before]
        born = [sink for sink in sinks if [sink.kind, sink.sequence, sink.place] in new]
        died = [item for item in before if item not in now]
        if born:
            levels = Counter((sink.kind, sink.start, sink.lifetime) for sink in born).most_common(_NAMED)
            which = ", ".join(
                f"{n} {kind} from layer {start} for {life}" for (kind, start, life), n in levels
            )
            message = f"attention sinks born: {which}"
            events.record(trainer, "sinks_born", message, count=len(born))
        if died:
            which = ", ".join(f"{kind} at {sequence}:{place}" for kind, sequence, place in died[:_NAMED])
            more = f" and {len(died) - _NAMED} more" if len(died) > _NAMED else ""
            message = f"attention sinks gone: {which}{more}"
            events.record(trainer, "sinks_died", message, count=len(died))

    def _folder(self, trainer: Trainer) -> Path:
        folder = events.run_folder(trainer) if self.dirpath is None else Path(self.dirpath).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _draw(self, trainer: Trainer) -> None:
        dev_run = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.report is None or not trainer.is_global_zero or dev_run:
            return
        path = self._folder(trainer) / "sinks.png"
        save_figure(path, self.report, f"after {trainer.global_step:,} updates")
        events.record(trainer, "sinks_drawn", f"attention sinks: {events.display_path(path)}", path=path.name)


def first_items(batch: Any, count: int) -> Any:
    """The first items of a batch of tensors, in dicts, lists and tuples, copied to the CPU.

    >>> import torch
    >>> first_items({"x": torch.arange(6).view(3, 2), "name": "digits"}, 1)
    {'x': tensor([[0, 1]]), 'name': 'digits'}
    """
    if isinstance(batch, Tensor):
        return batch[:count].detach().to("cpu", copy=True) if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {key: first_items(value, count) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        made = [first_items(value, count) for value in batch]
        return type(batch)(*made) if hasattr(batch, "_fields") else type(batch)(made)
    return batch
