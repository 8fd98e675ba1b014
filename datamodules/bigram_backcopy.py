"""Sequences on which a language model grows an attention sink within seconds: bi-grams, and tokens that copy.

The task is that of "Active-Dormant Attention Heads" (Guo et al. 2024, arXiv 2410.13835, section 2): after
most tokens the next is drawn from a row of a table, which needs no attention; after a trigger it is the token
before the trigger, which needs attention to that. So a head is active at triggers, and at all others it has
nothing to do and parks its attention on the first token.
"""

import numpy as np
import torch
from torch import Tensor

from zoo import rng
from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._loader import Batch, Loader, Places, Table, Transform

FIRST = 0  # id of the token that begins every sequence


class BigramBackcopy(SplitDataModule):
    """A first token, then bi-grams, and copies after triggers; for `zoo.lm.CausalLM`.

    Token 0 begins a sequence and comes nowhere else; tokens 1 to ``triggers`` are triggers. The successor of
    a trigger is the token before it; that of any other token is drawn from its row of a table, whose rows are
    Dirichlet draws over all tokens but the first (no trigger follows the first token).

    Batches are dicts: ``tokens`` (B, context + 1) int64 and ``index`` (B,) int64. Training never ends: each
    pass draws new sequences, which depend on (seed, pass, index) alone; those of validation and test are
    fixed.

    Args:
        vocab_size: Tokens, the first one and the triggers included.
        triggers: How many are triggers.
        context: Tokens of an input.
        concentration: Of the Dirichlet distribution; less makes rows more uneven.
        size: Sequences in a pass.
        held_out: Sequences of validation, and of test.
        batch_size: Sequences per batch and process.
        num_workers: Worker processes that read ahead; a draw is cheap, so 0 is fastest.
        seed: Seed of the table and the draws. None takes the run's, or 0 without one.

    Raises:
        ValueError: no ordinary tokens are left, or a number is out of range.
    """

    own_vocabulary = True

    def __init__(
        self,
        vocab_size: int = 24,
        triggers: int = 3,
        context: int = 32,
        concentration: float = 0.3,
        size: int = 65536,
        held_out: int = 512,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()
        if not 1 <= triggers <= vocab_size - 3:
            raise ValueError(
                f"triggers must be from 1 to vocab_size - 3, so that two ordinary tokens are left, got "
                f"triggers={triggers} of vocab_size={vocab_size}"
            )
        if context < 2:
            raise ValueError(f"context must be at least 2, got {context}")
        if not concentration > 0:
            raise ValueError(f"concentration must be above 0, got {concentration}")
        if size < batch_size or held_out < 1:
            raise ValueError(
                f"size must be at least batch_size={batch_size} and held_out at least 1, got {size} and "
                f"{held_out}"
            )
        self.vocab_size, self.triggers, self.context = vocab_size, triggers, context
        self.concentration, self.size, self.held_out = concentration, size, held_out

    @property
    def table(self) -> Tensor:
        """Probabilities (V, V) in float64 of the next token after each; the rows of triggers are not used."""
        generator = np.random.default_rng(self.seed)
        rows = generator.dirichlet([self.concentration] * (self.vocab_size - 1), self.vocab_size)
        table = torch.zeros(self.vocab_size, self.vocab_size, dtype=torch.float64)
        table[:, 1:] = torch.from_numpy(rows)
        table[FIRST, 1 : self.triggers + 1] = 0  # what would be copied after it is the first token
        return table / table.sum(1, keepdim=True)

    @property
    def entropy(self) -> float:
        """Mean entropy in nats of a next token given all before: the least cross-entropy there is.

        Exact: a chain over pairs of tokens, for as many places as a sequence has.

        >>> round(BigramBackcopy(seed=0).entropy, 4) < 2.0
        True
        """
        table, size = self.table, self.vocab_size
        copies = torch.zeros(size, dtype=torch.float64)
        copies[1 : self.triggers + 1] = 1
        uncertain = -torch.xlogy(table, table).sum(1) * (1 - copies)
        pairs = torch.zeros(size, size, dtype=torch.float64)  # (token before, token)
        pairs[FIRST, FIRST] = 1
        total = 0.0
        for _ in range(self.context):
            total += float((pairs.sum(0) * uncertain).sum())
            drawn = (pairs.sum(0) * (1 - copies))[:, None] * table
            copied = (pairs * copies).T  # the token before comes again after a trigger
            pairs = drawn + copied
        return total / self.context

    def setup(self, stage: str) -> None:
        """Draws what is fixed; training sequences are drawn when they are asked for."""
        self.train_set = Places(self.size)
        index = torch.arange(self.held_out)
        held_out = (_Sequences(self, name)({"index": index}, 0)["tokens"] for name in ("validation", "test"))
        self.val_set, self.test_set = (Table({"tokens": tokens}) for tokens in held_out)

    def predict_dataloader(self) -> Loader:
        """The first quarters of the test sequences: prompts."""
        tokens = self.test_set.columns["tokens"][:, : self.context // 4]
        return self._loader(Table({"tokens": tokens}), train=False)

    def reference_dataloader(self) -> Loader:
        """Not offered: the distribution itself is the reference.

        Raises:
            ValueError: always.
        """
        raise ValueError("BigramBackcopy has no items to compare with: its entropy is the reference")

    def transform(self, train: bool) -> Transform | None:
        """Draws the sequences of a training batch."""
        return _Sequences(self, "train") if train else None


class _Sequences:
    """From the numbers of a batch to its sequences."""

    def __init__(self, data: BigramBackcopy, name: str) -> None:
        self.sums = data.table.cumsum(1)
        self.sums /= self.sums[:, -1:].clone()  # exactly 1 at the end
        self.context, self.triggers, self.seed, self.name = data.context, data.triggers, data.seed, name

    def __call__(self, batch: Batch, number: int) -> Batch:
        """The sequences of pass ``number``."""
        index = batch["index"]
        draws = rng.uniform(self.seed, number, index, (self.context,), f"backcopy {self.name}", torch.float64)
        tokens = torch.full((len(index), self.context + 1), FIRST)
        for place in range(self.context):
            now, before = tokens[:, place], tokens[:, max(0, place - 1)]
            drawn = torch.searchsorted(self.sums[now], draws[:, place : place + 1].contiguous(), right=True)[
                :, 0
            ]
            copies = (now >= 1) & (now <= self.triggers)
            tokens[:, place + 1] = torch.where(copies, before, drawn)
        return {"tokens": tokens} | batch
