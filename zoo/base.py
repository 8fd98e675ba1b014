"""Base classes of the zoo's LightningModules and LightningDataModules: what each owes its user, written once.

* Hyperparameters hold plain values and tensors only. They are filtered when they are set, before a logger,
  a deep copy or a checkpoint sees them, so every checkpoint loads with ``weights_only=True``. The names of
  what was dropped travel with the checkpoint, and `load_from_checkpoint` asks for each of them again.
* Optimizer and learning-rate schedule are injected.
* `init_from` starts a run from the weights of another one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jsonargparse import ArgumentError
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor

from zoo.events import display_path, record
from zoo.import_policy import VARIABLE, allowed_imports, trusted_packages
from zoo.io import find_checkpoint, load_checkpoint

_DROPPED = "not_saved"  # hyperparameter that lists the arguments a checkpoint could not keep
_PLAIN = (str, int, float, bool, type(None), Tensor)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    # Subclasses (numpy's float64, a str Enum, nn.Parameter) would be pickled as objects.
    return type(value) in _PLAIN


class _PlainHyperparameters:
    """Keeps `hparams` to plain values and tensors, and remembers the names of what was dropped."""

    def _set_hparams(self, hp: Any) -> None:
        values = dict(vars(hp)) if hasattr(hp, "__dict__") and not isinstance(hp, Mapping) else dict(hp)
        dropped = sorted(name for name, value in values.items() if not _is_plain(value))
        plain = {name: value for name, value in values.items() if name not in dropped}
        if dropped:
            plain[_DROPPED] = dropped
        super()._set_hparams(plain)  # type: ignore[misc]

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, **kwargs: Any) -> Self:
        """Rebuilds the object from a checkpoint; objects given to the constructor must be given again.

        Args:
            checkpoint_path: The file.
            **kwargs: Lightning's own (``map_location``, ``hparams_file``, ``strict``) and constructor
                arguments, which win over the saved ones. ``weights_only`` is always True.

        Raises:
            TypeError: an argument that the checkpoint could not keep is not among ``kwargs``.
            ValueError: the checkpoint names something outside the import policy (`zoo.import_policy`), which
                allows the package of this class and those in ``ZOO_TRUST`` as well.
        """
        key = cls.CHECKPOINT_HYPER_PARAMS_KEY  # type: ignore[attr-defined]
        saved = load_checkpoint(checkpoint_path, lazy=True).get(key) or {}
        missing = [name for name in saved.get(_DROPPED, []) if name not in kwargs]
        if missing:
            raise TypeError(
                f"{checkpoint_path} does not hold the constructor arguments {', '.join(missing)} of "
                f"{cls.__name__} (objects are not kept in checkpoints): pass them again, for example "
                f"{cls.__name__}.load_from_checkpoint(path, {', '.join(f'{name}=...' for name in missing)})"
            )
        trusted = [cls.__module__.partition(".")[0], *trusted_packages()]
        try:
            with allowed_imports(trusted, keep=True):
                return super().load_from_checkpoint(  # type: ignore[misc]
                    checkpoint_path, **(kwargs | {"weights_only": True})
                )
        except ArgumentError as error:
            text = " ".join(str(error).split())
            if named := re.search(r"Importing '(.+?)' is not allowed", text):
                text = (
                    f"it names {named[1]}, which checkpoints do not import. Pass that argument in Python, or "
                    f"name its package in the variable {VARIABLE}"
                )
            raise ValueError(f"{checkpoint_path} does not rebuild {cls.__name__}: {text}") from error


@dataclass(frozen=True)
class WeightReport:
    """What `load_weights` did: names of parameters and buffers."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # in the module, not in the checkpoint
    unexpected: tuple[str, ...]  # in the checkpoint, not in the module
    mismatched: tuple[str, ...]  # in both, with other shapes

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors matched"
        for kind in ("missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            if names:
                shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                text += f"; {len(names)} {kind} ({shown})"
        return text


def load_weights(
    module: torch.nn.Module, path: str | Path, weights: Literal["ema", "raw"] = "ema"
) -> WeightReport:
    """Copies into ``module`` the tensors of a Lightning checkpoint whose names and shapes agree.

    Args:
        module: The module to fill.
        path: A checkpoint of a module with (some of) the same parameter names.
        weights: ``"ema"`` for the averaged weights where the run kept an average, ``"raw"`` for the weights
            that the optimizer updated. A run without an average has one set, which both names mean.

    Returns:
        What matched and what did not.

    Raises:
        ValueError: nothing matched, or ``weights`` is neither name.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}")
    checkpoint = load_checkpoint(path)
    # Lightning's WeightAveraging puts the average under `state_dict` and the raw weights beside it.
    source = checkpoint["state_dict"]
    if weights == "raw":
        source = checkpoint.get("current_model_state", source)
    target = module.state_dict()
    matched = tuple(name for name in target if name in source and source[name].shape == target[name].shape)
    report = WeightReport(
        matched=matched,
        missing=tuple(name for name in target if name not in source),
        unexpected=tuple(name for name in source if name not in target),
        mismatched=tuple(name for name in target if name in source and name not in matched),
    )
    if not matched:
        raise ValueError(f"no tensor of {path} fits {type(module).__name__}: {report}")
    module.load_state_dict({name: source[name] for name in matched}, strict=False)
    return report


class ZooModule(_PlainHyperparameters, LightningModule):  # type: ignore[misc]
    """A LightningModule with plain hyperparameters, an injected optimizer and a start from other weights.

    A subclass calls ``super().__init__(...)`` with these arguments and then ``self.save_hyperparameters()``.

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
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if init_weights not in ("ema", "raw"):
            raise ValueError(f"init_weights must be 'ema' or 'raw', got {init_weights!r}")
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

    def on_fit_start(self) -> None:
        """Loads ``init_from`` when a fresh fit begins, and records what matched."""
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

    def configure_optimizers(self) -> Any:
        """The injected optimizer over the trainable parameters; the injected schedule steps per update."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}


class ZooDataModule(_PlainHyperparameters, LightningDataModule):  # type: ignore[misc]
    """A LightningDataModule with plain hyperparameters.

    Args:
        seed: Seed of the data order. None takes the run's (`seed_everything`), or 0 without one.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.seed = run_seed(seed)

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


def run_seed(seed: int | None) -> int:
    """``seed`` itself, or the seed that `seed_everything` set for this process, or 0.

    >>> run_seed(7)
    7
    """
    import os

    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
