"""Where readers listen: the input of a transformers model's last feed-forward network, and its attention.

Attention is read through transformers' own table of attention functions. For the time of a forward the
layers that readers ask for have a config of their own, which names `attend_and_tell`; that calls the backend
that the model's config names, and the readers after it. The model's masks are made for the backend, the other
layers do not notice, and without readers nothing is touched.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from zoo.lm.readers import asked, check_readers, hearing, passed_on

_FUNCTION = "zoo_readers"  # by which transformers finds `attend_and_tell`
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc1")  # names in transformers' layers


class FeedForwardTap:
    """Keeps what goes into a module, by standing in for its ``forward``.

    A forward pre-hook would do, but each registration has a number of its own, and the compiler of PyTorch
    2.10 guards on it: every step would be compiled again.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.heard: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward."""
        self.heard = args[0] if args else next(iter(kwargs.values()))
        return self.forward(*args, **kwargs)

    @contextmanager
    def listening(self) -> Iterator[None]:
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
        """What was heard, as (B, T, D); it is not kept."""
        heard, self.heard = self.heard, None
        if heard is None:
            raise RuntimeError(f"{type(self.module).__name__} was not called in this forward")
        return heard.reshape(batch, -1, heard.shape[-1])  # OPT flattens (B, T)


class AttentionTap:
    """The readers of one layer's attention, and the backend they come after."""

    def __init__(self, module: nn.Module, readers: list[nn.Module], backend: Callable[..., Any]) -> None:
        self.module, self.readers, self.backend = module, readers, backend
        self.usual: Any = module.config
        self.told: Any = copy.copy(self.usual)
        self.told._attn_implementation = _FUNCTION  # type: ignore[union-attr]
        self.called = False


class Taps:
    """What the readers of a network ask for, found once; `listening` attaches it for one forward.

    Args:
        network: A transformers causal language model.
        readers: Its readers.
        attention: The backend that the network's config names.

    Raises:
        ValueError: a reader cannot be called, or asks for a place that cannot be found in this network.
    """

    def __init__(self, network: nn.Module, readers: nn.ModuleList, attention: str) -> None:
        layers = _layers(network)
        check_readers(readers, None if layers is None else len(layers))
        wants_input = asked(readers, "on_ffn_input") or asked(readers, "on_log_probs")
        by_layer: dict[int, list[nn.Module]] = {}
        for reader in hearing(readers, "on_attention"):
            by_layer.setdefault(int(reader.layer), []).append(reader)  # type: ignore[arg-type]
        if (wants_input or by_layer) and layers is None:
            raise ValueError(
                f"readers ask for places within {type(network).__name__}, but no list of its "
                "config.num_hidden_layers layers was found: use another model_type, or readers without "
                "on_ffn_input, on_log_probs and on_attention"
            )
        self.feed_forward: FeedForwardTap | None = None
        self.attention: list[AttentionTap] = []
        if layers is None:
            return
        if wants_input:
            self.feed_forward = FeedForwardTap(_feed_forward(layers[-1]))
        for number, listeners in sorted(by_layer.items()):
            module = _attention(layers[number])
            self.attention.append(AttentionTap(module, listeners, _backend(module, attention)))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Attaches the taps within the block; afterwards the network is what it was."""
        for tap in self.attention:
            tap.called = False
            tap.module.config, tap.module.zoo_tap = tap.told, tap  # type: ignore[assignment]
        try:
            with self.feed_forward.listening() if self.feed_forward is not None else nullcontext():
                yield
        finally:
            for tap in self.attention:
                tap.module.config = tap.usual
                del tap.module.zoo_tap
        for tap in self.attention:
            if not tap.called:
                raise ValueError(
                    f"{type(tap.module).__name__} does not look its attention function up in transformers' "
                    "table, so readers with on_attention never hear it: use another model_type"
                )


def attend_and_tell(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers: the backend, and then the readers of this layer."""
    tap: AttentionTap = module.zoo_tap  # type: ignore[assignment]
    tap.called = True
    output, weights = tap.backend(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = visible(attention_mask, query.shape[2], key.shape[2], query.device)
    for reader in tap.readers:
        returned = reader.on_attention(query, key, value, mask, scale, output)  # type: ignore[operator]
        output = passed_on(reader, "on_attention", returned, output)
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
        f"readers ask for the input of the last feed-forward network, but {type(layer).__name__} has none "
        f"of the names {', '.join(_FEED_FORWARD)}; its parts are "
        + ", ".join(name for name, _ in layer.named_children())
    )


def _attention(layer: nn.Module) -> nn.Module:
    for part in layer.children():
        if "attention" in type(part).__name__.lower() and hasattr(part, "config"):
            return part
    raise ValueError(
        f"readers ask for the attention of {type(layer).__name__}, but none of its parts is an attention "
        f"with a config; it has {', '.join(type(part).__name__ for part in layer.children())}"
    )


def _backend(module: nn.Module, attention: str) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"readers with on_attention need attention='sdpa' or 'eager', whose masks they can read, "
            f"got {attention!r}"
        )
    ALL_ATTENTION_FUNCTIONS.register(_FUNCTION, attend_and_tell)
    if attention == "sdpa":
        return ALL_ATTENTION_FUNCTIONS["sdpa"]
    # Every model of transformers has an eager attention of its own, a function of this name beside its class.
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        raise ValueError(
            f"readers with on_attention need the eager attention of {type(module).__name__}, which has none "
            "that can be called: use attention='sdpa'"
        )
    return own
