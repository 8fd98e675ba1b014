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


class AttentionBlock(nn.Module):
    """A block of a transformer: attention and an MLP, each behind a norm and beside a residual.

    Its projections stand apart, without biases, and it calls `scaled_dot_product_attention`, as most do.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        up, down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.mlp = nn.Sequential(up, nn.GELU(), down)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        y = self.attention_norm(x)
        q, k, v = (
            project(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )  # (B, H, T, D / H)
        heads = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.dropout(self.out(heads.transpose(1, 2).flatten(2)))  # (B, T, D)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class RowTransformer(nn.Module):
    """Reads an image of 8 x 8 as eight tokens, its rows, through equal blocks."""

    def __init__(self, width: int, dropout: float, blocks: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.position = nn.Parameter(0.1 * torch.randn(8, width))
        self.blocks = nn.ModuleList(AttentionBlock(width, heads, dropout) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8) to (B, 10)."""
        x = self.embedding(images.flatten(0, 1)) + self.position  # (B, 8, D)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class AttentionToy(ToyClassifier):
    """The same with four equal attention blocks, so that callbacks for stages and attention have a host."""

    def __init__(self, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__(width, dropout)
        self.network: nn.Module = RowTransformer(width, dropout)


class ManualOptimization(LightningModule):
    """Trains what it is mixed into with two optimizers under manual optimization."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
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


class ManualToy(ManualOptimization, ToyClassifier):
    """`ToyClassifier` under manual optimization."""


class ManualAttentionToy(ManualOptimization, AttentionToy):
    """`AttentionToy` under manual optimization."""


class ToyGenerator(ToyClassifier):
    """Predicts all that the writers want, each a function of its item; only the noise is global."""

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.log("test/noise", torch.rand(()))

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        index = batch["index"]
        return {
            "samples": batch["x"], "label": batch["label"], "index": index, "tokens": index[:, None],
            "text": [f"item {k}" for k in index.tolist()], "noise": torch.rand(()),
            "logits": self.network(batch["x"]), "states": batch["x"][:, None].expand(-1, 3, -1, -1, -1),
            "times": torch.tensor([2.0, 1.0, 0.5]), "path": "VarianceExplodingPath()", "origin": "",
        }  # fmt: skip
