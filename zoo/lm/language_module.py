"""The steps of language models and what they log: losses in several units, and tokens per second."""

from abc import abstractmethod
from typing import Any

from torch import Tensor
from typing_extensions import override

from zoo.base import ZooModule
from zoo.hf.losses import in_other_units, mean_over
from zoo.lm.throughput import TokenRate


class LanguageModule(ZooModule):
    """A LightningModule that trains on the mean of `_losses`, and continues prompts by `generate`.

    A subclass defines these two, and sets ``z_loss``.

    Batches are dicts; ``mask`` (B, T), if there is one, says which losses count.
    """

    z_loss: float = 0.0
    _rate: TokenRate

    @abstractmethod
    def _losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Cross-entropies (B, T), and logsumexp of the logits (B, T) where the z-loss asks for it."""

    @abstractmethod
    def generate(self, prompts: Tensor, index: Tensor, max_new_tokens: int | None = None) -> Tensor:
        """Continues ``prompts`` (B, P), numbered by ``index`` (B,): (B, P + max_new_tokens)."""

    def token_losses(self, batch: dict[str, Any]) -> Tensor:
        """Cross-entropy (B, T) in nats of each target, masked ones included."""
        return self._losses(batch)[0]

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy in nats of the targets that count, without the z-loss: a scalar."""
        return mean_over(self._losses(batch)[0], batch.get("mask"))

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses, partition = self._losses(batch)
        loss = mean_over(losses, batch.get("mask"))
        self.log("train/loss", loss.detach(), prog_bar=True)
        self._rate.count(losses.numel())
        if partition is None:
            return loss
        penalty = mean_over(partition.square(), batch.get("mask"))
        self.log("train/z_loss", penalty.detach())
        return loss + self.z_loss * penalty

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "val")

    @override
    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "test")

    @override
    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Continues a batch of prompts.

        Returns:
            ``tokens`` (B, P + max_new_tokens), prompts included, ``index`` (B,), and ``text``, a string for
            each, where the datamodule has `decode` and does not say ``decodes = False``.
        """
        tokens = self.generate(batch["tokens"], batch["index"])
        made = {"tokens": tokens, "index": batch["index"]}
        data = self._data()
        decode = getattr(data, "decode", None) if getattr(data, "decodes", True) else None
        return made if decode is None else made | {"text": [decode(row) for row in tokens.cpu()]}

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if not self._rate.running:
            self._rate.start()

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if every and self.trainer.global_step % every == 0 and self._rate.counted:
            self.log("train/tokens_per_second", self._rate.read() * self.trainer.world_size)

    @override
    def on_validation_start(self) -> None:
        self._rate.stop()  # its time is not training

    @override
    def on_validation_epoch_end(self) -> None:
        self._summarize("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._summarize("test")

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        losses, mask = self._losses(batch)[0], batch.get("mask")
        count = losses.numel() if mask is None else int(mask.sum())
        # Weighed by tokens, so that the epoch's mean is one over all of them.
        self.log(f"{stage}/loss", mean_over(losses, mask), batch_size=count, sync_dist=True, prog_bar=True)

    def _summarize(self, stage: str) -> None:
        bytes_per_token = getattr(self._data(), "bytes_per_token", None)
        for name, loss in list(self.trainer.callback_metrics.items()):
            if name.startswith(f"{stage}/loss"):  # one for each dataloader
                for unit, value in in_other_units(loss, bytes_per_token).items():
                    renamed = name.replace("/loss", f"/{unit}")
                    self.log(renamed, value, add_dataloader_idx=False, sync_dist=True)

    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)
