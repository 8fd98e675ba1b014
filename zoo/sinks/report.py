"""What is said of a model's sinks: each of them, their levels, and numbers over all layers and heads."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.sinks.attention import AttentionRecord
from zoo.sinks.levels import Level, level_entropy, sink_levels, spearman
from zoo.sinks.sink import Sink
from zoo.sinks.states import States

HEAVY = 0.3  # a head that gives a token more sinks on it (Gu et al., arXiv 2410.10781)
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0  # Sun et al. (arXiv 2402.17762): above both, of the median entry
OUTLIER_DEVIATIONS = 10.0  # above the median norm, and twice it: a register of a vision model


@dataclass(frozen=True)
class SinkReport:
    """Sinks of a batch.

    Attributes:
        layers: L.
        sequences: B.
        tokens: Tokens that are not padding.
        sinks: All of them, by sequence and place.
        levels: How many secondary sinks have each (first layer, lifetime), the most frequent first.
        scalars: Numbers over everything; `SCALARS` says what they are.
        curves: By layer: "median_norm" (from the embedding on), and of layers with attention, numbered by
            "attention_layer": "first_token", "entropy", "max_logit", "primary_attention".
        maps: For figures, not in the JSON: "attention" (A, T), the largest score of a head for each token of
            the first sequence, and "heads" (A, H), scores of the primary sinks.
    """

    layers: int
    sequences: int
    tokens: int
    sinks: list[Sink]
    levels: dict[Level, int]
    scalars: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def of_kind(self, kind: str) -> list[Sink]:
        """The sinks of a kind."""
        return [sink for sink in self.sinks if sink.kind == kind]

    def as_dict(self) -> dict[str, Any]:
        """All but the maps, as plain values; what is not finite is None."""
        levels = [{"start": start, "lifetime": life, "count": n} for (start, life), n in self.levels.items()]
        whole = {
            "layers": self.layers,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "levels": levels,
            "scalars": self.scalars,
            "curves": self.curves,
            "sinks": [asdict(sink) for sink in self.sinks],
        }
        return _finite(whole)

    def to_json(self) -> str:
        """`as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False)

    def table(self, rows: int = 20) -> str:
        """The sinks as text, primary ones first, at most so many."""
        order = {"primary": 0, "secondary": 1, "opposed": 2, "aligned_only": 3, "noise": 4}
        sinks = sorted(self.sinks, key=lambda sink: (order[sink.kind], sink.sequence, sink.place))
        if not sinks:
            return "no sinks: no token stands out and is attended to"
        head = [
            "kind",
            "seq",
            "place",
            "token",
            "layers",
            "life",
            "norm",
            "cosine",
            "attention",
            "head",
            "written by",
        ]
        lines = [head]
        for sink in sinks[:rows]:
            where = "" if sink.max_attention_at is None else "{}.{}".format(*sink.max_attention_at)
            lines.append(
                [
                    sink.kind,
                    str(sink.sequence),
                    str(sink.place),
                    repr(sink.text)
                    if sink.text is not None
                    else ""
                    if sink.token is None
                    else str(sink.token),
                    f"{sink.start}-{sink.end}",
                    str(sink.lifetime),
                    f"{sink.norm:.4g}",
                    f"{sink.cosine:.3f}",
                    "" if sink.max_attention is None else f"{sink.max_attention:.3f}",
                    where,
                    "" if sink.creator is None else f"MLP {sink.creator}",
                ]
            )
        widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
        text = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        return text + (f"\n... and {len(sinks) - rows} more" if len(sinks) > rows else "")


SCALARS = {
    "primary_sinks": "primary sinks a sequence",
    "secondary_sinks": "secondary sinks in a thousand tokens",
    "levels": "different levels of secondary sinks",
    "level_entropy": "entropy of their shares, in nats",
    "primary_start": "first layer of a primary sink; NaN without one",
    "primary_end": "last layer of a primary sink",
    "primary_weakening": "least attention of primary sinks in mid-life over that in the first third of it",
    "norm_lifetime_correlation": "Spearman's, of secondary sinks: norm at birth and lifetime",
    "norm_attention_correlation": "Spearman's, of secondary sinks: norm at birth and largest attention",
    "creator_cosine": "the largest cosine of what a feed-forward network wrote into a secondary sink",
    "first_token": "mean weight on the first token",
    "first_token_heads": "share of heads that give the first token more than .3 (Gu et al.'s metric)",
    "any_token_heads": "share of heads that give some token more than .3",
    "dormant_heads": "share of heads that give a primary sink more than .3",
    "max_attention": "the largest score of a token",
    "value_drain": "norm of the value of primary sinks, or of the first token, over the mean of the others",
    "entropy": "mean entropy of rows, in nats",
    "min_relative_entropy": "least mean of entropy / log(visible keys) of a head: 1 is even attention",
    "max_logit": "the largest logit of a visible pair",
    "no_op": "mean weight of attending to nothing",
    "gate": "mean gate of gated attention",
    "closed_gates": "share of gates below .1",
    "max_activation": "the largest absolute entry of a state",
    "massive_activations": "states of a layer and sequence with an entry above 100 and 1,000 medians",
    "nonfinite_states": "states of tokens with an entry that is no number",
    "norm_outliers": "share of tokens whose last norm is twice the median and 10 deviations above",
}


def make_report(
    states: States,
    attention: AttentionRecord | None,
    sinks: list[Sink],
) -> SinkReport:
    """Puts a report together.

    Args:
        states: What was recorded of the states.
        attention: What was recorded of attention.
        sinks: What `zoo.sinks.detect` found.
    """
    tokens, sequences = int(states.valid.sum()), len(states.valid)
    primary = [sink for sink in sinks if sink.kind == "primary"]
    secondary = [sink for sink in sinks if sink.kind == "secondary"]
    levels = sink_levels(secondary)
    attended = [sink for sink in secondary if sink.attention is not None]
    scalars = {
        "primary_sinks": len(primary) / sequences,
        "secondary_sinks": 1000 * len(secondary) / max(1, tokens),
        "levels": float(len(levels)),
        "level_entropy": level_entropy(levels),
        "primary_start": float(min((sink.start for sink in primary), default=math.nan)),
        "primary_end": float(max((sink.end for sink in primary), default=math.nan)),
        "norm_lifetime_correlation": spearman(
            [sink.norm for sink in secondary], [float(sink.lifetime) for sink in secondary]
        ),
        "norm_attention_correlation": spearman(
            [sink.norm for sink in attended], [float(sink.max_attention or 0) for sink in attended]
        ),
        "creator_cosine": max((s.creator_cosine for s in secondary if s.creator_cosine), default=math.nan),
    }
    curves = {"median_norm": _medians(states).tolist()}
    maps: dict[str, Tensor] = {}
    if attention is not None:
        _add_attention(scalars, curves, maps, states, attention, primary)
    _add_activations(scalars, states)
    ordered = {name: scalars[name] for name in SCALARS if name in scalars}
    return SinkReport(states.layers, sequences, tokens, sinks, levels, ordered, curves, maps)


def _add_attention(
    scalars: dict[str, float],
    curves: dict[str, list[float]],
    maps: dict[str, Tensor],
    states: States,
    record: AttentionRecord,
    primary: list[Sink],
) -> None:
    scores = record.scores.float().cpu()  # (A, B, H, T)
    layers = record.layers.tolist()
    places = states.valid.int().argmax(1).cpu()  # of the first token of each sequence
    firsts = scores.gather(-1, places[None, :, None, None].expand(*scores.shape[:3], 1))[..., 0]
    on_primary = torch.zeros_like(scores[..., 0])  # (A, B, H): the largest score of a primary sink that lives
    lived = torch.zeros(len(layers), scores.shape[1], dtype=torch.bool)
    for sink in primary:
        for number, layer in enumerate(layers):
            if sink.start < layer <= sink.end + 1:  # layer sees the states that layer - 1 returned
                lived[number, sink.sequence] = True
                got = scores[number, sink.sequence, :, sink.place].nan_to_num(0.0)
                on_primary[number, sink.sequence] = on_primary[number, sink.sequence].maximum(got)
    scalars |= {
        "first_token": float(record.first_token.nanmean()),
        "first_token_heads": float((firsts > HEAVY).float().mean()),
        "any_token_heads": float((scores > HEAVY).any(-1).float().mean()),
        "dormant_heads": float((on_primary > HEAVY).float().mean()),
        "max_attention": float(scores.nan_to_num(0.0).max()),
        "value_drain": _value_drain(states, record, primary),
        "entropy": float(record.entropy.nanmean()),
        "min_relative_entropy": float(record.relative_entropy.float().nanmean(1).nan_to_num(torch.inf).min()),
        "max_logit": float(record.max_logits.max()),
        "no_op": float(record.no_op.nanmean()),
    }
    gates = record.gates.cpu()
    if not bool(gates.isnan().all()):
        scalars["gate"], scalars["closed_gates"] = (float(x) for x in gates.nanmean(0))
    by_layer = [
        float(on_primary[n][lived[n]].mean()) if bool(lived[n].any()) else math.nan
        for n in range(len(layers))
    ]
    scalars["primary_weakening"] = weakening(by_layer)
    curves |= {
        "attention_layer": [float(layer) for layer in layers],
        "first_token": record.first_token.nanmean((1, 2)).tolist(),
        "entropy": record.entropy.nanmean((1, 2)).tolist(),
        "max_logit": record.max_logits.amax((1, 2)).tolist(),
        "primary_attention": by_layer,
    }
    maps["attention"] = scores[:, 0].nan_to_num(0.0).amax(1)
    maps["heads"] = on_primary.mean(1)


def weakening(attention: list[float]) -> float:
    """How far the attention of primary sinks falls in the middle of their life; 1 if it does not.

    Args:
        attention: By layer; NaN where no primary sink lives.

    Returns:
        The least value of the middle third of the life, over the mean of its first third.

    >>> weakening([float("nan"), 0.8, 0.8, 0.4, 0.6, 0.8, 0.8])
    0.5
    """
    alive = [value for value in attention if not math.isnan(value)]
    third = len(alive) // 3
    if third == 0 or sum(alive[:third]) == 0:
        return math.nan
    return min(alive[third : len(alive) - third]) / (sum(alive[:third]) / third)


def _value_drain(states: States, record: AttentionRecord, primary: list[Sink]) -> float:
    """Norm of the value of the primary sinks that live, or the first token, over the mean of the others."""
    norms, shares = record.value_norms.float().cpu(), []
    valid = states.valid.cpu()
    for sequence in range(len(valid)):
        sinks = [sink for sink in primary if sink.sequence == sequence]
        places = [sink.place for sink in sinks] or [int(valid[sequence].int().argmax())]
        others = valid[sequence].clone()
        others[places] = False
        if not bool(others.any()):
            continue
        for number, layer in enumerate(record.layers.tolist()):
            living = [s.place for s in sinks if s.start < layer <= s.end + 1] if sinks else places
            if living:
                row = norms[number, sequence]  # (H_kv, T)
                shares.append((row[:, living].mean(-1) / row[:, others].mean(-1)).mean())
    return float(torch.stack(shares).mean()) if shares else math.nan


def _add_activations(scalars: dict[str, float], states: States) -> None:
    if states.largest is not None and states.medians is not None:
        massive = (states.largest > MASSIVE) & (states.largest > MASSIVE_RATIO * states.medians)
        scalars["max_activation"] = float(states.largest.max())
        scalars["massive_activations"] = float(massive.sum())
    if states.nonfinite is not None:
        scalars["nonfinite_states"] = float(states.nonfinite.sum())
    norms = states.norms[-1].where(states.valid, torch.nan)
    medians = norms.nanmedian(-1, keepdim=True).values
    spread = (norms - medians).abs().nanmedian(-1, keepdim=True).values
    limit = torch.maximum(medians + OUTLIER_DEVIATIONS * spread, 2 * medians)
    outliers = (norms > limit) & states.valid
    scalars["norm_outliers"] = float(outliers.sum() / states.valid.sum())


def _medians(states: States) -> Tensor:
    return states.norms.where(states.valid, torch.nan).nanmedian(-1).values.nanmean(-1)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
