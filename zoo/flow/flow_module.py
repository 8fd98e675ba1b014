"""What the LightningModules of this room share: batches, labels, times, hand-over, samples."""

import copy
from abc import abstractmethod
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any, Literal, Self

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from zoo import rng
from zoo.base import WeightReport, ZooModule
from zoo.events import display_path, record
from zoo.flow.consistency import sample_consistency
from zoo.flow.handover import check_preconditioning, hand_over
from zoo.flow.paths import Path
from zoo.flow.preconditioned_network import PreconditionedNetwork
from zoo.flow.preconditioning import EDMPreconditioning, Preconditioning
from zoo.flow.stored_network import read_stored_network
from zoo.flow.tangent import evaluating
from zoo.flow.teacher import Teacher
from zoo.flow.time_grids import LogGrid


class FlowModule(ZooModule):
    """A network with a preconditioning on a path, trained by a loss that a subclass defines.

    Batches are dicts with ``x`` (B, ...), ``label`` (B,) if the network has classes, and ``index`` (B,), the
    global index of each item, on which all draws depend. Tuples ``(x,)`` and ``(x, label)`` work too: their
    items are then numbered by place (batch, process, position), so draws depend on the batch size and the
    number of processes.

    A subclass calls ``super().__init__`` and `save_hyperparameters`, and defines `_loss` and `_sample`.

    Args:
        network: F(z, t, h, label) with the attributes of `zoo.flow.networks`.
        preconditioning: What the network's output means.
        path: Path of the states; the preconditioning's own if not given.
        two_times: Whether the network must have a second time input; None for either.
        label_dropout: Probability that an item trains unconditionally.
        sample_steps: Steps of the samples that `predict` makes.
        compile: Compile the network for the training pass.
        optimizer: Builds the optimizer from the trainable parameters.
        lr_scheduler: Builds a schedule from the optimizer; it is stepped after every update.
        init_from: Checkpoint, or folder of runs, whose network this run starts from.
        init_weights: Which weights of ``init_from``: the average ("ema") or what the optimizer updated
            ("raw").
        seed: Seed of the draws. None takes the run's, or 0 without one.
    """

    def __init__(
        self,
        network: nn.Module,
        preconditioning: Preconditioning,
        path: Path | None,
        two_times: bool | None,
        label_dropout: float,
        sample_steps: int,
        compile: bool,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        init_from: str | None,
        init_weights: Literal["ema", "raw"],
        seed: int | None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, init_from, init_weights, seed)
        self.network = network
        for name in ("shape", "num_classes"):
            if not hasattr(network, name):
                raise ValueError(
                    "network must have the attributes 'shape' (of one item) and 'num_classes' (or None): "
                    f"{type(network).__name__} has no {name!r}"
                )
        if two_times is not None and getattr(network, "two_times", two_times) != two_times:
            inputs = "two time inputs, t and h = t - r" if two_times else "one time input"
            raise ValueError(
                f"{type(self).__name__} trains a network with {inputs}: build {type(network).__name__} with "
                f"two_times={two_times}"
            )
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout must be a probability in [0, 1], got {label_dropout}")
        if sample_steps < 1:
            raise ValueError(f"sample_steps must be at least 1, got {sample_steps}")
        self.shape: tuple[int, ...] = tuple(network.shape)  # type: ignore[arg-type]
        self.num_classes: int | None = network.num_classes  # type: ignore[assignment]
        self.preconditioning = preconditioning
        self.path = preconditioning.path if path is None else path
        self.label_dropout = label_dropout
        self.sample_steps = sample_steps
        self._two_times = two_times
        self._compile = compile  # `compile` is a method of every module
        self.needs_data = True  # whether a loss asks a batch for x
        self._frozen = Frozen()

    @property
    def model(self) -> PreconditionedNetwork:
        """The network read on this module's path."""
        return PreconditionedNetwork(self.network, self.preconditioning, self.path)

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, which is not a part of this module's parameters."""
        return self._frozen.get("teacher")

    def setup(self, stage: str) -> None:
        """Refuses strategies that shard the network, loads the teacher, and compiles the network if asked to.

        Raises:
            ValueError: The strategy shards parameters; or the teacher is missing, or does not fit.
        """
        strategy = self.trainer.strategy
        sharded = isinstance(strategy, FSDPStrategy | ModelParallelStrategy)
        if sharded or (isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3):
            raise ValueError(
                f"{type(self).__name__} does not run under {type(strategy).__name__}: the network is called "
                "outside of the hooks that gather its shards. Use strategy 'ddp'"
            )
        super().setup(stage)
        if self.teacher is not None and stage != "predict":
            self.teacher.load().check_student(self.shape, self.num_classes)
        if stage == "fit" and self._compile:
            self.network.compile()  # in place: parameters keep their names

    def load_initial_weights(self, path: FilePath) -> WeightReport:
        """Takes the network of a checkpoint so that it computes what it did there (`hand_over`).

        Raises:
            ValueError: its weights do not fit, or its output means another thing.
        """
        try:
            stored = read_stored_network(path, self.init_weights)
            check_preconditioning(self.preconditioning, stored.preconditioning, str(path))
            state = stored.state
            hand_over(self.network, state)
        except ValueError as error:
            raise ValueError(f"init_from={self.init_from!r}: {error}") from error
        own = self.network.state_dict()
        new = tuple(name for name in own if name not in state)
        return WeightReport(matched=tuple(state), missing=new, unexpected=(), mismatched=())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes what the network's output means, for whoever takes its weights."""
        checkpoint["flow"] = {"preconditioning": self.preconditioning.describe(), "path": repr(self.path)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch, with draws of this step."""
        return self._loss(batch, batch_idx, "train", self.trainer.global_step)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the loss of a batch with draws that are the same each time."""
        self._loss(batch, batch_idx, "val", 0)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the loss of a batch with draws that are the same each time."""
        self._loss(batch, batch_idx, "test", 0)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor | None]:
        """Samples for the labels of a batch: ``samples`` (B, ...), ``label`` (B,) and ``index`` (B,)."""
        _, label, index = self._unpack(batch, batch_idx, data=False)
        samples = self.sample(index if label is None else label, self.sample_steps, self.seed, index)
        return {"samples": samples, "label": label, "index": index}

    @torch.no_grad()
    def sample(self, labels: Tensor, steps: int = 1, seed: int = 0, index: Tensor | None = None) -> Tensor:
        """Samples from the model, with dropout off; each depends on the seed, its index and its label alone.

        Args:
            labels: Classes (B,), where ``num_classes`` asks for an unconditional sample. A network without
                classes takes from them only how many samples to draw.
            steps: Number of steps.
            seed: Seed of the noise.
            index: Numbers of the samples (B,); None counts from 0.

        Returns:
            (B, ...) on the module's device.
        """
        index = torch.arange(len(labels)) if index is None else index
        label = None if self.num_classes is None else labels.to(self.device)
        with evaluating(self.network):
            return self._sample(index.to(self.device), label, steps, seed)

    @abstractmethod
    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        """The loss of a batch, logged under ``stage``."""

    @abstractmethod
    def _sample(self, index: Tensor, label: Tensor | None, steps: int, seed: int) -> Tensor:
        """Samples (B, ...) for the numbers ``index`` (B,)."""

    def _noise(
        self, seed: int, step: int, index: Tensor, name: str, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Standard normal (B, ...) on this module's device."""
        dtype = next(self.network.parameters()).dtype if dtype is None else dtype
        return rng.normal(seed, step, index.to(self.device, non_blocking=True), self.shape, name, dtype)

    def _sample_consistency(
        self,
        index: Tensor,
        label: Tensor | None,
        steps: int,
        seed: int,
        levels: list[float],
        preconditioning: Preconditioning | None = None,
    ) -> Tensor:
        """Samples (B, ...) of the denoiser, with new noise between steps."""
        preconditioning = self.preconditioning if preconditioning is None else preconditioning
        model = PreconditionedNetwork(self.network, preconditioning, self.path)
        if steps <= len(levels):
            times = self.path.time_of(torch.tensor(levels[:steps], dtype=torch.float64))
        else:
            times = LogGrid()(steps, self.path)[:-1]
        return sample_consistency(model, lambda n: self._noise(seed, n, index, "sample/noise"), times, label)

    def _unpack(
        self, batch: Any, batch_idx: int, data: bool | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """A batch of any form as ``x``, ``label`` (None where the network has no classes) and ``index``.

        ``x`` is empty where it is not needed and not there.
        """
        if not isinstance(batch, dict):
            fields = [batch] if isinstance(batch, Tensor) else list(batch)
            batch = dict(zip(("x", "label"), fields, strict=False))
        needed = self.needs_data if data is None else data
        if needed and "x" not in batch:
            raise ValueError(f"{type(self).__name__} needs data: the batch has {sorted(batch)}, but no 'x'")
        label = None
        if self.num_classes is not None:
            if "label" not in batch:
                raise ValueError(
                    f"the network has {self.num_classes} classes, but the batch has no 'label': give labels, "
                    "or a network with num_classes=null"
                )
            label = batch["label"]
        x = batch.get("x", torch.empty(0, device=self.device))
        if "x" in batch and tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"the data have items of shape {tuple(x.shape[1:])}, the network takes {self.shape}: "
                "give one of the two the other's size"
            )
        if "index" in batch:
            return x, label, batch["index"]
        # Batches of fewer than 2^20 items never share a number.
        place = batch_idx * self.trainer.world_size + self.trainer.global_rank
        return x, label, torch.arange(len(next(iter(batch.values())))) + (place << 20)

    def _drop_labels(self, label: Tensor, index: Tensor, stage: str, step: int) -> tuple[Tensor, Tensor]:
        """Labels of which a share became unconditional in training, and which those are (on the CPU)."""
        share = self.label_dropout if stage == "train" else 0.0
        dropped = rng.uniform(self.seed, step, index, (), f"{stage}/label") < share
        null = torch.full_like(label, self.num_classes)  # type: ignore[arg-type]
        return torch.where(dropped.to(label.device, non_blocking=True), null, label), dropped

    def _to_device(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        """Times drawn on the CPU in float64, on this device; bfloat16 would blur them."""
        return time.to(self.device, torch.promote_types(dtype, torch.float32), non_blocking=True)

    def _place_frozen(self) -> None:
        self._frozen.to(self.device)

    def on_fit_start(self) -> None:
        """Takes the initial weights, puts what is frozen where this module is, and names the teacher's file.

        Raises:
            ValueError: the network cannot be called as it will be, or gives something else than a tensor.
        """
        self._check_call()
        super().on_fit_start()
        self._place_frozen()
        if self.teacher is not None and self.teacher.file is not None:
            file, weights = self.teacher.file, self.teacher.weights
            record(
                self.trainer,
                "teacher_loaded",
                f"the teacher has the {weights} weights of {display_path(file)}",
                source=str(file),
                weights=weights,
            )

    def _check_call(self) -> None:
        """Calls the network once, since a derivative would fail by errors that are not the user's."""
        z = self._noise(0, 0, torch.arange(2), "call")
        t = torch.full((2,), 0.5, device=z.device, dtype=torch.promote_types(z.dtype, torch.float32))
        h = t / 2 if getattr(self.network, "two_times", self._two_times) else None
        label = None if self.num_classes is None else t.new_zeros(2, dtype=torch.long)
        sizes = f"(B, {', '.join(map(str, self.shape))})"

        def of(given: Tensor | None) -> str:
            return "None" if given is None else "(B,)"

        call = (
            f"{type(self).__name__} calls network(z, t, h, label), with z {sizes}, t (B,), h {of(h)} and "
            f"label {of(label)}, and takes a Tensor of the shape of z"
        )
        wrap = "wrap it in a module whose forward has these arguments and returns that tensor"
        kind = type(self.network).__name__
        try:
            with torch.no_grad(), evaluating(self.network):
                output = self.network.forward(z, t, h, label)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise ValueError(f"{call}; {kind} cannot be called so ({error}): {wrap}") from error
        if not isinstance(output, Tensor):
            raise ValueError(f"{call}; {kind} returned {type(output).__name__}: {wrap}")
        if output.shape != z.shape:
            raise ValueError(
                f"{call}; {kind} made {tuple(output.shape)} of {tuple(z.shape)}: give it as many output "
                "channels as 'shape' says"
            )

    def on_validation_start(self) -> None:
        """Puts what is frozen where this module is."""
        self._place_frozen()

    def on_test_start(self) -> None:
        """Puts what is frozen where this module is."""
        self._place_frozen()


def with_boundary(preconditioning: Preconditioning, boundary: float | None) -> Preconditioning:
    """The preconditioning of a consistency model's samples: with another boundary, if one is given.

    Raises:
        ValueError: ``preconditioning`` has no boundary to change, or the new one is out of range.
    """
    if boundary is None:
        return preconditioning
    if not isinstance(preconditioning, EDMPreconditioning):
        raise ValueError(f"sample_boundary needs EDMPreconditioning, got {preconditioning}")
    return EDMPreconditioning(**{**vars(preconditioning), "boundary": boundary})


def checked_levels(levels: list[float]) -> list[float]:
    """Noise levels of sampling steps: positive, and decreasing."""
    if not levels or min(levels) <= 0 or any(a <= b for a, b in pairwise(levels)):
        raise ValueError(f"sample_levels must be positive noise levels that decrease, got {levels}")
    return list(levels)


def frozen(module: nn.Module) -> nn.Module:
    """The module without gradient, in evaluation mode."""
    return module.requires_grad_(False).eval()


class Frozen(dict[str, Any]):
    """Modules beside a LightningModule: not its parameters, not in its checkpoints, shared by its copies."""

    def to(self, device: torch.device) -> None:
        """Moves them."""
        for module in self.values():
            if isinstance(module, nn.Module):
                module.to(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same modules: they never change."""
        return copy.copy(self)
