"""Hooks on the attention of transformers' models, by a config of its own for each hooked module.

A module of transformers looks its attention function up in a table, by the name in its config, when it is
called. While hooks are attached, the module has a copy of its config that names `attention_with_hooks`; that
calls the backend that the original names, and the hooks after it. The model's masks are made for the backend,
other modules do not notice, the numbers are those of the backend bit by bit, and compiled code is not broken.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.attention.call import AttentionCall

AttentionHook = Callable[[AttentionCall], Tensor | None]  # None, or the output to go on with

_FUNCTION = "zoo_hooks"  # by which transformers finds `attention_with_hooks`
BACKENDS = ("sdpa", "eager")


class AttentionHookPoint:
    """The place of one module's attention, where a hook can be attached and detached any number of times.

    Points nest: each hook gets the output that the one attached before it returned.

    Args:
        module: An attention module of transformers.
        hook: What is called after the backend.
        name: The module's name in its model.

    Raises:
        ValueError: the module's backend is one whose masks cannot be read, or cannot be called.
    """

    def __init__(self, module: nn.Module, hook: AttentionHook, name: str = "") -> None:
        self.module, self.hook, self.name = module, hook, name
        self.called = False
        points: list[AttentionHookPoint] = module.__dict__.get("zoo_hook_points", [])
        config: Any = points[0].original_config if points else module.config
        self.backend, self.attention = _backend(module, config._attn_implementation)
        self.original_config: Any = config
        self.patched_config: Any = copy.copy(config)
        self.patched_config._attn_implementation = _FUNCTION

    def attach(self) -> None:
        """From now on the hook is called."""
        self.called = False
        points: list[AttentionHookPoint] = self.module.__dict__.get("zoo_hook_points", [])
        if not points:
            self.original_config = self.module.config
            self.module.config = self.patched_config
        self.module.__dict__["zoo_hook_points"] = [*points, self]

    def detach(self) -> None:
        """The module is as it was before `attach`."""
        rest = [point for point in self.module.__dict__["zoo_hook_points"] if point is not self]
        if rest:
            self.module.__dict__["zoo_hook_points"] = rest
        else:
            del self.module.__dict__["zoo_hook_points"]
            self.module.config = self.original_config


def can_be_hooked(module: nn.Module) -> bool:
    """Whether a module is one of transformers, whose attention function is looked up by its config."""
    return hasattr(getattr(module, "config", None), "_attn_implementation")


def attention_with_hooks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers: the backend, and then the hooks of this module."""
    points: list[AttentionHookPoint] = module.__dict__["zoo_hook_points"]
    backend, eager = points[0].backend, points[0].attention == "eager"
    output, weights = backend(module, query, key, value, attention_mask, scaling=scaling, **options)
    mask, causal = _mask(module, query, attention_mask, eager, options.get("is_causal"))
    bias = options.get("position_bias")
    if bias is not None:
        mask = bias if mask is None else _add(bias, mask)
    for point in points:
        point.called = True
        call = AttentionCall(
            query,
            key,
            value,
            mask=mask,
            causal=causal,
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=options.get("softcap"),
            sinks=options.get("s_aux"),
            output=output,
            layer=point.name,
            module=module,
        )
        returned = point.hook(call)
        output = output if returned is None else returned
    return output, weights


def _mask(
    module: nn.Module, query: Tensor, mask: Tensor | None, eager: bool, is_causal: bool | None
) -> tuple[Tensor | None, bool]:
    """The mask of a call, and whether the backend made a causal one of its own."""
    if mask is not None:
        return mask, False
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return None, bool(causal) and query.shape[2] > 1 and not eager


def _add(bias: Tensor, mask: Tensor) -> Tensor:
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _backend(module: nn.Module, attention: str | None) -> tuple[Callable[..., Any], str]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = "eager" if attention is None else attention
    if attention not in BACKENDS:
        raise ValueError(
            f"hooks on attention need attention='sdpa' or 'eager', whose masks they can read, got "
            f"{attention!r} (model.set_attn_implementation changes it)"
        )
    ALL_ATTENTION_FUNCTIONS.register(_FUNCTION, attention_with_hooks)
    if attention == "sdpa":
        return ALL_ATTENTION_FUNCTIONS["sdpa"], attention
    # Every model of transformers has an eager attention of its own, a function of this name beside its class.
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        raise ValueError(
            f"hooks on attention need the eager attention of {type(module).__name__}, which has none that "
            "can be called: use sdpa"
        )
    return own, attention
