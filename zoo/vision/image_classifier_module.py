"""The LightningModule `ImageClassifier`: any network of timm, trained by cross-entropy."""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from zoo.base import ZooModule, refuse_sharding
from zoo.hf.weight_decay import decay_groups
from zoo.vision.network import build_network, image_shape


class ImageClassifier(ZooModule):
    """A network of timm that classifies images, as a host for callbacks.

    Batches are dicts with ``x`` (B, C, H, W), ``label`` (B,) int64 and ``index`` (B,), as the zoo's
    datamodules of images give.

    Logs ``train/loss``, the mean cross-entropy in nats, and ``val/loss``, ``val/accuracy``, ``test/loss`` and
    ``test/accuracy``, means over all items. `zoo predict` gives ``probabilities`` (B, classes), ``label`` and
    ``index``. The optimizer gets two groups: matrices and convolutions, which decay, and all else.

    Args:
        model: Name of the network in timm.
        options: Arguments of `timm.create_model`, such as ``img_size`` and ``in_chans``.
        num_classes: Classes.
        pretrained: Local file of its weights in safetensors; a last layer of other classes is left out.
        label_smoothing: Share of the target that goes to all classes alike.
        compile: Compile the network for the training pass.
        optimizer: Builds the optimizer from the two groups.
        lr_scheduler: Builds a schedule from the optimizer; it is stepped after every update.
        init_from: Checkpoint whose weights this run starts from, or a folder of runs, whose newest is taken.
        init_weights: Which weights of ``init_from``: the average ("ema") or what the optimizer updated
            ("raw").
        seed: Seed of the weights. None takes the run's, or 0 without one.

    Raises:
        ValueError: an unknown network, options or weights that do not fit it, a number out of range; while
            running: images of another shape.
    """

    def __init__(
        self,
        *,
        model: str = "vit_tiny_patch16_224",
        options: dict[str, Any] | None = None,
        num_classes: int = 10,
        pretrained: str | None = None,
        label_smoothing: float = 0.0,
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
        self.save_hyperparameters()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be from 0 to below 1, got {label_smoothing}")
        self.network = build_network(model, options or {}, num_classes, self.seed, pretrained)
        self.hparams.update(pretrained=None)  # checkpoints hold the weights
        self.label_smoothing = label_smoothing
        self._loaded = pretrained is not None
        self._compile = compile  # `compile` is a method of every module

    @property
    def needs_checkpoint(self) -> bool:
        """Not where it was built with saved weights."""
        return not self._loaded

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W).

        Raises:
            ValueError: images of another shape.
        """
        channels, side = image_shape(self.network)
        if x.ndim != 4 or x.shape[1] != channels or (side is not None and x.shape[-1] != side):
            size = "" if side is None else f" of {side} x {side}"
            raise ValueError(
                f"the network takes images (B, {channels}, H, W){size}, got {tuple(x.shape)}: set in_chans "
                "and img_size in options"
            )
        return self.network(x)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy in nats of a batch: a scalar."""
        return F.cross_entropy(self(batch["x"]).float(), batch["label"], label_smoothing=self.label_smoothing)

    @override
    def setup(self, stage: str) -> None:
        """Compiles the network if asked to.

        Raises:
            ValueError: the strategy shards it.
        """
        refuse_sharding(self, self.trainer.strategy)
        super().setup(stage)
        if stage == "fit" and self._compile:
            self.network.compile()  # in place: parameters keep their names

    @override
    def parameter_groups(self) -> list[Any]:
        decayed, rest = decay_groups(self)
        return [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "val")

    @override
    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "test")

    @override
    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Class probabilities of a batch: ``probabilities`` (B, classes), ``label`` and ``index``."""
        probabilities = self(batch["x"]).float().softmax(-1)
        return {"probabilities": probabilities, "label": batch.get("label"), "index": batch["index"]}

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        logits, label = self(batch["x"]).float(), batch["label"]
        values = {
            f"{stage}/loss": F.cross_entropy(logits, label),
            f"{stage}/accuracy": (logits.argmax(-1) == label).float().mean(),
        }
        self.log_dict(values, batch_size=len(label), sync_dist=True, prog_bar=True)
