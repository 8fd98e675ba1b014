"""Losses of next tokens, in float32 and natural logarithms."""

import math

from torch import Tensor
from torch.nn import functional as F


def next_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities (B, T, V) in float32 of logits (B, T, V) of any dtype."""
    return F.log_softmax(logits.float(), dim=-1)


def next_token_losses(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (B, T) in nats of targets (B, T) under log-probabilities (B, T, V).

    >>> import torch
    >>> next_token_losses(torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[1]])).item()  # ln 2
    0.6931471824645996
    """
    return F.nll_loss(log_probs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def log_partition(logits: Tensor, log_probs: Tensor, targets: Tensor) -> Tensor:
    """Logsumexp (B, T) in float32 of logits (B, T, V), read off one entry: log Z = logit - log p.

    The log-probabilities are there already, so neither value nor gradient needs another pass over V; the
    gradient is the softmax, as of the logsumexp itself.

    Args:
        logits: (B, T, V).
        log_probs: (B, T, V) of `next_log_probs`.
        targets: (B, T), the entries that are read.

    >>> import torch
    >>> logits, targets = torch.zeros(1, 1, 4), torch.tensor([[2]])
    >>> round(log_partition(logits, next_log_probs(logits), targets).item(), 4)  # ln 4
    1.3863
    """
    where = targets.unsqueeze(-1)  # (B, T, 1)
    return (logits.gather(-1, where).float() - log_probs.gather(-1, where)).squeeze(-1)


def mean_over(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of ``values`` (B, T), where ``mask`` (B, T) is true if given; 0 where nothing counts."""
    if mask is None:
        return values.mean()
    counted = mask.to(values.dtype)
    return (values * counted).sum() / counted.sum().clamp(min=1)


def in_other_units(loss: Tensor, bytes_per_token: float | None) -> dict[str, Tensor]:
    """Perplexity of a mean cross-entropy in nats and, where the text's bytes are known, bits per byte.

    >>> import torch
    >>> units = in_other_units(torch.tensor(math.log(8)), bytes_per_token=4)
    >>> {unit: round(value.item(), 3) for unit, value in units.items()}
    {'perplexity': 8.0, 'bits_per_byte': 0.75}
    """
    units = {"perplexity": loss.exp()}
    if bytes_per_token is not None:
        units["bits_per_byte"] = loss / (math.log(2) * bytes_per_token)
    return units
