"""Where hooks are called: the input of a transformers model's last feed-forward network, and its attention.

Attention is read through transformers' own table of attention functions. For the time of a forward the
layers that hooks ask for have a config of their own, which names `attention_with_hooks`; that calls the
backend that the model's config names, and the hooks after it. The model's masks are made for the backend,
the other layers do not notice, and without hooks nothing is touched.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from zoo.lm.hooks import check_hooks, check_output, has_hook, with_hook

_FUNCTION = "zoo_hooks"  # by which transformers finds `attention_with_hooks`
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc1")  # names in transformers' layers


class FeedForwardHookPoint:
    """Keeps what goes into a module, by standing in for its ``forward``.

    A forward pre-hook would do, but each registration has a number of its own, and the compiler of PyTorch
    2.10 guards on it: every step would be compiled again.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.captured: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward."""
        self.captured = args[0] if args else next(iter(kwargs.values()))
        return self.forward(*args, **kwargs)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attached within the block."""
        own = self.module.__dict__.get("forward")  # somebody else's stand-in
        self.forward = self.module.forward
        self.module.forward = self
        try:
            yield
        finally:
            del self.module.forward, self.forward
            if own is not None:
                self.module.forward = own

    def take(self, batch: int) -> Tensor:
        """What was captured, as (B, T, D); it is not kept."""
        captured, self.captured = self.captured, None
        if captured is None:
            raise RuntimeError(f"{type(self.module).__name__} was not called in this forward")
        return captured.reshape(batch, -1, captured.shape[-1])  # OPT flattens (B, T)


class AttentionHookPoint:
    """The hooks of one layer's attention, and the backend they come after."""

    def __init__(self, module: nn.Module, hooks: list[nn.Module], backend: Callable[..., Any]) -> None:
        self.module, self.hooks, self.backend = module, hooks, backend
        self.original_config: Any = module.config
        self.patched_config: Any = copy.copy(self.original_config)
        self.patched_config._attn_implementation = _FUNCTION  # type: ignore[union-attr]
        self.called = False


class HookPoints:
    """What the hooks of a network ask for, found once; `attached` attaches it for one forward.

    Args:
        network: A transformers causal language model.
        hooks: Its hooks.
        attention: The backend that the network's config names.

    Raises:
        ValueError: a hook cannot be called, or asks for a place that cannot be found in this network.
    """

    def __init__(self, network: nn.Module, hooks: nn.ModuleList, attention: str) -> None:
        layers = _layers(network)
        check_hooks(hooks, None if layers is None else len(layers))
        wants_input = has_hook(hooks, "on_ffn_input") or has_hook(hooks, "on_log_probs")
        by_layer: dict[int, list[nn.Module]] = {}
        for hook in with_hook(hooks, "on_attention"):
            by_layer.setdefault(int(hook.layer), []).append(hook)  # type: ignore[arg-type]
        if (wants_input or by_layer) and layers is None:
            raise ValueError(
                f"hooks ask for places within {type(network).__name__}, but no list of its "
                "config.num_hidden_layers layers was found: use another model_type, or hooks without "
                "on_ffn_input, on_log_probs and on_attention"
            )
        self.feed_forward: FeedForwardHookPoint | None = None
        self.attention: list[AttentionHookPoint] = []
        if layers is None:
            return
        if wants_input:
            self.feed_forward = FeedForwardHookPoint(_feed_forward(layers[-1]))
        for number, attached in sorted(by_layer.items()):
            module = _attention(layers[number])
            self.attention.append(AttentionHookPoint(module, attached, _backend(module, attention)))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attaches the hook_points within the block; afterwards the network is what it was."""
        for point in self.attention:
            point.called = False
            point.module.config, point.module.zoo_hook_point = point.patched_config, point  # type: ignore[assignment]
        try:
            with self.feed_forward.attached() if self.feed_forward is not None else nullcontext():
                yield
        finally:
            for point in self.attention:
                point.module.config = point.original_config
                del point.module.zoo_hook_point
        for point in self.attention:
            if not point.called:
                raise ValueError(
                    f"{type(point.module).__name__} does not look its attention function up in transformers' "
                    "table, so hooks with on_attention are never called: use another model_type"
                )


def attention_with_hooks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers: the backend, and then the hooks of this layer."""
    point: AttentionHookPoint = module.zoo_hook_point  # type: ignore[assignment]
    point.called = True
    output, weights = point.backend(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = visible(attention_mask, query.shape[2], key.shape[2], query.device)
    for hook in point.hooks:
        returned = hook.on_attention(query, key, value, mask, scale, output)  # type: ignore[operator]
        output = check_output(hook, "on_attention", returned, output)
    return output, weights


def visible(mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """Where attention may go, as (1 or B, 1, T, S) bool, from the mask that a backend was given.

    Args:
        mask: bool; or float, 0 where attention may go; or None, which means causal for several queries and
            everything for one (the next token after cached ones).
        queries: T.
        keys: S.
        device: Of the result where there is no mask.

    >>> visible(None, 2, 2, torch.device("cpu")).int().tolist()
    [[[[1, 0], [1, 1]]]]
    """
    if mask is None:
        everywhere = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        return everywhere if queries == 1 else everywhere.tril(keys - queries)
    return mask if mask.dtype == torch.bool else mask == 0


def _layers(network: nn.Module) -> nn.ModuleList | None:
    config: Any = network.config
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = (part for part in network.modules() if isinstance(part, nn.ModuleList))
    return next((part for part in lists if len(part) == count), None)


def _feed_forward(layer: nn.Module) -> nn.Module:
    for name in _FEED_FORWARD:
        if isinstance(found := getattr(layer, name, None), nn.Module):
            return found
    raise ValueError(
        f"hooks ask for the input of the last feed-forward network, but {type(layer).__name__} has none "
        f"of the names {', '.join(_FEED_FORWARD)}; its parts are "
        + ", ".join(name for name, _ in layer.named_children())
    )


def _attention(layer: nn.Module) -> nn.Module:
    for part in layer.children():
        if "attention" in type(part).__name__.lower() and hasattr(part, "config"):
            return part
    raise ValueError(
        f"hooks ask for the attention of {type(layer).__name__}, but none of its parts is an attention "
        f"with a config; it has {', '.join(type(part).__name__ for part in layer.children())}"
    )


def _backend(module: nn.Module, attention: str) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"hooks with on_attention need attention='sdpa' or 'eager', whose masks they can read, "
            f"got {attention!r}"
        )
    ALL_ATTENTION_FUNCTIONS.register(_FUNCTION, attention_with_hooks)
    if attention == "sdpa":
        return ALL_ATTENTION_FUNCTIONS["sdpa"]
    # Every model of transformers has an eager attention of its own, a function of this name beside its class.
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        raise ValueError(
            f"hooks with on_attention need the eager attention of {type(module).__name__}, which has none "
            "that can be called: use attention='sdpa'"
        )
    return own
