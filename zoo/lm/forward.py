"""One forward of a network with its hooks: the order in which they are called."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.lm.hook_points import HookPoints
from zoo.lm.hooks import call_hook, check_output, with_hook
from zoo.lm.losses import next_log_probs


@dataclass(frozen=True)
class Prediction:
    """What a network and its hooks say of the next tokens."""

    network_logits: Tensor  # (B, T, V), in the network's dtype
    network_log_probs: Tensor  # (B, T, V) float32
    log_probs: Tensor  # (B, T, V) float32, after the hooks


def forward_with_hooks(
    network: nn.Module,
    hooks: nn.ModuleList,
    hook_points: HookPoints,
    tokens: Tensor,
    index: Tensor | None,
    cache: Any = None,
) -> Prediction:
    """Predicts the token after each of ``tokens`` (B, T); the caller tells `on_forward_end`.

    Args:
        network: A transformers causal language model.
        hooks: Its hooks.
        hook_points: Those of the two.
        tokens: Inputs (B, T).
        index: Numbers of the items (B,), for the hooks.
        cache: transformers' cache of the keys and values before ``tokens``, which it is filled with. With one
            only the token after the last is predicted, so the result has T = 1.
    """
    call_hook(hooks, "on_forward_start", tokens, index)
    options = {} if cache is None else {"past_key_values": cache, "logits_to_keep": 1}
    with hook_points.attached():
        logits = network(input_ids=tokens, use_cache=cache is not None, **options).logits
    own = log_probs = next_log_probs(logits)
    if hook_points.feed_forward is not None:
        hidden = hook_points.feed_forward.take(len(tokens))  # (B, T, D)
        call_hook(hooks, "on_ffn_input", hidden)
        hidden = hidden[:, -log_probs.shape[1] :]  # (B, 1, D) with a cache
        for hook in with_hook(hooks, "on_log_probs"):
            returned = hook.on_log_probs(log_probs, hidden)  # type: ignore[operator]
            log_probs = check_output(hook, "on_log_probs", returned, log_probs)
    return Prediction(logits, own, log_probs)
