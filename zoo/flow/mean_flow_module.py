"""The LightningModule `MeanFlow`: from a batch to the loss of `zoo.flow.mean_flow`, and to samples."""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from zoo import rng
from zoo.base import ZooModule
from zoo.flow.mean_flow import adaptive, mean_flow_error
from zoo.flow.samplers import sample_mean_flow
from zoo.flow.tangent import evaluating
from zoo.flow.times import MeanFlowTimes


class MeanFlow(ZooModule):
    """Trains a network to jump from noise to data in one step, or in a few (Geng et al. 2025, arXiv
    2505.13447).

    Batches are dicts with ``x`` (B, ...), ``label`` (B,) if the network has classes, and ``index`` (B,), the
    global index of each item, on which all draws depend. Tuples ``(x,)`` and ``(x, label)`` work too: their
    items are then numbered by place (batch, process, position), so draws depend on the batch size and the
    number of processes.

    Logs ``train/loss`` (adaptively weighted: about flat by design), ``train/mse`` (the squared error behind
    it, per value) and ``train/velocity_mse`` (the same where r = t); ``val/`` and ``test/`` alike, with fixed
    draws.

    Args:
        network: u(z, t, h, label) with attributes ``shape`` and ``num_classes``, for example `zoo.flow.DiT`.
        times: Draws (t, r); null takes `MeanFlowTimes` with its defaults, the paper's for ImageNet.
        omega: Guidance: share of the data's velocity. 1 with kappa 0 is no guidance.
        kappa: Guidance: share of the network's own conditional velocity; the effective scale is omega / (1 -
            kappa).
        guidance_start: Guide only where t is at least this.
        guidance_end: Guide only where t is at most this.
        label_dropout: Probability that an item trains as one without a class (and without guidance).
        power: Power p of the adaptive weight 1 / (L + eps)^p; 0 for the plain squared error. The weight
            follows each item's own error, so over few values (points rather than images) it draws the
            average velocity towards a median: use 0 where the exact flow matters.
        eps: The eps of the adaptive weight.
        reduction: Whether an item's L is the sum or the mean of its squared errors.
        sample_steps: Steps of the samples that `predict` makes.
        compile: Compile the network for the training pass.
        optimizer: Builds the optimizer from the trainable parameters.
        lr_scheduler: Builds a schedule from the optimizer; it is stepped after every update.
        init_from: Checkpoint whose weights this run starts from.
        init_weights: Which weights of ``init_from``: the average ("ema") or what the optimizer updated
            ("raw").
        seed: Seed of the draws. None takes the run's, or 0 without one.
    """

    def __init__(
        self,
        network: nn.Module,
        times: MeanFlowTimes | None = None,
        omega: float = 1.0,
        kappa: float = 0.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        label_dropout: float = 0.1,
        power: float = 1.0,
        eps: float = 0.01,
        reduction: Literal["sum", "mean"] = "sum",
        sample_steps: int = 1,
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, init_from, init_weights, seed)
        self.save_hyperparameters()
        self.network = network
        for name in ("shape", "num_classes"):
            if not hasattr(network, name):
                raise ValueError(
                    "network must have the attributes 'shape' (of one item) and 'num_classes' (or None): "
                    f"{type(network).__name__} has no {name!r}"
                )
        self.shape: tuple[int, ...] = tuple(network.shape)  # type: ignore[arg-type]
        self.num_classes: int | None = network.num_classes  # type: ignore[assignment]
        self.times = MeanFlowTimes() if times is None else times
        self.omega, self.kappa = omega, kappa
        self.guidance_start, self.guidance_end = guidance_start, guidance_end
        self.label_dropout = label_dropout
        self.power, self.eps, self.reduction = power, eps, reduction
        self.sample_steps = sample_steps
        self._compile = compile  # `compile` is a method of every module
        self._check()

    def _check(self) -> None:
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must be a probability in [0, 1], got {self.label_dropout}")
        if self.power < 0:
            raise ValueError(f"power must be at least 0 (0 for the plain squared error), got {self.power}")
        if self.eps <= 0:
            raise ValueError(
                f"eps must be positive (it keeps the weight of a perfect item finite), got {self.eps}"
            )
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {self.reduction!r}")
        if self.sample_steps < 1:
            raise ValueError(f"sample_steps must be at least 1, got {self.sample_steps}")
        if not 0 <= self.guidance_start <= self.guidance_end <= 1:
            raise ValueError(
                "guidance_start and guidance_end must satisfy 0 <= start <= end <= 1, got "
                f"{self.guidance_start} and {self.guidance_end}"
            )
        if self.guided and self.num_classes is None:
            raise ValueError(
                f"omega={self.omega}, kappa={self.kappa} asks for guidance, but the network has no classes: "
                "give it num_classes, or leave omega=1 and kappa=0"
            )

    @property
    def guided(self) -> bool:
        """Whether the target is guided at all."""
        return self.omega != 1 or self.kappa != 0

    def setup(self, stage: str) -> None:
        """Refuses strategies that shard the network, and compiles it for training if asked to.

        Raises:
            ValueError: The strategy shards parameters.
        """
        strategy = self.trainer.strategy
        sharded = isinstance(strategy, FSDPStrategy | ModelParallelStrategy)
        if sharded or (isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3):
            raise ValueError(
                f"MeanFlow does not run under {type(strategy).__name__}: the network's derivative is taken "
                "outside of the hooks that gather its shards. Use strategy 'ddp'"
            )
        super().setup(stage)
        if stage == "fit" and self._compile:
            self.network.compile()  # in place: parameters keep their names

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
        """Samples for the labels of a batch: ``samples`` (B, ...) and ``label`` (B,)."""
        _, label, index = self._unpack(batch, batch_idx)
        samples = self.sample(index if label is None else label, self.sample_steps, self.seed, index)
        return {"samples": samples, "label": label}

    @torch.no_grad()
    def sample(self, labels: Tensor, steps: int = 1, seed: int = 0, index: Tensor | None = None) -> Tensor:
        """Samples from the model, with dropout off; each depends on the seed, its index and its label alone.

        Args:
            labels: Classes (B,), where ``num_classes`` asks for a sample without a class. A network without
                classes takes from them only how many samples to draw.
            steps: Number of steps.
            seed: Seed of the noise.
            index: Numbers of the samples (B,); None counts from 0.

        Returns:
            (B, ...) on the module's device.
        """
        index = torch.arange(len(labels)) if index is None else index
        dtype = next(self.network.parameters()).dtype
        noise = rng.normal(seed, 0, index.to(self.device), self.shape, "sample/noise", dtype)
        label = None if self.num_classes is None else labels.to(self.device)
        with evaluating(self.network):
            return sample_mean_flow(self.network, noise, label, steps)

    def _unpack(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """A batch of any form as ``x``, ``label`` (None where the network has no classes) and ``index``."""
        if not isinstance(batch, dict):
            fields = [batch] if isinstance(batch, Tensor) else list(batch)
            batch = dict(zip(("x", "label"), fields, strict=False))
        x = batch["x"]
        label = None
        if self.num_classes is not None:
            if "label" not in batch:
                raise ValueError(
                    f"the network has {self.num_classes} classes, but the batch has no 'label': give labels, "
                    "or a network with num_classes=null"
                )
            label = batch["label"]
        if "index" in batch:
            return x, label, batch["index"]
        # Batches of fewer than 2^20 items never share a number.
        place = batch_idx * self.trainer.world_size + self.trainer.global_rank
        return x, label, torch.arange(len(x)) + (place << 20)

    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        x, label, index = self._unpack(batch, batch_idx)
        index = index.cpu()  # waits for the device only where the index was moved there
        t, r = self.times(self.seed, step, index, f"{stage}/")
        # The items with a derivative come first. Counting them here, on the CPU, costs no host sync.
        order = (r < t).argsort(descending=True, stable=True)
        count = int((r < t).sum())
        t, r, index = t[order], r[order], index[order]
        rows = order.to(x.device, non_blocking=True)
        x = x[rows]
        noise = rng.normal(self.seed, step, index.to(x.device), x.shape[1:], f"{stage}/noise", x.dtype)
        guided = None
        if label is not None:
            share = self.label_dropout if stage == "train" else 0.0
            dropped = rng.uniform(self.seed, step, index, (), f"{stage}/label") < share
            null = torch.full_like(label, self.num_classes)  # type: ignore[arg-type]
            label = torch.where(dropped.to(x.device, non_blocking=True), null, label[rows])
            if self.guided:
                inside = (self.guidance_start <= t) & (t <= self.guidance_end) & ~dropped
                guided = inside.nonzero()[:, 0].to(x.device, non_blocking=True)
        precise = torch.promote_types(x.dtype, torch.float32)  # bfloat16 would blur the times
        t, h = (times.to(x.device, precise, non_blocking=True) for times in (t, t - r))
        error = mean_flow_error(
            self.network, x, noise, t, h, label, count, guided, self.omega, self.kappa, self.reduction
        )  # (B,)
        loss = adaptive(error, self.power, self.eps).mean()
        per_value = error.detach() if self.reduction == "mean" else error.detach() / x[0].numel()
        self._log(stage, loss.detach(), per_value, count)
        return loss

    def _log(self, stage: str, loss: Tensor, error: Tensor, count: int) -> None:
        training, size = stage == "train", len(error)
        sync = not training
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=sync)
        self.log(f"{stage}/mse", error.mean(), batch_size=size, sync_dist=sync, prog_bar=training)
        if count < size or sync:  # all processes must take part in an epoch's mean, with weight 0 if need be
            still = error[count:].sum() / max(size - count, 1)
            self.log(f"{stage}/velocity_mse", still, batch_size=size - count, sync_dist=sync)
