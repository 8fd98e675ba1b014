"""Which tokens are sinks: from where to where, of which kind, and made by which layer.

After "On the Existence and Behaviour of Secondary Attention Sinks" (arXiv 2512.22213), whose method is kept
in `zoo.sinks.paper`. What is mended here: states are looked at before the final norm, the embedding and the
last layer included; a primary sink has to stand out and to be attended to, and there may be several or none;
the sign of the cosine counts; every sink is held against the attention that it gets; kinds depend on the
depth in proportion, not on 15 layers.
"""

import math
from typing import Any

import torch
from torch import Tensor

from zoo.sinks.attention import AttentionRecord
from zoo.sinks.documents import Document, RecordsByDocument
from zoo.sinks.sink import Kind, Sink, Thresholds
from zoo.sinks.states import States


def detect(
    states: States, attention: AttentionRecord | None = None, thresholds: Thresholds = Thresholds()
) -> list[Sink]:
    """All sinks of a batch, by sequence and place; none where no token is a primary sink.

    Args:
        states: What was recorded of the states.
        attention: What was recorded of attention; None leaves the attention check out.
        thresholds: What makes a sink.
    """
    found = [
        sink
        for document in RecordsByDocument(states, attention)
        for sink in _in_document(document, thresholds)
    ]
    return sorted(found, key=lambda sink: (sink.sequence, sink.place))


def _in_document(doc: Document, limits: Thresholds) -> list[Sink]:
    ratios = doc.norms / doc.norms.nanmedian(-1, keepdim=True).values  # (L + 1, n)
    primaries = _primaries(doc, ratios, limits)
    if not primaries:
        return []
    reference = max(
        primaries, key=lambda token: (primaries[token][1] - primaries[token][0], ratios[:, token].max())
    )
    first, last = primaries[reference]
    half = (last - first + 1) / 2
    # Primary sinks are born with the reference, and live half as long at least.
    group = [t for t, (start, end) in primaries.items() if start <= first + 1 and end - start + 1 >= half]
    slots = [n for n, token in enumerate(doc.candidates.tolist()) if token in group]
    alive = torch.tensor(
        [
            [primaries[t][0] <= s <= primaries[t][1] for t in doc.candidates[slots].tolist()]
            for s in range(len(ratios))
        ]
    )
    first, last = min(primaries[t][0] for t in group), max(primaries[t][1] for t in group)
    toward = _Toward(doc, slots, alive)
    found = []
    min_life = max(2, math.ceil(limits.min_life * (len(ratios) - 1)))
    for sign in (1, -1):
        pointing = sign * toward.states > limits.cosine  # (L + 1, n)
        pointing[:first] = pointing[last + 1 :] = False
        for token in pointing.any(0).nonzero()[:, 0].tolist():
            aligned = pointing[:, token]
            run = _longest_run(aligned, limits.gap)
            if not run:
                continue
            attended = _attended(doc, token, run, limits)
            kind: Kind
            if sign < 0:
                kind = "opposed"
            elif token in group:
                kind = "primary"
            elif attended is False:
                kind = "aligned_only"
            elif run[0] <= first + 1 and len(run) >= half:
                kind = "primary"
            elif run[0] >= first + 2 and len(run) >= min_life:
                kind = "secondary"
            else:
                kind = "noise"
            found.append(_describe(doc, token, kind, run, toward, ratios, limits))
    return found


def _primaries(doc: Document, ratios: Tensor, limits: Thresholds) -> dict[int, tuple[int, int]]:
    """Candidates whose norm stands out and that are attended to: first and last state of their lives."""
    found = {}
    for token in doc.candidates.tolist():
        out = (ratios[:, token] >= limits.norm_ratio).nonzero()[:, 0].tolist()
        if out and _attended(doc, token, range(out[0], out[-1] + 1), limits) is not False:
            found[token] = (out[0], out[-1])
    return found


def _attended(doc: Document, token: int, run: Any, limits: Thresholds) -> bool | None:
    """Whether some head of the layers that see a token's states attends to it; None if no layer says."""
    seen = [doc.attention_layers[s] for s in run if s in doc.attention_layers]
    if doc.scores is None or doc.even is None or not seen:
        return None
    scores, even = doc.scores[seen, :, token], doc.even[seen, :, token]
    if bool(scores.isnan().all()):
        return None
    return bool((scores > even.mul(limits.attention).clamp(max=0.5)).any())


class _Toward:
    """Cosines with the mean direction of the living primary sinks: of states and of what was added to them.

    The mean of units u_c has norm sqrt(sum of their cosines with each other), so its cosine with v is
    sum_c cos(v, u_c) over that norm. NaN where no primary sink lives.

    Args:
        doc: The document.
        slots: Which candidates are primary sinks.
        alive: (L + 1, P) bool: when each lives.
    """

    def __init__(self, doc: Document, slots: list[int], alive: Tensor) -> None:
        own = doc.cosines[:, slots][:, :, doc.candidates[slots]]  # (L + 1, P, P)
        self.states = _toward(doc.cosines[:, slots], own, alive)  # (L + 1, n)
        self.written = self.undone = None
        if doc.mlp:
            self.written = _toward(doc.mlp["cosines"][:, slots], own[1:], alive[1:])  # (L, n)
            self.undone = _toward(doc.mlp["before"][:, slots], own[:-1], alive[:-1])  # (L, n)


def _toward(each: Tensor, own: Tensor, alive: Tensor) -> Tensor:
    weight = alive.to(each.dtype)[:, :, None]  # (L', P, 1)
    square = (own.nan_to_num(0.0) * weight * weight.transpose(1, 2)).sum((1, 2))[:, None]
    mean = (each.nan_to_num(0.0) * weight).sum(1) / square.clamp(min=1e-12).sqrt()
    return mean.where(square > 0, torch.nan)


def _longest_run(aligned: Tensor, gap: int) -> list[int]:
    """The states of the longest stretch of true, across up to ``gap`` false in a row; the first of equals."""
    best: list[int] = []
    run: list[int] = []
    for state in aligned.nonzero()[:, 0].tolist():
        run = [*run, state] if run and state - run[-1] <= gap + 1 else [state]
        best = run if len(run) > len(best) else best
    return best


def _describe(
    doc: Document,
    token: int,
    kind: Kind,
    run: list[int],
    toward: _Toward,
    ratios: Tensor,
    limits: Thresholds,
) -> Sink:
    start, end = run[0], run[-1]
    norms = doc.norms[:, token]
    facts: dict[str, Any] = {}
    seen = [(s, doc.attention_layers[s]) for s in run if s in doc.attention_layers]
    if doc.scores is not None and seen:
        scores = doc.scores[[n for _, n in seen], :, token]  # (layers, H)
        if not bool(scores.isnan().all()):
            best = int(scores.nan_to_num(-1.0).argmax())
            facts["attention"] = float(scores.nanmean())
            facts["max_attention"] = float(scores.flatten()[best])
            facts["max_attention_at"] = (seen[best // scores.shape[1]][0], best % scores.shape[1])
    if start > 0 and doc.attention_norms is not None:
        facts["attention_share"] = float(doc.attention_norms[start - 1, token] / norms[start])
    if toward.written is not None and toward.undone is not None:
        sign = -1 if kind == "opposed" else 1
        share = doc.mlp["norms"][:, token] / norms[1:]
        written = sign * toward.written[:, token]
        makers = ((written > limits.writer_cosine) & (share > 0.5))[:start].nonzero()[:, 0].tolist()
        if makers:
            layer = makers[0]
            facts["creator"], facts["creator_cosine"] = layer, float(written[layer])
            facts["creator_share"] = float(share[layer])
        # Layer `end` is given the last state of its life.
        if end < len(share) and doc.mlp["norms"][end, token] > 0.5 * norms[end]:
            facts["remover"] = end if sign * toward.undone[end, token] < -limits.writer_cosine else None
    return Sink(
        sequence=doc.sequence,
        document=doc.number,
        position=token,
        place=int(doc.places[token]),
        kind=kind,
        start=start - 1,
        end=end - 1,
        lifetime=len(run),
        norm=float(norms[start]),
        peak_ratio=float(ratios[run, token].max()),
        cosine=float(toward.states[run, token].mean()),
        curve=[float(value) for value in norms],
        **facts,
    )
