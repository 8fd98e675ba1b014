"""Hooks: modules that read or modify the attention and the log-probabilities of a language model.

A hook is any `nn.Module` that has some of the methods below; it imports nothing of this package. It is a
submodule of the `CausalLM` it is given to, so its parameters train and are saved, and its ``training`` says
whether the model learns. Hooks are called in the order of their list, each with what the one before it
returned. B sequences, T tokens in this forward, S tokens that can be attended to, H heads (H_kv of keys and
values), d their width, D the model's width, V the vocabulary.

``on_generation_start(index)`` and ``on_generation_end()``
    Around the continuation of prompts, numbered by ``index`` (B,): what is remembered is of other sequences.
``on_forward_start(tokens, index)``
    Before each forward: its inputs (B, T), and the numbers of the items (B,), or None where the caller gave
    none.
``on_attention(query, key, value, mask, scale, output)``
    Within layer ``layer`` (an attribute of the hook, 0 the first): query (B, H, T, d) and key (B, H_kv, S,
    d) with positions rotated in, where the model does that; value (B, H_kv, S, d); mask (1 or B, 1, T, S)
    bool, true where attention may go; scale, the factor of query . key in the softmax, a float; output (B, T,
    H, d) of the backend, before the heads are mixed. Returns the output to go on with, of the same shape.
    Backends sdpa and eager.
``on_ffn_input(hidden)``
    What goes into the last layer's feed-forward network (B, T, D), after its norm: the keys of kNN-LM.
``on_log_probs(log_probs, hidden)``
    Log-probabilities (B, T, V) in float32 of the next tokens, and the input of the last feed-forward network
    at the same places (B, T, D). Returns the log-probabilities to go on with, of the same shape: the loss is
    taken on these, and gradients flow through.
``on_forward_end(tokens, targets, index)``
    After the predictions were made: what came next (B, T), -100 where it does not count; None in generation.
    Only here does a hook learn the targets, so none can look ahead.

In training and evaluation T is the batch's. In generation the first forward has the prompt's T, each later
one T = 1, and S counts all so far (the keys and values are cached); `on_log_probs` then gets T = 1, the last
place alone. Hidden states and log-probabilities carry gradients in training: detach what is kept.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from zoo._suggest import suggest

HOOK_METHODS = (
    "on_generation_start",
    "on_forward_start",
    "on_attention",
    "on_ffn_input",
    "on_log_probs",
    "on_forward_end",
    "on_generation_end",
)
IGNORED = -100  # stands in the targets where nothing is to be learned, as in PyTorch's losses


def with_hook(hooks: nn.ModuleList, method: str) -> Iterator[nn.Module]:
    """The hooks that have a method, in order."""
    return (hook for hook in hooks if hasattr(hook, method))


def has_hook(hooks: nn.ModuleList, method: str) -> bool:
    """Whether some hook has a method."""
    return any(hasattr(hook, method) for hook in hooks)


def call_hook(hooks: nn.ModuleList, method: str, *arguments: Tensor | None) -> None:
    """Calls a method of the hooks that have it."""
    for hook in with_hook(hooks, method):
        getattr(hook, method)(*arguments)


def check_output(hook: nn.Module, method: str, returned: object, given: Tensor) -> Tensor:
    """What a hook returned in place of ``given``.

    Raises:
        ValueError: it is not a tensor of the same shape.
    """
    if not isinstance(returned, Tensor) or returned.shape != given.shape:
        got = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise ValueError(
            f"{type(hook).__name__}.{method} must return a tensor of shape {tuple(given.shape)} (what it was "
            f"given, to change nothing), got {got}"
        )
    return returned


def check_hooks(hooks: Iterable[nn.Module], layers: int | None) -> None:
    """Refuses hooks that would never be called, or not where they mean to be.

    Args:
        hooks: The hooks of a model.
        layers: How many layers the model has; None where that is not known.

    Raises:
        ValueError: no module, no hook, an unknown ``on_...``, or a ``layer`` that does not exist.
    """
    for place, hook in enumerate(hooks):
        name = f"hooks[{place}] ({type(hook).__name__})"
        if not isinstance(hook, nn.Module):
            raise ValueError(f"{name} must be an nn.Module, so that its parameters train and are saved")
        methods = {method for method in dir(hook) if method.startswith("on_")}
        known = ", ".join(HOOK_METHODS)
        if unknown := sorted(methods - set(HOOK_METHODS)):
            raise ValueError(
                f"{name} has {unknown[0]}, which nothing calls"
                f"{suggest(unknown[0], HOOK_METHODS) or f'; known are {known}'}"
            )
        if not methods:
            raise ValueError(f"{name} must have one of the methods {known}; it has none")
        if "on_attention" in methods:
            layer = getattr(hook, "layer", None)
            if not isinstance(layer, int):
                raise ValueError(
                    f"{name} has on_attention and so must have an int attribute layer, 0 for the first; "
                    f"got {layer!r}"
                )
            if layers is not None and not 0 <= layer < layers:
                raise ValueError(f"{name}: layer must be from 0 to {layers - 1}, got {layer}")
