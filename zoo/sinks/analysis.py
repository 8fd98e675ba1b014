"""One forward of a model, and what it says of sinks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo._modes import evaluating
from zoo.attention.layers import Layer, find_stack
from zoo.attention.watch import watch_attention
from zoo.sinks.attention import AttentionRecord, AttentionRecorder
from zoo.sinks.detector import detect
from zoo.sinks.report import SinkReport, make_report
from zoo.sinks.sink import Sink, Thresholds
from zoo.sinks.states import StateRecorder, States, find_final_norm


def record(
    model: nn.Module,
    run: Callable[[], Any],
    valid: Tensor | None = None,
    documents: Tensor | None = None,
    *,
    stack: str | None = None,
    layers: Sequence[int] | None = None,
    norm_ratio: float = 10.0,
    queries: int | None = None,
    seed: int = 0,
    step: int = 0,
) -> tuple[States, AttentionRecord | None]:
    """What a forward says of states and attention; hidden states and attention weights are not kept.

    The model is in evaluation mode for it; its modes and the random states are left as they were.

    Args:
        model: A model with a stack of layers with attention (`zoo.attention.find_stack`).
        run: Runs it once.
        valid: (B, T) bool: tokens that are not padding; None for all that the layers are given.
        documents: (B, T) ids of packed documents; None for one a sequence.
        stack: Name of the stack; None for that of the language model, or the largest.
        layers: Layers whose attention is looked at; None for all that have any.
        norm_ratio: A token is followed from where its norm is this many times the median.
        queries: Rows of attention that are looked at, drawn evenly; None for all.
        seed: Seed of the draw.
        step: Number of the draw.

    Raises:
        ValueError: the model has no layers with attention, or its layers have other tokens.
    """
    found = find_stack(model, stack)
    states = StateRecorder(found, valid, documents, find_final_norm(model, found), norm_ratio)
    attention = AttentionRecorder(found, valid, documents, queries, seed, step)
    names = attention_names(found, layers)
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=devices),
        evaluating(model),
        watch_attention(model, attention, names, attention.keep_gate),
        states.attached(),
    ):
        run()
    return states.states(), attention.record()


def attention_names(stack: Sequence[Layer], layers: Sequence[int] | None) -> list[str]:
    """Names of the attention of some layers of a stack, or of all that have any.

    Raises:
        ValueError: a layer does not exist, or has no softmax attention.
    """
    names = {layer.index: layer.attention_name for layer in stack if layer.attention is not None}
    if layers is None:
        return list(names.values())
    if not layers or not set(layers) <= names.keys():
        raise ValueError(
            f"layers must be numbers of layers with softmax attention, among "
            f"{', '.join(map(str, names))}; got {list(layers)}"
        )
    return [names[layer] for layer in sorted(set(layers))]


def analyze(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    *,
    forward: Callable[[Any], Any] | None = None,
    valid: Tensor | None = None,
    documents: Tensor | None = None,
    tokens: Tensor | None = None,
    texts: Callable[[Sequence[int]], Sequence[str]] | None = None,
    thresholds: Thresholds = Thresholds(),
    stack: str | None = None,
    layers: Sequence[int] | None = None,
    queries: int | None = None,
    seed: int = 0,
) -> SinkReport:
    """The sinks of a model on a batch: for models of transformers, timm, or anybody's, with no Trainer.

    One forward in the model's own dtype; in float32 what is taken of it. Of T tokens it keeps (3 + 4 C + H)
    numbers a token and layer, C at least 8, and no T x T weights.

    Args:
        model: The model.
        batch: Tokens (B, T), or the keyword arguments of the model.
        forward: Runs the model on a batch, where calling it is not the way.
        valid: (B, T) bool: tokens that are not padding; if not given, the batch's ``attention_mask``, or all.
        documents: (B, T) ids of packed documents, equal for the tokens of one.
        tokens: (B, T) ids for the report; found in the batch as ``input_ids``, or the batch itself.
        texts: Writes ids as text, for the report (``tokenizer.convert_ids_to_tokens``).
        thresholds: What makes a sink.
        stack: Name of the stack of layers (`zoo.attention.stacks`).
        layers: Layers whose attention is looked at; None for all that have any.
        queries: Rows of attention that are looked at, drawn evenly; None for all, which is exact.
        seed: Seed of the draw.

    Raises:
        ValueError: a model without attention, or tokens that are not those of the layers.

    >>> from zoo.sinks.planted import Planted, planted_llama, planted_tokens
    >>> model = planted_llama([Planted(0, 2000.0, 2, 10), Planted(1, 60.0, 5, 8)])
    >>> report = analyze(model, planted_tokens(48, {17: 1}))
    >>> [(sink.kind, sink.place, sink.start, sink.lifetime) for sink in report.sinks]
    [('primary', 0, 2, 8), ('secondary', 17, 5, 3)]
    """
    keywords = isinstance(batch, Mapping)
    if tokens is None:
        found: Any = batch.get("input_ids") if keywords else batch  # type: ignore[union-attr]
        tokens = found if isinstance(found, Tensor) and not found.is_floating_point() else None
    if valid is None:
        mask = batch.get("attention_mask") if keywords else None  # type: ignore[union-attr]
        valid = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def run() -> None:
        if forward is not None:
            forward(batch)
        elif keywords:
            model(**batch)  # type: ignore[arg-type]
        else:
            model(batch)

    states, attention = record(
        model,
        run,
        valid,
        documents,
        stack=stack,
        layers=layers,
        norm_ratio=thresholds.norm_ratio,
        queries=queries,
        seed=seed,
    )
    sinks = detect(states, attention, thresholds)
    if tokens is not None and tokens.shape == states.valid.shape:
        sinks = [_with_token(sink, int(tokens[sink.sequence, sink.place]), texts) for sink in sinks]
    return make_report(states, attention, sinks)


def _with_token(sink: Sink, token: int, texts: Callable[[Sequence[int]], Sequence[str]] | None) -> Sink:
    return dataclasses.replace(sink, token=token, text=None if texts is None else str(texts([token])[0]))
