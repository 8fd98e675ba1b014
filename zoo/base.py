"""Base classes of the zoo's LightningModules and LightningDataModules: what each owes its user, written once.

* Hyperparameters hold plain values and tensors only. They are filtered when they are set, before a logger,
  a deep copy or a checkpoint sees them, so every checkpoint loads with ``weights_only=True``. Dataclasses are
  kept as dicts. The names of what was dropped travel with the checkpoint, and `load_from_checkpoint` asks for
  each of them again.
* Optimizer and learning-rate schedule are injected.
* `init_from` starts a run from the weights of another one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from typing_extensions import override

from zoo._hyperparameters import PlainHyperparameters
from zoo._hyperparameters import as_dataclass as as_dataclass
from zoo.events import display_path, record
from zoo.runs import find_checkpoint
from zoo.state_dicts import WeightReport as WeightReport
from zoo.state_dicts import check_weights_name
from zoo.state_dicts import load_weights as load_weights


class ZooModule(PlainHyperparameters, LightningModule):  # type: ignore[misc]
    """A LightningModule with plain hyperparameters, an injected optimizer and a start from other weights.

    A subclass calls ``super().__init__(...)`` with these arguments and then ``self.save_hyperparameters()``.
    An argument that is a dataclass comes back from a checkpoint as a dict: `as_dataclass` takes both.

    Args:
        optimizer: Builds the optimizer from the trainable parameters.
        lr_scheduler: Builds a schedule from the optimizer; it is stepped after every update.
        init_from: Checkpoint whose weights this run starts from, or a folder of runs, whose newest is taken;
            only names and shapes that agree are taken. A resumed run (`ckpt_path`) ignores it.
        init_weights: Which weights of ``init_from``: the average ("ema") or what the optimizer updated
            ("raw").
        seed: Seed of this module's draws (`zoo.rng`). None takes the run's (`seed_everything`), or 0 without
            one.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_weights_name(init_weights, "init_weights")
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.init_from = init_from
        self.init_weights: Literal["ema", "raw"] = init_weights
        self.seed = run_seed(seed)

    @property
    def needs_checkpoint(self) -> bool:
        """Whether an evaluation needs the weights of a checkpoint; then `zoo test` asks for one."""
        return True

    def load_initial_weights(self, path: Path) -> WeightReport:
        """Takes the weights of a checkpoint; a subclass may ask for more than equal names and shapes."""
        return load_weights(self, path, self.init_weights)

    @override
    def on_fit_start(self) -> None:
        # Not in `setup`, where the Trainer does not know yet whether it resumes.
        if self.init_from is not None and self.trainer.ckpt_path is None:
            try:
                source = find_checkpoint(self.init_from)
            except FileNotFoundError as error:
                raise ValueError(f"init_from={self.init_from!r}: {error}") from error
            report = self.load_initial_weights(source)
            record(
                self.trainer,
                "weights_loaded",
                f"started from the {self.init_weights} weights of {display_path(source)}: {report}",
                source=str(source),
                weights=self.init_weights,
                matched=len(report.matched),
                missing=len(report.missing),
                unexpected=len(report.unexpected),
                mismatched=len(report.mismatched),
            )

    def parameter_groups(self) -> list[Any]:
        """What the optimizer is built from: the trainable parameters, or a dict of options for each group."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameter_groups())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}


class ZooDataModule(PlainHyperparameters, LightningDataModule):  # type: ignore[misc]
    """A LightningDataModule with plain hyperparameters.

    Args:
        seed: Seed of the data order. None takes the run's (`seed_everything`), or 0 without one.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.seed = run_seed(seed)

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch but for its ``index``: what is counted on the CPU keeps no one waiting."""
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved | {"index": batch["index"]} if isinstance(batch, dict) and "index" in batch else moved

    def _set_hparams(self, hp: Any) -> None:
        super()._set_hparams(hp)
        # Lightning refuses to log a module and a datamodule that both have, say, a `seed`, of two values.
        self._log_hyperparams = False


@dataclass(frozen=True)
class BuiltRun:
    """What a config describes, built and not run: what verbs of the command line look at.

    Attributes:
        name: The configs, for messages.
        model: The module, on the meta device: without memory for its weights.
        datamodule: Its data, if the config names any; nothing is read.
        trainer: The Trainer, with its callbacks.
        config: The parsed settings of the Trainer.
    """

    name: str
    model: LightningModule
    datamodule: LightningDataModule | None
    trainer: Trainer
    config: Mapping[str, Any]

    @property
    def callbacks(self) -> list[Callback]:
        """The Trainer's callbacks."""
        return self.trainer.callbacks  # type: ignore[attr-defined]


def refuse_sharding(module: LightningModule, strategy: Any) -> None:
    """Refuses strategies that shard parameters, for a module whose network is called outside of their hooks.

    Args:
        module: The module, which calls this in `setup`.
        strategy: The Trainer's strategy.

    Raises:
        ValueError: it is FSDP, ModelParallel, or stage 3 of DeepSpeed.
    """
    sharded = isinstance(strategy, FSDPStrategy | ModelParallelStrategy)
    if sharded or (isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3):
        raise ValueError(
            f"{type(module).__name__} does not run under {type(strategy).__name__}: the network is called "
            "outside of the hooks that gather its shards. Use strategy 'ddp'"
        )


def run_seed(seed: int | None) -> int:
    """``seed`` itself, or the seed that `seed_everything` set for this process, or 0.

    >>> run_seed(7)
    7
    """
    import os

    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
