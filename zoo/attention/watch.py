"""Watching the attention of any model while it runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from zoo._suggest import suggest
from zoo.attention.call import AttentionCall
from zoo.attention.function_hooks import AttentionFunctionMode
from zoo.attention.layers import attention_modules
from zoo.attention.transformers_hooks import AttentionHook, AttentionHookPoint, can_be_hooked


@contextmanager
def watch_attention(
    model: nn.Module,
    hook: AttentionHook,
    layers: Iterable[str] | None = None,
    gate_hook: Callable[[str, Tensor], None] | None = None,
) -> Iterator[None]:
    """Within the block, a hook is called after each call of softmax attention that a model makes.

    The model computes what it computes without, bit by bit; only `nn.MultiheadAttention` gives up its fused
    fast path, which rounds otherwise. Compiled networks run as they were written meanwhile. Afterwards, and
    after an error, the model is what it was.

    Args:
        model: Models of transformers (backends sdpa and eager) and timm, `nn.MultiheadAttention`, and modules
            whose class is called attention and that call `F.scaled_dot_product_attention`.
        hook: Gets an `AttentionCall`; returns None, or the output (B, T, H, d) to go on with.
        layers: Names of attention modules (`attention_modules`); None for all.
        gate_hook: Gets the name of a module and a gate of its attention (gated attention), in (0, 1).

    Raises:
        ValueError: there is no attention in the model, no module of such a name, or its backend cannot be
            watched; after the block: a watched module ran and never called its attention where it is looked
            for.

    >>> attention = nn.MultiheadAttention(4, 2, batch_first=True)
    >>> with watch_attention(attention, lambda call: print(call.layer or "itself", tuple(call.query.shape))):
    ...     _ = attention(*[torch.zeros(1, 3, 4)] * 3)
    itself (1, 2, 3, 2)
    """
    found = attention_modules(model)
    if not found:
        raise ValueError(f"there is no attention in {type(model).__name__} that can be watched")
    wanted = list(found) if layers is None else list(layers)
    for name in wanted:
        if name not in found:
            hint = suggest(name, found) or f"; there are {', '.join(list(found)[:8])}" + " ..." * (
                len(found) > 8
            )
            raise ValueError(f"{type(model).__name__} has no attention {name!r}{hint}")
    ran: set[str] = set()
    called: set[str] = set()
    mode: AttentionFunctionMode | None = None

    def seen(call: AttentionCall) -> Tensor | None:
        called.add(call.layer)
        if mode is not None:
            mode.note_output(call)
        return hook(call)

    points = [AttentionHookPoint(found[name], seen, name) for name in wanted if can_be_hooked(found[name])]
    hooked = {point.name for point in points}
    plain = {name: found[name] for name in wanted if name not in hooked or gate_hook is not None}
    handles = [found[name].register_forward_pre_hook(_note(name, ran)) for name in wanted]
    mode = AttentionFunctionMode(plain, seen, hooked, gate_hook) if plain else None
    attached: list[AttentionHookPoint] = []
    try:
        for point in points:
            point.attach()
            attached.append(point)
        with _AS_WRITTEN, mode or nullcontext():
            yield
    finally:
        for point in reversed(attached):
            point.detach()
        for handle in handles:
            handle.remove()
    if missed := sorted(ran - called):
        module = found[missed[0]]
        raise ValueError(
            f"{missed[0]} ({type(module).__name__}) ran without calling F.scaled_dot_product_attention or an "
            "attention function of transformers, so it cannot be watched"
            + (": set its fused_attn to True" if getattr(module, "fused_attn", True) is False else "")
        )


class _AsWritten:
    """Within the block compiled code and fused fast paths are not used; blocks may end in any order."""

    def __init__(self) -> None:
        self.blocks = 0
        self.stance: Any = None
        self.fast_path = True

    def __enter__(self) -> None:
        if self.blocks == 0:
            self.fast_path = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            self.stance = torch.compiler.set_stance("force_eager")
            self.stance.__enter__()
        self.blocks += 1

    def __exit__(self, *error: object) -> None:
        self.blocks -= 1
        if self.blocks == 0:
            self.stance.__exit__(None, None, None)
            torch.backends.mha.set_fastpath_enabled(self.fast_path)


_AS_WRITTEN = _AsWritten()


def _note(name: str, ran: set[str]) -> Callable[..., None]:
    return lambda module, args: ran.add(name)
