"""What attention did, exactly and without its T x S weights: sums over columns, entropies and maxima of rows.

Of S logits s_ij of a row i, with log Z_i = logsumexp_j s_ij (and the logit of attending to nothing, where a
model has one learned), the weights are A_ij = exp(s_ij - log Z_i) and the entropy is log Z_i - sum_j A_ij
s_ij. All comes from one pass over blocks of rows (`zoo.attention.logit_chunks`), in float32.

Column sums are those that "When Attention Sink Emerges in Language Models" (Gu et al., arXiv 2410.10781)
divides by the number of queries. Learned sink logits count as one more outcome in the entropy, as the softmax
counts them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.attention.call import AttentionCall
from zoo.attention.chunks import HIDDEN, logit_chunks


@dataclass(frozen=True, eq=False)
class AttentionStatistics:
    """Statistics of one call over its rows that count. B sequences, H heads, R rows, S keys.

    Attributes:
        column_sums: (B, H, S): the attention that each key got from all rows together.
        queries: (1 or B, 1 or H, S) int64: how many rows saw each key.
        uniform: Of the shape of ``queries``: what `column_sums` would be if each row attended evenly.
        entropies: (B, H, R) in nats; 0 for rows that do not count.
        visible_keys: (1 or B, 1 or H, R) int64: how many keys each row saw; 0 for rows that do not count.
        max_logits: (B, H): the largest scale * query . key (after the soft cap) of a visible pair; -inf where
            no row counts.
        diagonal: (B, H): mean weight of a row on its own key; NaN where queries are not the keys.
        first_token: (B, H): mean weight on the first token of the sequence, or of the row's document, over
            the rows that see it.
        no_op: (B, H): mean weight of the learned sink logit (attending to no key); 0 without one.
    """

    column_sums: Tensor
    queries: Tensor
    uniform: Tensor
    entropies: Tensor
    visible_keys: Tensor
    max_logits: Tensor
    diagonal: Tensor
    first_token: Tensor
    no_op: Tensor

    def scores(self, min_queries: int = 8) -> Tensor:
        """Mean attention of each key over the rows that saw it (B, H, S); NaN for keys that fewer rows saw.

        The last keys of a causal sequence are seen by few rows, whose attention says little.
        """
        queries = self.queries.expand_as(self.column_sums)
        return (self.column_sums / queries).where(queries >= min_queries, torch.nan)

    def mean_entropy(self) -> Tensor:
        """(B, H): mean over the rows that count; NaN where none does."""
        seen = (self.visible_keys > 0).expand_as(self.entropies)
        return self.entropies.sum(-1) / seen.sum(-1)

    def relative_entropy(self) -> Tensor:
        """(B, H): mean of entropy / log(visible keys) over the rows that see several keys; 1 is even."""
        several = (self.visible_keys > 1).expand_as(self.entropies)
        largest = self.visible_keys.clamp(min=2).log()
        return (self.entropies / largest).where(several, 0).sum(-1) / several.sum(-1)


def attention_statistics(
    call: AttentionCall,
    rows: Tensor | None = None,
    counted: Tensor | None = None,
    documents: Tensor | None = None,
) -> AttentionStatistics:
    """All statistics of a call.

    On one CPU core, for T = 4096, it takes about as long as the call itself (`tests/benchmarks`).

    Args:
        call: The call.
        rows: Which queries to look at, ascending (R,) (`stratified_rows`); None for all.
        counted: (B, T) bool: queries that count; false for padding. None for all.
        documents: (B, S) ids of packed documents, equal for the tokens of one; None for one a sequence. Only
            `first_token` depends on them: what a document sees is said by the mask.

    Raises:
        ValueError: shapes that do not fit the call, rows out of range or out of order.
    """
    _check(call, rows, counted, documents)
    device, (batch, heads) = call.query.device, call.query.shape[:2]
    places = torch.arange(call.queries, device=device) if rows is None else rows.to(device)
    count, keys = len(places), call.keys
    weights = None if counted is None else counted.to(device)[:, places]  # (B, R)
    starts = None if documents is None else _first_tokens(documents.to(device))[:, places]  # (B, R)
    visible, queries, uniform, sees_first = _counts(call, places, weights, starts)
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    column_sums = torch.zeros(batch, heads, keys, dtype=dtype, device=device)
    # Of each row: the largest logit; of exp(logit - shift) the sum, that with the logit, and single keys'.
    top, total, dot, own, first = (
        torch.zeros(batch, heads, count, dtype=dtype, device=device) for _ in range(5)
    )
    learned = None if call.sinks is None else call.sinks.detach().to(device, dtype)[None, :, None]
    square = call.queries == keys
    all_live = call.mask is None and weights is None
    for chunk in logit_chunks(call, rows):
        at = (chunk.batch, chunk.heads, chunk.rows)
        logits, weight = chunk.logits, chunk.spare
        shift = logits.amax(-1)
        top[at] = shift
        if learned is not None:
            shift = torch.maximum(shift, learned[:, chunk.heads])
        torch.exp(logits.sub_(shift[..., None]), out=weight)  # (b, h, R, E)
        sums = weight.sum(-1)
        total[at] = sums
        if learned is not None:
            sums = sums + (learned[:, chunk.heads] - shift).exp()
        share = sums.reciprocal()
        if not all_live:  # some rows do not count, or see nothing
            share = share.where(visible[(*_part(visible, chunk.batch, chunk.heads), chunk.rows)] > 0, 0)
        column_sums[chunk.batch, chunk.heads, chunk.keys] += (share[..., None, :] @ weight).squeeze(-2)
        if square and rows is None:
            own[at] = weight.diagonal(chunk.rows.start, -2, -1)
        elif square:
            own[at] = weight.gather(-1, places[chunk.rows, None].expand(*shift.shape, 1))[..., 0]
        if starts is None:
            first[at] = weight[..., 0]
        else:
            where = starts[chunk.batch, None, chunk.rows, None].expand(*shift.shape, 1)
            first[at] = weight.gather(-1, where)[..., 0]
        dot[at] = logits.mul_(weight).sum(-1)
    nothing = torch.zeros_like(total)
    if learned is not None:
        shift = torch.maximum(top, learned)
        nothing = (learned - shift).exp()
        dot = dot + nothing * (learned - shift)
    total = total + nothing
    seen = (visible > 0).expand(batch, heads, count)
    return AttentionStatistics(
        column_sums,
        queries,
        uniform.to(dtype),
        entropies=(total.log() - dot / total).where(seen, 0).clamp(min=0),
        visible_keys=visible,
        max_logits=top.where(seen, -torch.inf).amax(-1) if count else top.new_full(top.shape[:2], -torch.inf),
        diagonal=_mean(own / total, seen) if square else torch.full_like(top[..., :1], torch.nan).squeeze(-1),
        first_token=_mean(first / total, sees_first),
        no_op=_mean(nothing / total, seen),
    )


def columns(call: AttentionCall, rows: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
    """Column sums (B, H, S) of a call over all its rows, or some: the attention that each key got.

    Args:
        call: The call.
        rows: Which queries, ascending (R,); None for all.
        counted: (B, T) bool: queries that count; None for all.
    """
    _check(call, rows, counted, None)
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    sums = torch.zeros(*call.query.shape[:2], call.keys, dtype=dtype, device=call.query.device)
    weights = None if counted is None else counted.to(sums.device)
    weights = weights[:, rows] if weights is not None and rows is not None else weights
    for chunk in logit_chunks(call, rows):
        share = _softmax_(chunk.logits, call, chunk.heads)
        if weights is not None:
            share = share.where(weights[chunk.batch, None, chunk.rows], 0)
        sums[chunk.batch, chunk.heads, chunk.keys] += (share[..., None, :] @ chunk.logits).squeeze(-2)
    return sums


def rows(call: AttentionCall, which: Tensor) -> Tensor:
    """Attention weights of chosen queries.

    Args:
        call: The call.
        which: Queries, ascending (R,).

    Returns:
        (B, H, R, S) in float32, or the call's dtype if that is wider; 0 for rows that see nothing.
    """
    _check(call, which, None, None)
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    shape = (*call.query.shape[:2], len(which), call.keys)
    made = torch.zeros(shape, dtype=dtype, device=call.query.device)
    for chunk in logit_chunks(call, which):
        share = _softmax_(chunk.logits, call, chunk.heads)
        made[chunk.batch, chunk.heads, chunk.rows, chunk.keys] = chunk.logits * share[..., None]
    return made


def _softmax_(logits: Tensor, call: AttentionCall, heads: slice) -> Tensor:
    """Makes exp(logits - shift) of logits (b, h, R, E), in place; returns their factors (b, h, R)."""
    top = logits.amax(-1)
    shift = top
    if call.sinks is not None:
        learned = call.sinks.detach().to(logits)[heads][None, :, None].expand_as(top)
        shift = torch.maximum(top, learned)
    total = logits.sub_(shift[..., None]).exp_().sum(-1)
    if call.sinks is not None:
        total += (learned - shift).exp()
    return total.reciprocal().where(top > HIDDEN / 2, 0)  # 0 where a row sees nothing


def _counts(
    call: AttentionCall, places: Tensor, counted: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the mask says, (1 or B, 1 or H, ...): keys of each row, rows of each key, sums of even attention.

    Last, whether each row counts and sees the first token of its document.

    Args:
        call: The call.
        places: The rows (R,).
        counted: Which of them count (B, R); None for all.
        starts: Place of the first token of each row's document (B, R); None for the first of all.
    """
    count, keys, device = len(places), call.keys, places.device
    first = torch.zeros(1, count, dtype=torch.int64, device=device) if starts is None else starts
    if call.mask is None:
        return _counts_without_mask(call, places, counted, first)
    batch = max(len(first), len(call.mask), 1 if counted is None else len(counted))
    outer = (batch, call.mask.shape[1])
    visible = torch.zeros(*outer, count, dtype=torch.int64, device=device)
    queries = torch.zeros(*outer, keys, dtype=torch.int64, device=device)
    uniform = torch.zeros(*outer, keys, dtype=torch.float64, device=device)
    sees_first = torch.zeros(*outer, count, dtype=torch.bool, device=device)
    step = max(1, 2**20 // max(1, keys * outer[0] * outer[1]))
    for r in range(0, count, step):
        block = slice(r, r + step)
        seen = call.visible(places[block])
        if counted is not None:
            seen = seen & counted[:, None, block, None]
        visible[..., block] = seen.sum(-1)
        queries += seen.sum(-2)
        shares = (1 / visible[..., block].clamp(min=1).double())[..., None, :]
        uniform += (shares @ seen.expand(batch, -1, -1, -1).double()).squeeze(-2)
        where = first[:, None, block, None].expand(*outer, -1, 1)
        sees_first[..., block] = seen.expand(*outer, -1, -1).gather(-1, where)[..., 0]
    return visible, queries, uniform, sees_first


def _counts_without_mask(
    call: AttentionCall, places: Tensor, counted: Tensor | None, first: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same where only the order of tokens hides keys, in O(R + S)."""
    keys, count = call.keys, len(places)
    seen = (places + 1).clamp(max=keys) if call.causal else torch.full_like(places, keys)
    visible = seen.expand(1, 1, count)
    if counted is not None:
        visible = visible * counted[:, None]
    seeing = (visible > 0).double()
    parts = torch.stack([seeing, torch.where(visible > 0, 1 / visible.clamp(min=1).double(), 0)])
    if call.causal:  # a row sees the keys up to its own: sums from behind
        last = places.clamp(max=keys - 1).expand_as(parts)
        totals = parts.new_zeros(*parts.shape[:-1], keys).scatter_add_(-1, last, parts)
        queries, uniform = totals.flip(-1).cumsum(-1).flip(-1)
    else:
        queries, uniform = parts.sum(-1, keepdim=True).expand(*parts.shape[:-1], keys)
    sees_first = (visible > 0) & ((first <= places)[:, None] if call.causal else True)
    return visible, queries.round().long(), uniform, sees_first


def _first_tokens(documents: Tensor) -> Tensor:
    """Place of the first token of each token's document: (B, S)."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    return places.where(begins, 0).cummax(-1).values


def _part(counts: Tensor, batch: slice, heads: slice) -> tuple[slice, slice]:
    whole = slice(None)
    return batch if counts.shape[0] > 1 else whole, heads if counts.shape[1] > 1 else whole


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return values.where(counted, 0).sum(-1) / counted.expand_as(values).sum(-1)


def _check(
    call: AttentionCall, which: Tensor | None, counted: Tensor | None, documents: Tensor | None
) -> None:
    batch = call.query.shape[0]
    if which is not None:
        if which.ndim != 1 or which.is_floating_point() or which.dtype == torch.bool:
            raise ValueError(f"rows must be integers (R,), got {which.dtype} of shape {tuple(which.shape)}")
        if len(which) and not (which.diff() > 0).all():
            raise ValueError("rows must be ascending, each once")
        if len(which) and not (which[0] >= 0 and which[-1] < call.queries):
            raise ValueError(f"rows must be from 0 to {call.queries - 1}, got up to {int(which[-1])}")
    for name, tensor, length in (("counted", counted, call.queries), ("documents", documents, call.keys)):
        if tensor is not None and tensor.shape != (batch, length):
            raise ValueError(f"{name} must be ({batch}, {length}), got {tuple(tensor.shape)}")
