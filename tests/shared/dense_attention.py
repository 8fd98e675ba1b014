"""Attention statistics from dense weights in float64, written for reading."""

import torch
from torch import Tensor

from zoo.attention import AttentionCall


def dense_logits(call: AttentionCall) -> Tensor:
    """(B, H, T, S) in float64; -inf where masked."""
    group = call.query.shape[1] // call.key.shape[1]
    key = call.key.double().repeat_interleave(group, dim=1)
    logits = call.scale * call.query.double() @ key.transpose(-1, -2)
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    if call.mask is not None and call.mask.dtype != torch.bool:
        logits = logits + call.mask.double()
    return logits.masked_fill(~call.visible(), -torch.inf)


def dense_weights(call: AttentionCall) -> Tensor:
    """(B, H, T, S) in float64, without the outcome of attending to nothing; 0 for rows that see nothing."""
    logits = dense_logits(call)
    if call.sinks is not None:
        sinks = call.sinks.double()[None, :, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sinks], -1)
    weights = logits.softmax(-1).nan_to_num(0.0)
    return weights if call.sinks is None else weights[..., :-1]


def dense_statistics(call: AttentionCall, rows: Tensor, counted: Tensor, first: Tensor) -> dict[str, Tensor]:
    """All statistics; ``counted`` (B, T) and ``first`` (B, T), the place of each row's first token."""
    batch, heads = call.query.shape[:2]
    seen = call.visible().expand(batch, heads, -1, -1) & counted[:, None, :, None]
    weights = dense_weights(call).where(counted[:, None, :, None], 0)
    first_seen = seen.gather(-1, first[:, None, :, None].expand(batch, heads, -1, 1))[..., 0]
    first_weight = weights.gather(-1, first[:, None, :, None].expand(batch, heads, -1, 1))[..., 0]
    seen, weights, first_seen, first_weight = (
        x[:, :, rows] for x in (seen, weights, first_seen, first_weight)
    )
    logits = dense_logits(call)[:, :, rows]
    live = seen.any(-1)
    none = (1 - weights.sum(-1)).where(live, 0).clamp(min=0)
    whole = torch.cat([weights, none[..., None]], -1)
    square = call.queries == call.keys
    return {
        "column_sums": weights.sum(2),
        "queries": seen.sum(2),
        "uniform": (seen / seen.sum(-1, keepdim=True).clamp(min=1)).sum(2),
        "entropies": torch.special.entr(whole).sum(-1).where(live, 0),
        "visible_keys": seen.sum(-1),
        "max_logits": logits.masked_fill(~seen, -torch.inf).flatten(2).amax(-1),
        "diagonal": weights[..., rows].diagonal(dim1=-2, dim2=-1).sum(-1) / live.sum(-1)
        if square
        else torch.full((batch, heads), torch.nan),
        "first_token": first_weight.where(first_seen, 0).sum(-1) / first_seen.sum(-1),
        "no_op": none.sum(-1) / live.sum(-1),
    }
