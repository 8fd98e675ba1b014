"""Hooks on attention that is called as a function of torch, in the modules of timm, torch or anybody.

`AttentionFunctionMode` intercepts `F.scaled_dot_product_attention` and `F.multi_head_attention_forward` while
a model runs, and knows from forward hooks whose module calls them. Nothing is replaced, so the numbers are
those of the plain model bit by bit, but for `nn.MultiheadAttention`, whose fused fast path must be off.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from zoo.attention.call import AttentionCall

_SDPA = inspect.Signature(
    [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for name, default in [
            ("query", None),
            ("key", None),
            ("value", None),
            ("attn_mask", None),
            ("dropout_p", 0.0),
            ("is_causal", False),
            ("scale", None),
            ("enable_gqa", False),
        ]
    ]
)
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
_SIGMOIDS = (torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit)


class AttentionFunctionMode(TorchFunctionMode):
    """Calls a hook after each call of attention that one of some modules makes.

    Args:
        modules: Attention modules by name: calls are theirs if they are made inside of them.
        hook: Gets the call; what it returns takes the place of the output, unless it is None.
        silent: Names of modules whose calls are seen elsewhere.
        gate_hook: Gets the name of a module and each gate of its output: a sigmoid, computed inside of it,
            with a number for each of the output or for each head.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        hook: Callable[[AttentionCall], Tensor | None],
        silent: set[str],
        gate_hook: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self.modules, self.hook, self.silent, self.gate_hook = modules, hook, silent, gate_hook
        self.frames: list[_Frame] = []
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> "AttentionFunctionMode":
        for name, module in self.modules.items():
            self.handles.append(module.register_forward_pre_hook(self._enter(name)))
            self.handles.append(module.register_forward_hook(self._leave, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for handle in self.handles:
            handle.remove()
        self.handles, self.frames = [], []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function of torch, and tells of it if it is attention."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.frames:
            return result
        frame = self.frames[-1]
        if func in _SIGMOIDS and self.gate_hook is not None and isinstance(result, Tensor):
            frame.gates.append(result.detach())
        if func is F.scaled_dot_product_attention:
            call = _of_sdpa(_SDPA.bind(*args, **kwargs), result, frame)
            self.note_output(call)
            returned = None if frame.name in self.silent else self.hook(call)
            return result if returned is None else returned.transpose(1, 2).reshape(result.shape)
        if func is F.multi_head_attention_forward and frame.name not in self.silent:
            self.hook(_of_multi_head(_MULTI_HEAD.bind(*args, **kwargs), frame))
        return result

    def note_output(self, call: AttentionCall) -> None:
        """Keeps the output of the attention of the module that runs, by which its gates are known."""
        if self.frames and self.frames[-1].name == call.layer:
            self.frames[-1].output = call.output

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda module, args: self.frames.append(_Frame(name, module))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.frames or self.frames[-1].module is not module:
            return
        frame = self.frames.pop()
        if self.gate_hook is None or frame.output is None:
            return
        batch, queries, heads, width = frame.output.shape
        for gate in frame.gates:
            if gate.numel() in (batch * queries * heads * width, batch * queries * heads):
                self.gate_hook(frame.name, gate)


class _Frame:
    """A module that is being called, the output of its attention, and the sigmoids so far."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.output: Tensor | None = None
        self.gates: list[Tensor] = []


def _of_sdpa(bound: inspect.BoundArguments, result: Tensor, frame: _Frame) -> AttentionCall:
    bound.apply_defaults()
    given = bound.arguments
    query, key, value, mask = given["query"], given["key"], given["value"], given["attn_mask"]
    leading = query.shape[:-3]

    def four(x: Tensor) -> Tensor:
        """(B, H, T, d), whatever stands before H; three dimensions are one head."""
        return x.unsqueeze(1) if x.ndim == 3 else x.expand(*leading, *x.shape[-3:]).flatten(0, -4)

    if mask is not None:
        mask = (
            mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
            if query.ndim != 3
            else mask.reshape(-1, 1, *mask.shape[-2:])
        )
        mask = mask if mask.ndim == 4 else mask.expand(*leading, *mask.shape[-3:]).flatten(0, -4)
    return AttentionCall(
        four(query),
        four(key),
        four(value),
        mask=mask,
        causal=given["is_causal"],
        scale=query.shape[-1] ** -0.5 if given["scale"] is None else given["scale"],
        output=four(result).transpose(1, 2),
        layer=frame.name,
        module=frame.module,
    )


def _of_multi_head(bound: inspect.BoundArguments, frame: _Frame) -> AttentionCall:
    """The call inside of `nn.MultiheadAttention`, whose projections are made again."""
    bound.apply_defaults()
    given = bound.arguments
    heads, bias = given["num_heads"], given["in_proj_bias"]
    biases = (None, None, None) if bias is None else bias.chunk(3)
    weights = (
        (given["q_proj_weight"], given["k_proj_weight"], given["v_proj_weight"])
        if given["use_separate_proj_weight"]
        else given["in_proj_weight"].chunk(3)
    )
    batched = given["query"].ndim == 3
    q, k, v = (
        F.linear(x if batched else x.unsqueeze(1), weight, part)  # (T, B, D)
        for x, weight, part in zip(
            (given["query"], given["key"], given["value"]), weights, biases, strict=True
        )
    )
    batch, width = q.shape[1], q.shape[2] // heads
    further = 0
    if given["bias_k"] is not None:  # a learned key and value after all others
        k, v = (torch.cat([x, given[f"bias_{n}"].expand(1, batch, -1)]) for x, n in ((k, "k"), (v, "v")))
        further += 1
    if given["add_zero_attn"]:
        k, v = (torch.cat([x, x.new_zeros(1, batch, x.shape[2])]) for x in (k, v))
        further += 1
    query, key, value = (x.reshape(len(x), batch, heads, -1).permute(1, 2, 0, 3) for x in (q, k, v))
    mask = _bias(given["attn_mask"], query.dtype)
    if mask is not None:
        mask = mask[None, None] if mask.ndim == 2 else mask.view(batch, heads, *mask.shape[-2:])
    padding = _bias(given["key_padding_mask"], query.dtype)
    if padding is not None:
        padding = padding.view(batch, 1, 1, -1)
        mask = padding if mask is None else mask + padding
    if mask is not None and further:
        mask = F.pad(mask, (0, further))
    return AttentionCall(
        query, key, value, mask=mask, scale=width**-0.5, layer=frame.name, module=frame.module
    )


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask of `nn.MultiheadAttention`, where true hides, as numbers to add."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
