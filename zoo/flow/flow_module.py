"""What the LightningModules of this room share: batches, labels, noise, hand-over, samples."""

from abc import abstractmethod
from functools import partial
from pathlib import Path as FilePath
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from zoo import rng
from zoo._modes import evaluating
from zoo.base import WeightReport, refuse_sharding
from zoo.flow.batch import Draws, FlowBatch, draw_batch, read_batch, size_of
from zoo.flow.frozen_module import Frozen, WithFrozenParts
from zoo.flow.handover import take_network
from zoo.flow.mean_flow_times import MeanFlowTimes
from zoo.flow.network_checks import check_attributes, check_call, check_probability
from zoo.flow.paths import Path
from zoo.flow.preconditioned_network import PreconditionedNetwork
from zoo.flow.preconditioning import Preconditioning
from zoo.flow.samplers import Sampler


class FlowModule(WithFrozenParts):
    """A network with a preconditioning on a path, trained by a loss that a subclass defines.

    Batches have the forms of `zoo.flow.batch`. A subclass calls ``super().__init__`` and
    `save_hyperparameters`, and defines `_loss`.

    Args:
        network: F(z, t, h, label) with the attributes of `zoo.flow.networks`.
        preconditioning: What the network's output means.
        path: Path of the states; the preconditioning's own if not given.
        two_times: Whether the network must have a second time input; None for either.
        label_dropout: Probability that an item trains unconditionally.
        sampler: How `sample` and `predict` draw.
        compile: Compile the network for the training pass.
        optimizer: As `lr_scheduler`, `init_from`, `init_weights` and `seed`, of `zoo.base.ZooModule`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        preconditioning: Preconditioning,
        sampler: Sampler,
        path: Path | None = None,
        two_times: bool | None = None,
        label_dropout: float = 0.0,
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            init_from=init_from,
            init_weights=init_weights,
            seed=seed,
        )
        self.network = network
        check_attributes(network, two_times, type(self).__name__)
        check_probability("label_dropout", label_dropout)
        self.shape = tuple(network.shape)  # type: ignore[arg-type]
        self.num_classes = network.num_classes  # type: ignore[assignment]
        self.preconditioning = preconditioning
        self.path = preconditioning.path if path is None else path
        self.label_dropout = label_dropout
        self.sampler = sampler
        self._frozen = Frozen()
        self._two_times = two_times
        self._compile = compile  # `compile` is a method of every module
        self.needs_data = True  # whether a loss asks a batch for x

    @property
    def model(self) -> PreconditionedNetwork:
        """The network read on this module's path."""
        return PreconditionedNetwork(self.network, self.preconditioning, self.path)

    @override
    def setup(self, stage: str) -> None:
        """Refuses strategies that shard the network, loads the teacher, and compiles the network if asked to.

        Raises:
            ValueError: The strategy shards parameters; or the teacher is missing, or does not fit.
        """
        refuse_sharding(self, self.trainer.strategy)
        super().setup(stage)
        if stage == "fit" and self._compile:
            self.network.compile()  # in place: parameters keep their names

    def load_initial_weights(self, path: FilePath) -> WeightReport:
        """Takes the network of a checkpoint so that it computes what it did there (`hand_over`).

        Raises:
            ValueError: its weights do not fit, or its output means another thing.
        """
        try:
            return take_network(self.network, self.preconditioning, path, self.init_weights)
        except ValueError as error:
            raise ValueError(f"init_from={self.init_from!r}: {error}") from error

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # What the network's output means, for whoever takes its weights.
        checkpoint["flow"] = {"preconditioning": self.preconditioning.describe(), "path": repr(self.path)}

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch, batch_idx, "train", self.trainer.global_step)

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._loss(batch, batch_idx, "val", 0)  # draws that are the same each time

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._loss(batch, batch_idx, "test", 0)

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Samples for the labels of a batch: ``samples`` (B, ...), ``label`` (B,) and ``index`` (B,)."""
        _, label, index = self._unpack(batch, batch_idx, data=False)
        samples = self.sample(index if label is None else label, None, self.seed, index)
        return {"samples": samples, "label": label, "index": index}

    @torch.no_grad()
    def sample(
        self, labels: Tensor, steps: int | None = None, seed: int = 0, index: Tensor | None = None
    ) -> Tensor:
        """Samples (B, ...), with dropout off; each depends on the seed, its index and its label alone.

        Args:
            labels: Classes (B,), where ``num_classes`` asks for an unconditional sample. A network without
                classes takes from them only how many samples to draw.
            steps: Number of steps; the sampler's own if not given.
            seed: Seed of the noise.
            index: Numbers of the samples (B,); None counts from 0.
        """
        numbers = (torch.arange(len(labels)) if index is None else index).to(self.device)
        label = None if self.num_classes is None else labels.to(self.device)

        with evaluating(self.network):
            draw = partial(self._noise, index=numbers, name="sample/noise")
            return self.sampler(self._sampling_model(), partial(draw, seed), label, steps)

    def _sampling_model(self) -> Any:
        """What the sampler is given."""
        return self.model

    @abstractmethod
    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        """The loss of a batch, logged under ``stage``."""

    def _noise(self, seed: int, step: int, index: Tensor, name: str, dtype: Any = None) -> Tensor:
        """Standard normal (B, ...) on this module's device, in the network's dtype if not in another."""
        dtype = next(self.network.parameters()).dtype if dtype is None else dtype
        return rng.normal(seed, step, index.to(self.device, non_blocking=True), self.shape, name, dtype)

    def _prepare(
        self, batch: Any, batch_idx: int, stage: str, step: int, times: MeanFlowTimes | None = None
    ) -> FlowBatch:
        """A batch with noise and dropped labels; with ``times``, those too, items with r < t first."""
        x, label, index = self._unpack(batch, batch_idx)
        return draw_batch(
            x,
            None if label is None else label.to(self.device),
            index.cpu(),  # waits for the device only where the index was moved there
            Draws(self.seed, step, f"{stage}/"),
            noise=partial(self._noise, dtype=x.dtype if self.needs_data else None),
            null=self.num_classes,
            label_dropout=self.label_dropout if stage == "train" else 0.0,
            times=times,
        )

    def _unpack(
        self, batch: Any, batch_idx: int, data: bool | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """``x`` (empty where there is none), ``label`` and ``index`` of a batch in any form."""
        needed = self.needs_data if data is None else data
        x, label, index = read_batch(batch, self.shape, self.num_classes, type(self).__name__, needed)
        if index is None:
            # Batches of fewer than 2^20 items never share a number.
            place = batch_idx * self.trainer.world_size + self.trainer.global_rank
            index = torch.arange(size_of(batch)) + (place << 20)
        return torch.empty(0, device=self.device) if x is None else x, label, index

    @override
    def on_fit_start(self) -> None:
        # Before anything is loaded: a network that cannot be called so is refused.
        states = self._noise(0, 0, torch.arange(2), "call")
        check_call(self.network, states, self._two_times, type(self).__name__)
        super().on_fit_start()
