"""The logits of a call in blocks of sequences, heads and rows, so that T x S logits are never held."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.attention.call import AttentionCall

# Numbers in a block. On a CPU two blocks of 1 MB stay in the cache of a core; a GPU wants more work at once.
BLOCK = {"cpu": 2**18, "other": 2**25}
ROWS = 64  # in a block, at most, on a CPU
HIDDEN = -1e30  # logit of what is masked: exp gives 0, and 0 times it is 0, which is not so of -inf


@dataclass
class Chunk:
    """Logits of some rows of some heads of some sequences.

    Attributes:
        batch: Which sequences.
        heads: Which heads.
        rows: Which of the chosen rows, as a slice of their list.
        logits: (b, h, R, E), masked ones `HIDDEN`, of the first E keys; the others are hidden from all rows.
        spare: As large as the logits, for the consumer to write into.
    """

    batch: slice
    heads: slice
    rows: slice
    logits: Tensor
    spare: Tensor

    @property
    def keys(self) -> slice:
        """The first E keys."""
        return slice(0, self.logits.shape[-1])


def logit_chunks(
    call: AttentionCall, rows: Tensor | None = None, block: int | None = None
) -> Iterator[Chunk]:
    """Goes through the logits of a call. The tensors of a chunk are overwritten by the next.

    Products are taken in float32, or in the dtype of the call if that is wider.

    Args:
        call: The call.
        rows: Which queries, ascending (R,); None for all.
        block: Numbers of a chunk; None for what suits the device.
    """
    query, key = call.query.detach(), call.key.detach()
    (batch, heads, _, width), keys = query.shape, call.keys
    on_cpu = query.device.type == "cpu"
    size = block or BLOCK["cpu" if on_cpu else "other"]
    count = call.queries if rows is None else len(rows)
    height = min(count, ROWS) if on_cpu else count
    height = max(1, min(height, size // keys)) if keys else 1
    wide = max(1, min(heads, size // max(1, height * keys)))
    deep = max(1, min(batch, size // max(1, height * keys * heads))) if wide == heads else 1
    dtype = torch.promote_types(query.dtype, torch.float32)
    buffers = torch.empty(2, deep * wide * height * keys, dtype=dtype, device=query.device)
    places = torch.arange(call.queries, device=query.device) if rows is None else rows.to(query.device)
    last = places.tolist() if call.causal and rows is not None else None  # one sync, where rows are chosen
    above = torch.ones(height, height, dtype=torch.bool, device=query.device).triu(1)
    group = heads // call.key.shape[1]
    for b in range(0, batch, deep):
        for h in range(0, heads, wide):
            part = (slice(b, min(b + deep, batch)), slice(h, min(h + wide, heads)))
            # One key head serves `group` query heads.
            served = torch.arange(part[1].start, part[1].stop, device=key.device) // group
            k = (key[part[0]] if group == 1 and wide == heads else key[part[0]][:, served]).to(dtype)
            k = k.flatten(0, 1).transpose(1, 2)  # (n, d, S)
            q = query[part] if rows is None else query[part][:, :, places]
            q = (q.to(dtype) * call.scale).reshape(-1, count, width)  # (n, R, d)
            for r in range(0, count, height):
                stop = min(r + height, count)
                first = (r if last is None else last[r]) if call.causal else 0
                end = min(keys, (stop if last is None else last[stop - 1] + 1)) if call.causal else keys
                shape = (len(q), stop - r, end)
                logits, spare = (x[: shape[0] * shape[1] * shape[2]].view(shape) for x in buffers)
                torch.bmm(q[:, r:stop], k[:, :, :end], out=logits)
                logits = logits.view(-1, part[1].stop - part[1].start, *shape[1:])
                if call.softcap is not None:
                    logits.div_(call.softcap).tanh_().mul_(call.softcap)
                if call.mask is not None:
                    _hide(logits, call.mask, part, places[r:stop])
                if call.causal and last is None:
                    triangle = above[: stop - r, : end - first]
                    logits[..., first:].masked_fill_(triangle, HIDDEN)
                elif call.causal:
                    columns = torch.arange(first, end, device=places.device)
                    logits[..., first:].masked_fill_(columns > places[r:stop, None], HIDDEN)
                yield Chunk(*part, slice(r, stop), logits, spare.view_as(logits))


def _hide(logits: Tensor, mask: Tensor, part: tuple[slice, slice], places: Tensor) -> None:
    """Adds the mask of some rows to their logits (b, h, R, E)."""
    mask = mask[part[0] if mask.shape[0] > 1 else slice(None)]
    mask = mask[:, part[1] if mask.shape[1] > 1 else slice(None), :, : logits.shape[-1]]
    mask = mask[:, :, places] if mask.shape[2] > 1 else mask
    if mask.dtype == torch.bool:
        logits.masked_fill_(~mask, HIDDEN)
    else:
        logits.add_(mask).clamp_(min=HIDDEN)
