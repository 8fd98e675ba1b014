"""The LightningModule `BigramTable`: logits of the next token in a table, the smallest language model."""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from zoo.base import ZooModule


class BigramTable(ZooModule):
    """Logits of two next tokens for each first token: under SGD its losses are known beforehand.

    The toy of the river-valley landscape (Wen et al. 2024, arXiv 2410.05192, section 4), for which
    `zoo.datamodules.Bigram` has the data and the closed forms. At the optimum the Hessian of a row is
    (diag(p) - p p^T) / n: zero where the next token is certain (the river), large where it is not (the hill).

    Training batches are dicts with ``first`` (B,) and ``next`` (B,), both int64. Validation batches hold the
    distribution instead of ``next``: ``probabilities`` (B, 2) and ``certain`` (B,) bool; their losses are
    expectations over it, without sampling error.

    Logs ``train/loss``, the cross-entropy in nats; ``val/loss``, its expectation; ``val/excess``, that less
    the entropy of the distribution, also over certain and uncertain tokens alone, ``val/excess_certain`` and
    ``val/excess_uncertain``; ``test/`` alike. `zoo predict` gives the probabilities of the next tokens.

    Args:
        n: First tokens.
        optimizer: Builds the optimizer of the table.
        lr_scheduler: Builds a schedule from the optimizer; it is stepped after every update.
        init_from: Checkpoint whose weights this run starts from, or a folder of runs, whose newest is taken.
        init_weights: Which weights of ``init_from``: the average ("ema") or what the optimizer updated
            ("raw").
        seed: Seed of this module's draws; it makes none.

    Raises:
        ValueError: ``n`` is less than 1; while running: data with more tokens, or a batch without a field.
    """

    def __init__(
        self,
        n: int = 64,
        *,
        optimizer: OptimizerCallable = torch.optim.SGD,
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
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self.n = n
        self.theta = nn.Parameter(torch.zeros(n, 2))

    def forward(self, first: Tensor) -> Tensor:
        """Logits (B, 2) of the next tokens after ``first`` (B,)."""
        return F.embedding(first, self.theta)

    @override
    def setup(self, stage: str) -> None:
        """Compares the table with the data before the first batch, where it costs no waiting for a device.

        Raises:
            ValueError: the data have more first tokens than the table.
        """
        tokens = getattr(getattr(self.trainer, "datamodule", None), "n", self.n)
        if tokens > self.n:
            raise ValueError(
                f"the data have n={tokens} first tokens, but the table has n={self.n} rows: give model and "
                "data the same n"
            )

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy of a batch in nats: of its next tokens, or expected under its distribution.

        Raises:
            ValueError: the batch is not one of `zoo.datamodules.Bigram`.
        """
        if "first" not in batch or not ("next" in batch or "probabilities" in batch):
            raise ValueError(
                f"BigramTable needs batches with 'first' and 'next', or with 'first' and 'probabilities', as "
                f"the datamodule Bigram gives; this one has {sorted(batch)}"
            )
        if "next" in batch:
            return F.cross_entropy(self(batch["first"]), batch["next"])
        return self._expected(batch).mean()

    def excess(self, batch: dict[str, Any]) -> Tensor:
        """Excess cross-entropy (B,) in nats over the distribution of a batch, computed in float64."""
        distribution = batch["probabilities"].double()
        return self._expected(batch) + torch.xlogy(distribution, distribution).sum(1)

    def _expected(self, batch: dict[str, Any]) -> Tensor:
        distribution = batch["probabilities"].double()  # (B, 2)
        return -(distribution * self(batch["first"]).double().log_softmax(1)).sum(1)

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @override
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    @override
    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    @override
    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Probabilities (B, 2) of the next tokens after each ``first`` (B,)."""
        return {"first": batch["first"], "probabilities": self(batch["first"]).softmax(1)}

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        loss = self.loss(batch)
        excess, certain = self.excess(batch), batch["certain"]
        size = len(excess)
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=True, prog_bar=True)
        self.log(f"{stage}/excess", excess.mean(), batch_size=size, sync_dist=True)
        for name, rows in (("certain", certain), ("uncertain", ~certain)):
            # Every rank logs both, so that all meet in the reduction; a batch without such rows weighs 0.
            count = int(rows.sum())
            mean = excess[rows].sum() / max(count, 1)
            self.log(f"{stage}/excess_{name}", mean, batch_size=count, sync_dist=True)
