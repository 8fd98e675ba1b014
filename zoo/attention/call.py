"""What one call of softmax attention was given and what it returned, whoever made it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of softmax attention. B sequences, H heads, T queries, S keys, d the width of a head.

    The weights are softmax(softcap(scale query . key) + mask), over the keys and, with `sinks`, over one
    further outcome that has no value: to attend to nothing.

    Attributes:
        query: (B, H, T, d), rotary positions applied.
        key: (B, H_kv, S, d), where H is a multiple of H_kv (grouped queries).
        value: (B, H_kv, S, d'), or None where it is not at hand.
        mask: (1 or B, 1 or H, 1 or T, S): bool, true where attention may go, or a float that is added to the
            logits; None for no mask.
        causal: Whether query t sees the keys up to t only, beside the mask.
        scale: The factor of query . key.
        softcap: Logits x become softcap * tanh(x / softcap); None for none.
        sinks: Learned logits (H,) of attending to nothing; None for none.
        output: (B, T, H, d') before the heads are mixed, or None where it is not at hand.
        layer: Name of the attention module in the model.
        module: The attention module.
    """

    query: Tensor
    key: Tensor
    value: Tensor | None = None
    mask: Tensor | None = None
    causal: bool = False
    scale: float = 1.0
    softcap: float | None = None
    sinks: Tensor | None = None
    output: Tensor | None = None
    layer: str = ""
    module: nn.Module | None = None

    def __post_init__(self) -> None:
        (batch, heads, _, width), key = self.query.shape, self.key.shape
        if self.key.ndim != 4 or key[0] != batch or heads % key[1] or key[3] != width:
            raise ValueError(
                f"query (B, H, T, d) and key (B, H_kv, S, d) do not fit: {tuple(self.query.shape)} "
                f"and {tuple(key)}"
            )
        if self.mask is not None:
            sizes = zip(self.mask.shape, (batch, heads, self.query.shape[2], key[2]), strict=False)
            if self.mask.ndim != 4 or any(size not in (1, full) for size, full in sizes):
                raise ValueError(
                    f"mask must be (1 or B, 1 or H, 1 or T, S) for query {tuple(self.query.shape)} and key "
                    f"{tuple(key)}, got {tuple(self.mask.shape)}"
                )

    @property
    def queries(self) -> int:
        """T."""
        return self.query.shape[2]

    @property
    def keys(self) -> int:
        """S."""
        return self.key.shape[2]

    def visible(self, rows: Tensor | None = None) -> Tensor:
        """Where attention may go, as (1 or B, 1 or H, R, S) bool; T x S large for all rows.

        Args:
            rows: Which queries (R,), on the device of the call; None for all.
        """
        count = self.queries if rows is None else len(rows)
        if self.mask is None:
            seen = torch.ones(1, 1, count, self.keys, dtype=torch.bool, device=self.query.device)
        else:
            chosen = self.mask if rows is None or self.mask.shape[2] == 1 else self.mask[:, :, rows]
            # Half the least number: transformers writes that number where a key is hidden.
            seen = chosen if chosen.dtype == torch.bool else chosen > torch.finfo(chosen.dtype).min / 2
            seen = seen.expand(-1, -1, count, -1)
        if not self.causal:
            return seen
        if rows is None:
            return seen.tril()
        return seen & (torch.arange(self.keys, device=rows.device) <= rows[:, None])
