"""Taking a sink away, or changing its size, where it is written: the paper's causal claims as a context.

"On the Existence and Behaviour of Secondary Attention Sinks" (arXiv 2512.22213) says that feed-forward
networks of middle layers write the state of a secondary sink, and that the norm of what they write sets its
attention and lifetime. Within `steered`, what a layer's feed-forward network adds along the direction of the
primary sink is rescaled, for tokens where it points there; the primary sink's own tokens are left alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.attention.layers import feed_forward_output, find_stack


@contextmanager
def steered(
    model: nn.Module,
    layer: int,
    *,
    factor: float = 0.0,
    norm: float | None = None,
    cosine: float = 0.98,
    reference: int = 0,
    keep: int = 1,
    stack: str | None = None,
) -> Iterator[None]:
    """Within the block, outputs of a feed-forward network that point along the sink are rescaled.

    The direction is that of the state that the layer was given at the reference token, in each sequence.

    Args:
        model: A model with a stack of layers.
        layer: The layer whose feed-forward network is steered.
        factor: What its output is multiplied by, where it points along the sink: 0 takes the sink away.
        norm: The norm that its output gets instead, as in the official code; None for ``factor``.
        cosine: An output points along the sink if its cosine with the direction is above this.
        reference: Place of the primary sink in every sequence.
        keep: Tokens from the start that are left alone; with none of them the primary sink goes too.
        stack: Name of the stack of layers.

    Raises:
        ValueError: the layer does not exist, or a number is out of range.
    """
    layers = find_stack(model, stack)
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer must be from 0 to {len(layers) - 1}, got {layer}")
    if not 0 < cosine < 1:
        raise ValueError(f"cosine must be between 0 and 1, got {cosine}")
    if norm is not None and norm < 0:
        raise ValueError(f"norm must be 0 or more, got {norm}")
    direction: list[Tensor] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        direction[:] = [nn.functional.normalize(hidden[:, reference : reference + 1].float(), dim=-1)]

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        added = output[0] if isinstance(output, tuple) else output
        size = added.float().norm(dim=-1, keepdim=True)
        along = (added.float() @ direction[0].transpose(1, 2)) / size.clamp(min=1e-30)  # (B, T, 1)
        chosen = along > cosine
        chosen[:, :keep] = False
        scale = torch.full_like(size, factor) if norm is None else norm / size.clamp(min=1e-30)
        added = torch.where(chosen, (added.float() * scale).to(added.dtype), added)
        return (added, *output[1:]) if isinstance(output, tuple) else added

    handles = [
        layers[layer].module.register_forward_pre_hook(enter, with_kwargs=True),
        feed_forward_output(layers[layer].module).register_forward_hook(leave),
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()
