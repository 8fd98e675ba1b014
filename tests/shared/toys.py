"""Small LightningModules on digits that stand for users' own: automatic and manual optimization, dropout."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class ToyClassifier(LightningModule):
    """Classifies digits; can also `sample` (noise), so that callbacks for generative models have a host."""

    def __init__(self, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10)
        )
        self.losses: list[Tensor] = []

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch["x"]), batch["label"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def sample(self, labels: Tensor, steps: int, seed: int = 0, index: Tensor | None = None) -> Tensor:
        noise = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        return noise / steps


class ManualToy(ToyClassifier):
    """The same with two optimizers under manual optimization."""

    def __init__(self, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__(width, dropout)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        loss = self.loss(batch)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        self.log("train/loss", loss)
        self.losses.append(loss.detach())

    def configure_optimizers(self) -> Any:
        weights = [p for p in self.parameters() if p.ndim > 1]
        biases = [p for p in self.parameters() if p.ndim == 1]
        return torch.optim.AdamW(weights, lr=1e-2), torch.optim.SGD(biases, lr=1e-2)
