"""Where hooks are called: the input of a transformers model's last feed-forward network, and its attention.

The points of attention are the ground's (`zoo.attention.transformers_hooks`); here hooks of the language
model's protocol are put on them. Without hooks nothing is touched.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from zoo.attention.call import AttentionCall
from zoo.attention.layers import Layer, feed_forward_input, find_stack
from zoo.attention.transformers_hooks import AttentionHookPoint
from zoo.lm.hooks import check_hooks, check_output, has_hook, with_hook


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


class HookPoints:
    """What the hooks of a network ask for, found once; `attached` attaches it for one forward.

    Args:
        network: A transformers causal language model.
        hooks: Its hooks.

    Raises:
        ValueError: a hook cannot be called, or asks for a place that cannot be found in this network.
    """

    def __init__(self, network: nn.Module, hooks: nn.ModuleList) -> None:
        wants_input = has_hook(hooks, "on_ffn_input") or has_hook(hooks, "on_log_probs")
        layers = None
        if wants_input or has_hook(hooks, "on_attention"):
            try:
                layers = find_stack(network)
            except ValueError as error:
                raise ValueError(
                    f"hooks ask for places in the layers of the network: {error}. Use another model_type, or "
                    "hooks without on_ffn_input, on_log_probs and on_attention"
                ) from error
        check_hooks(hooks, None if layers is None else len(layers))
        by_layer: dict[int, list[nn.Module]] = {}
        for hook in with_hook(hooks, "on_attention"):
            by_layer.setdefault(int(hook.layer), []).append(hook)  # type: ignore[arg-type]
        self.feed_forward: FeedForwardHookPoint | None = None
        self.attention: list[AttentionHookPoint] = []
        if layers is None:
            return
        if wants_input:
            self.feed_forward = FeedForwardHookPoint(feed_forward_input(layers[-1].module))
        for number, attached in sorted(by_layer.items()):
            self.attention.append(_attention_point(layers[number], attached))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attaches the points within the block; afterwards the network is what it was."""
        attached: list[AttentionHookPoint] = []
        try:
            for point in self.attention:
                point.attach()
                attached.append(point)
            with self.feed_forward.attached() if self.feed_forward is not None else nullcontext():
                yield
        finally:
            for point in reversed(attached):
                point.detach()
        for point in self.attention:
            if not point.called:
                raise ValueError(
                    f"{type(point.module).__name__} does not look its attention function up in transformers' "
                    "table, so hooks with on_attention are never called: use another model_type"
                )


@dataclass
class CallHooks:
    """The hooks of one layer's attention as one; no closure, so that a copy of a model calls its own."""

    hooks: list[nn.Module]

    def __call__(self, call: AttentionCall) -> Tensor:
        """Calls each with what the one before it returned."""
        query, key, mask, output = call.query, call.key, call.visible(), cast(Tensor, call.output)
        for hook in self.hooks:
            returned = hook.on_attention(query, key, call.value, mask, call.scale, output)  # type: ignore[operator]
            output = check_output(hook, "on_attention", returned, output)
        return output


def _attention_point(layer: Layer, hooks: list[nn.Module]) -> AttentionHookPoint:
    if layer.attention is None:
        raise ValueError(
            f"hooks ask for the attention of layer {layer.index} ({type(layer.module).__name__}), which has "
            f"none: {', '.join(type(part).__name__ for part in layer.module.children())}"
        )

    return AttentionHookPoint(layer.attention, CallHooks(hooks), layer.attention_name)
