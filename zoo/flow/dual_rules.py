"""Forward-mode derivatives of the few functions in which a transformer or a U-Net spends its time.

PyTorch's own forward mode works operation by operation: it makes up zero tangents for weights and constants,
splits normalization and attention into many small kernels, and has nothing for fused
attention. `FastRules` replaces these functions, while a network runs on dual numbers, by rules written out
here; whatever has no rule goes on to PyTorch. The network's code, hooks and replaced layers all run as they
are.

A rule gets the function's own arguments, of which at least one carries a tangent, and returns a dual number,
or NotImplemented for arguments it does not cover.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten


def _split(x: Any) -> tuple[Any, Tensor | None]:
    """Value and tangent of a tensor, dual or not, or of a plain number."""
    return fwAD.unpack_dual(x) if isinstance(x, Tensor) else (x, None)


def _constant(*parameters: Tensor | None) -> bool:
    """Whether none of these carries a tangent."""
    return all(p is None or fwAD.unpack_dual(p).tangent is None for p in parameters)


def add(input: Any, other: Any, *, alpha: float = 1, out: None = None) -> Any:
    """A dual number plus a constant keeps its tangent."""
    (x, dx), (y, dy) = _split(input), _split(other)
    tangent = dy if dx is None else dx
    if alpha != 1 or out is not None or tangent is None or (dx is not None and dy is not None):
        return NotImplemented
    total = x + y
    if total.shape != tangent.shape or total.dtype != tangent.dtype:
        return NotImplemented
    return fwAD.make_dual(total, tangent.clone())  # a copy: someone may go on in place


def multiply(input: Any, other: Any, *, out: None = None) -> Any:
    """A dual number times a constant."""
    (x, dx), (y, dy) = _split(input), _split(other)
    if out is not None or (dx is None) == (dy is None):
        return NotImplemented
    return fwAD.make_dual(x * y, x * dy if dx is None else dx * y)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """The map W x + b has the tangent W dx."""
    x, dx = _split(input)
    if dx is None or not _constant(weight, bias):
        return NotImplemented
    return fwAD.make_dual(F.linear(x, weight, bias), F.linear(dx, weight))


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1, out: None = None) -> Any:
    """The sum a + b c has the tangent da + db c + b dc."""
    (a, da), (b, db), (c, dc) = map(_split, (input, tensor1, tensor2))
    if value != 1 or out is not None or da is None or db is None or dc is None:
        return NotImplemented
    return fwAD.make_dual(torch.addcmul(a, b, c), torch.addcmul(torch.addcmul(da, db, c), b, dc))


def gelu(input: Tensor, approximate: str = "none") -> Any:
    """Elementwise: the tangent is what the backward kernel makes of dx."""
    x, dx = _split(input)
    if dx is None:
        return NotImplemented
    return fwAD.make_dual(
        F.gelu(x, approximate=approximate), _aten.gelu_backward(dx, x, approximate=approximate)
    )


def silu(input: Tensor, inplace: bool = False) -> Any:
    """Elementwise: the tangent is what the backward kernel makes of dx."""
    x, dx = _split(input)
    if dx is None or inplace:
        return NotImplemented
    return fwAD.make_dual(F.silu(x), _aten.silu_backward(dx, x))


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """With y the normalized x: dy = (dx - mean(dx) - y mean(y dx)) / std, over the normalized dimensions."""
    x, dx = _split(input)
    if dx is None or len(normalized_shape) != 1 or not _constant(weight, bias):
        return NotImplemented
    y, mean, inverse_std = torch.native_layer_norm(x, normalized_shape, None, None, eps)
    # The Jacobian of normalization is symmetric: its product with dx is what the backward kernel computes.
    dy = _aten.native_layer_norm_backward(
        dx.contiguous(), x.contiguous(), normalized_shape, mean, inverse_std, None, None, [True, False, False]
    )[0]
    if weight is not None:
        y, dy = y * weight, dy * weight
    return fwAD.make_dual(y if bias is None else y + bias, dy)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """As `layer_norm`, over groups of channels."""
    x, dx = _split(input)
    if dx is None or x.ndim < 3 or not _constant(weight, bias):
        return NotImplemented
    # Both in one layout: the kernel of channels-last data wants the gradient in it too.
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    x, dx = x.contiguous(memory_format=layout), dx.contiguous(memory_format=layout)
    sizes = (x.shape[0], x.shape[1], x[0, 0].numel(), num_groups)
    y, mean, inverse_std = torch.native_group_norm(x, None, None, *sizes, eps)
    dy = _aten.native_group_norm_backward(dx, x, mean, inverse_std, None, *sizes, [True, False, False])[0]
    channels = (-1, *(1 for _ in x.shape[2:]))
    if weight is not None:
        y, dy = y * weight.view(channels), dy * weight.view(channels)
    return fwAD.make_dual(y if bias is None else y + bias.view(channels), dy)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Linear in its input: the tangent goes through the same kernels, without the bias."""
    x, dx = _split(input)
    if dx is None or not _constant(weight, bias):
        return NotImplemented
    how = (stride, padding, dilation, groups)
    return fwAD.make_dual(F.conv2d(x, weight, bias, *how), F.conv2d(dx, weight, None, *how))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """P = softmax(s q k'), dP = P (dS - sum(P dS)), and the product rule twice."""
    (q, dq), (k, dk), (v, dv) = map(_split, (query, key, value))
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        return NotImplemented
    if dq is None or dk is None or dv is None:
        return NotImplemented
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    q, dq = q * factor, dq * factor
    weights = (q @ k.mT).softmax(-1)  # (..., T, S)
    # [dq, q] [k, dk]' = dq k' + q dk' in one product
    slopes = torch.cat([dq, q], -1) @ torch.cat([k, dk], -1).mT
    slopes = _aten._softmax_backward_data(slopes, weights, -1, weights.dtype)
    tangent = torch.cat([slopes, weights], -1) @ torch.cat([v, dv], -2)
    return fwAD.make_dual(weights @ v, tangent)


RULES: dict[Callable, Callable] = {
    torch.add: add,
    Tensor.add: add,
    Tensor.__add__: add,
    Tensor.__radd__: add,
    torch.mul: multiply,
    Tensor.mul: multiply,
    Tensor.__mul__: multiply,
    Tensor.__rmul__: multiply,
    F.linear: linear,
    torch.addcmul: addcmul,
    F.gelu: gelu,
    F.silu: silu,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.conv2d: conv2d,
    F.scaled_dot_product_attention: attention,
}


class FastRules(TorchFunctionMode):
    """While active, functions with a rule use it on dual numbers; everything else is PyTorch's own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Tries the rule of ``func``, else calls it."""
        kwargs = kwargs or {}
        if func in RULES:
            result = RULES[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)
