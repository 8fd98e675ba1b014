"""One forward of a network with its readers: the order in which they are called."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.lm.losses import next_log_probs
from zoo.lm.readers import hearing, passed_on, tell
from zoo.lm.taps import Taps


@dataclass(frozen=True)
class Prediction:
    """What a network and its readers say of the next tokens."""

    network_logits: Tensor  # (B, T, V), in the network's dtype
    network_log_probs: Tensor  # (B, T, V) float32
    log_probs: Tensor  # (B, T, V) float32, after the readers


def read_forward(
    network: nn.Module,
    readers: nn.ModuleList,
    taps: Taps,
    tokens: Tensor,
    index: Tensor | None,
    cache: Any = None,
) -> Prediction:
    """Predicts the token after each of ``tokens`` (B, T); the caller tells `on_forward_end`.

    Args:
        network: A transformers causal language model.
        readers: Its readers.
        taps: Those of the two.
        tokens: Inputs (B, T).
        index: Numbers of the items (B,), for the readers.
        cache: transformers' cache of the keys and values before ``tokens``, which it is filled with. With one
            only the token after the last is predicted, so the result has T = 1.
    """
    tell(readers, "on_forward_start", tokens, index)
    options = {} if cache is None else {"past_key_values": cache, "logits_to_keep": 1}
    with taps.listening():
        logits = network(input_ids=tokens, use_cache=cache is not None, **options).logits
    own = log_probs = next_log_probs(logits)
    if taps.feed_forward is not None:
        hidden = taps.feed_forward.take(len(tokens))  # (B, T, D)
        tell(readers, "on_ffn_input", hidden)
        hidden = hidden[:, -log_probs.shape[1] :]  # (B, 1, D) with a cache
        for reader in hearing(readers, "on_log_probs"):
            returned = reader.on_log_probs(log_probs, hidden)  # type: ignore[operator]
            log_probs = passed_on(reader, "on_log_probs", returned, log_probs)
    return Prediction(logits, own, log_probs)
