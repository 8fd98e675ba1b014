"""The detector on planted models, whose sinks, lifetimes and attention are known in closed form."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.attention import AttentionCall, find_stack, rows, watch_attention
from zoo.sinks import (
    Planted,
    SinkReport,
    StateRecorder,
    Thresholds,
    analyze,
    detect,
    planted_llama,
    planted_tokens,
)
from zoo.sinks.planted import CONSTANT, FIRST, SINK
from zoo.sinks.states import states_of

FIRST_SINK = Planted(0, 2000.0, 2, 10)


def planted(
    sinks: list[Planted], places: dict[int, int] | None = None, length: int = 48, **options: Any
) -> SinkReport:
    return analyze(planted_llama([FIRST_SINK, *sinks], **options), planted_tokens(length, places or {}))


def seen(report: SinkReport) -> list[tuple[str, int, int, int]]:
    return [(sink.kind, sink.place, sink.start, sink.lifetime) for sink in report.sinks]


@pytest.fixture(scope="module")
def report() -> SinkReport:
    return planted([Planted(1, 60.0, 5, 8)], {17: 1})


def test_the_required_report(report: SinkReport) -> None:
    """Section by section of the construction: lives, level, cosine, norm, who wrote and who removed."""
    assert seen(report) == [("primary", 0, 2, 8), ("secondary", 17, 5, 3)]
    primary, secondary = report.sinks
    assert (primary.end, primary.creator, primary.remover) == (9, 2, 10)
    assert (secondary.end, secondary.creator, secondary.remover) == (7, 5, 8)
    assert report.levels == {(5, 3): 1}
    # (60 * 2000 + 16 + <content_0, content_17>) / norms, where the contents' product is random
    assert secondary.cosine == pytest.approx(0.98705, abs=5.3e-4)
    assert secondary.norm == pytest.approx(60.7947, abs=1e-3)
    assert secondary.creator_cosine == pytest.approx(1, abs=1e-4)
    assert primary.attention_share == secondary.attention_share == 0
    assert (report.scalars["primary_start"], report.scalars["primary_end"]) == (2, 9)


def test_attention_in_closed_form() -> None:
    """A_ij = E_j / (E_p + E_s + i - 1) for an ordinary query i, with E = exp(8 cos), cos the share of e0."""
    model = planted_llama([FIRST_SINK, Planted(1, 60.0, 5, 8)], dtype=torch.float64)
    calls: list[AttentionCall] = []
    with torch.no_grad(), watch_attention(model, calls.append):
        model(planted_tokens(48, {17: 1}))
    first, second = (math.exp(8 * size / math.sqrt(size**2 + 8**2 + 4**2 + 4**2)) for size in (2000.0, 60.0))
    found = rows(calls[6], torch.tensor([40]))[0, :, 0]
    assert found[:, 0].tolist() == pytest.approx([first / (first + second + 39)] * 2, abs=1e-6)
    assert found[:, 17].tolist() == pytest.approx([second / (first + second + 39)] * 2, abs=1e-6)
    assert found[0, 0].item() == pytest.approx(0.52250045, abs=1e-6)
    assert found[0, 17].item() == pytest.approx(0.47066298, abs=1e-6)


def test_the_primary_weakens_while_a_secondary_lives(report: SinkReport) -> None:
    got = report.curves["primary_attention"]
    assert [math.isnan(value) for value in got] == [True] * 3 + [False] * 8 + [True]
    assert got[3:11] == pytest.approx([0.9921] * 3 + [0.6832] * 3 + [0.9921] * 2, abs=5e-5)
    assert report.curves["first_token"][0] == pytest.approx(report.curves["first_token"][11], abs=1e-4)
    assert report.sinks[1].attention == pytest.approx(0.4607, abs=5e-5)
    assert report.scalars["primary_weakening"] == pytest.approx(0.6832 / 0.9921, abs=1e-3)


def alive(size: float, start: int, layers: int, growth: float) -> int:
    """For how many states from birth on the rest of a state is shorter than M sqrt(1 / .81 - 1)."""
    rest = [math.hypot(8 + growth * (layer + 1), 4, 4) for layer in range(start, layers)]
    return sum(length < size * math.sqrt(1 / 0.81 - 1) for length in rest)


def test_three_norms_are_three_lifetimes() -> None:
    """Content that grows ends a sink: what was written longer lives longer and gets more attention."""
    sizes = {12: 50.0, 25: 75.0, 38: 120.0}
    report = analyze(
        planted_llama(
            [Planted(0, 20000.0, 2), *(Planted(n + 1, size, 5) for n, size in enumerate(sizes.values()))],
            layers=24,
            growth=2.0,
        ),
        planted_tokens(60, {place: n + 1 for n, place in enumerate(sizes)}),
    )
    lives = [alive(size, 5, 24, 2.0) for size in sizes.values()]
    assert lives == [2, 8, 19]
    assert seen(report) == [("primary", 0, 2, 22)] + [
        (kind, place, 5, life)
        for kind, place, life in zip(("noise", "secondary", "secondary"), sizes, lives, strict=True)
    ]
    attention = [sink.attention for sink in report.sinks[1:]]
    assert attention == sorted(attention)  # type: ignore[type-var]
    sinks = [Planted(0, 20000.0, 2), Planted(1, 65.0, 5), Planted(2, 80.0, 5), Planted(3, 100.0, 5)]
    model, tokens = planted_llama(sinks, layers=24, growth=2.0), planted_tokens(60, {12: 1, 25: 2, 38: 3})
    finer = analyze(model, tokens)
    assert len(finer.levels) == 3 and {start for start, _ in finer.levels} == {5}
    assert finer.scalars["norm_lifetime_correlation"] == 1
    assert finer.scalars["level_entropy"] == pytest.approx(math.log(3))
    calls: list[AttentionCall] = []
    with torch.no_grad(), watch_attention(model, calls.append):
        model(tokens)
    last_row = rows(calls[7], torch.tensor([59]))[0, 0, 0]  # one row sees all three
    assert last_row[12] < last_row[25] < last_row[38] < last_row[0]


def test_several_primary_sinks() -> None:
    report = planted([Planted(2, 1500.0, 2, 10), Planted(1, 60.0, 5, 8)], {1: 2, 2: 2, 17: 1})
    assert seen(report) == [*(("primary", place, 2, 8) for place in range(3)), ("secondary", 17, 5, 3)]
    assert report.scalars["primary_sinks"] == 3


def test_several_levels_at_another_depth() -> None:
    report = planted(
        [Planted(1, 80.0, 9, 12), Planted(2, 70.0, 9, 13), Planted(3, 60.0, 7, 13)],
        {9: 1, 17: 2, 23: 2, 31: 3},
        layers=18,
    )
    # The primary sink ends at layer 10, and with it the direction that the others are held against.
    assert seen(report)[1:] == [
        ("noise", 9, 9, 1),
        ("noise", 17, 9, 1),
        ("noise", 23, 9, 1),
        ("secondary", 31, 7, 3),
    ]
    report = analyze(
        planted_llama(
            [
                Planted(0, 2000.0, 2),
                Planted(1, 80.0, 9, 12),
                Planted(2, 70.0, 9, 13),
                Planted(3, 60.0, 7, 13),
            ],
            18,
        ),
        planted_tokens(48, {9: 1, 17: 2, 23: 2, 31: 3}),
    )
    assert report.levels == {(9, 4): 2, (7, 6): 1, (9, 3): 1}
    assert [sink.remover for sink in report.sinks] == [None, 12, 13, 13, 13]


def test_born_with_the_primary_and_short_lived_is_noise() -> None:
    """A secondary sink is another emergence, two layers later at least; a primary one lives half as long."""
    assert seen(planted([Planted(1, 60.0, 3, 6)], {17: 1}))[1] == ("noise", 17, 3, 3)
    assert seen(planted([Planted(1, 60.0, 3, 7)], {17: 1}))[1] == ("primary", 17, 3, 4)
    assert seen(planted([Planted(1, 60.0, 4, 7)], {17: 1}))[1] == ("secondary", 17, 4, 3)


def test_no_sink_is_an_empty_report() -> None:
    report = analyze(planted_llama([]), planted_tokens(48, {17: 1}))
    assert report.sinks == [] and report.levels == {}
    assert math.isnan(report.scalars["primary_start"])
    assert report.table() == "no sinks: no token stands out and is attended to"


def test_massive_in_another_direction_is_no_sink() -> None:
    model = planted_llama([Planted(1, 2000.0, 3, 9)])
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.mlp.down_proj.weight.data[[SINK, 6]] = layer.mlp.down_proj.weight.data[[6, SINK]]
    report = analyze(model, planted_tokens(48, {17: 1}))
    assert report.sinks == []
    assert report.scalars["max_activation"] == pytest.approx(2000, rel=1e-3)
    assert report.scalars["massive_activations"] == 6


def test_aligned_without_attention() -> None:
    """Keys that read the flag of the first token: the trigger points along the sink, and nobody looks."""
    model = planted_llama([FIRST_SINK, Planted(1, 60.0, 5, 8)])
    for layer in model.model.layers:  # type: ignore[union-attr]
        keys = layer.self_attn.k_proj.weight.data
        keys[7, SINK], keys[7, FIRST] = 0, 200 * keys[7, SINK]
    report = analyze(model, planted_tokens(48, {17: 1}))
    assert seen(report) == [("primary", 0, 2, 8), ("aligned_only", 17, 5, 3)]
    assert report.levels == {}


def test_nobody_attends_to_anything() -> None:
    """Even attention has no sinks, however the states look; without a look at attention they are there."""
    model = planted_llama([FIRST_SINK, Planted(1, 60.0, 5, 8)], attention=0.0)
    assert analyze(model, planted_tokens(48, {17: 1})).sinks == []


def test_opposed() -> None:
    report = planted([Planted(1, -60.0, 5, 8)], {17: 1})
    assert seen(report) == [("primary", 0, 2, 8), ("opposed", 17, 5, 3)]
    assert report.sinks[1].cosine < -0.98 and report.sinks[1].creator == 5 and report.sinks[1].remover == 8


@pytest.mark.parametrize(("gap", "life", "end"), [(0, 3, 7), (1, 5, 10)])
def test_a_gap_in_a_life(gap: int, life: int, end: int) -> None:
    model = planted_llama([Planted(0, 2000.0, 2), Planted(1, 60.0, 5, 8), Planted(1, 60.0, 9, 11)])
    report = analyze(model, planted_tokens(48, {17: 1}), thresholds=Thresholds(gap=gap))
    assert (report.sinks[1].start, report.sinks[1].end, report.sinks[1].lifetime) == (5, end, life)


def test_in_the_last_layer_and_in_the_embedding() -> None:
    """Before the final norm, and before the first layer."""
    report = analyze(
        planted_llama([Planted(0, 2000.0, 2), Planted(1, 60.0, 11)]),
        planted_tokens(48, {17: 1}),
        thresholds=Thresholds(),
    )
    assert seen(report) == [("primary", 0, 2, 10), ("noise", 17, 11, 1)]
    assert report.sinks[0].end == 11 and report.sinks[1].attention is None
    model = planted_llama([])
    model.model.embed_tokens.weight.data[0, SINK] = 2000.0  # type: ignore[union-attr]
    report = analyze(model, planted_tokens(48))
    assert seen(report) == [("primary", 0, -1, 13)]
    assert report.sinks[0].creator is None and report.sinks[0].remover is None


def test_padding_and_packing() -> None:
    """The same sinks with padding on either side, and in two documents of one sequence as in two."""
    model = planted_llama([FIRST_SINK, Planted(1, 60.0, 5, 8)])
    alone, other = planted_tokens(48, {17: 1}), planted_tokens(30, {9: 1}, seed=3)
    plain = analyze(model, alone)
    for before in (0, 6):
        tokens = torch.nn.functional.pad(alone, (before, 6 - before), value=9)
        real = torch.zeros_like(tokens).index_fill(1, torch.arange(before, before + 48), 1)
        padded = analyze(model, {"input_ids": tokens, "attention_mask": real})
        assert [(s.kind, s.place - before, s.start, s.lifetime) for s in padded.sinks] == seen(plain)
        assert padded.sinks[1].attention == pytest.approx(plain.sinks[1].attention, abs=1e-5)
        assert padded.tokens == 48
    both = torch.cat([alone, other], 1)
    documents = torch.arange(78).ge(48).long()[None]
    mask = ((documents[:, :, None] == documents[:, None, :]) & torch.ones(78, 78, dtype=torch.bool).tril())[
        :, None
    ]
    places = torch.cat([torch.arange(48), torch.arange(30)])[None]
    packed = analyze(
        model,
        {"input_ids": both, "attention_mask": mask, "position_ids": places},
        valid=torch.ones(1, 78, dtype=torch.bool),
        documents=documents,
    )
    apart = [(0, *item) for item in seen(plain)] + [(1, *item) for item in seen(analyze(model, other))]
    assert [(s.document, s.kind, s.position, s.start, s.lifetime) for s in packed.sinks] == apart
    assert packed.sinks[3].max_attention == pytest.approx(
        analyze(model, other).sinks[1].max_attention, abs=1e-5
    )


def test_one_token_and_nothing_but_padding() -> None:
    model = planted_llama([FIRST_SINK])
    assert analyze(model, planted_tokens(1)).sinks == []
    tokens = planted_tokens(5)
    empty = analyze(model, {"input_ids": tokens, "attention_mask": torch.zeros_like(tokens)})
    assert empty.sinks == [] and empty.tokens == 0
    empty.to_json()


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_states_that_are_no_numbers(bad: float) -> None:
    model = planted_llama([FIRST_SINK])
    model.model.embed_tokens.weight.data[20] = bad  # type: ignore[union-attr]
    tokens = planted_tokens(48)
    tokens[0, 30] = 20
    report = analyze(model, tokens)
    assert report.scalars["nonfinite_states"] >= 13
    report.to_json()


def test_a_report_without_attention_of_states_at_hand() -> None:
    """Recording as a model runs and from its hidden states are one; the detector says None of attention."""
    model = planted_llama([FIRST_SINK, Planted(1, 60.0, 5, 8)])
    tokens = planted_tokens(48, {17: 1})
    inputs: list[Tensor] = []
    recorder = StateRecorder(find_stack(model))
    handle = model.model.layers[11].register_forward_hook(lambda m, a, out: inputs.append(out))  # type: ignore[index, union-attr]
    with torch.no_grad(), recorder.attached():
        hidden = model(tokens, output_hidden_states=True).hidden_states
    handle.remove()
    whole = states_of(torch.stack([*hidden[:-1], inputs[0]]))
    live = recorder.states()
    torch.testing.assert_close(whole.norms, live.norms)
    torch.testing.assert_close(whole.cosines, live.cosines, equal_nan=True)
    assert live.cosines.shape == (13, 1, 8, 48)
    found = detect(whole)
    assert [(s.kind, s.place, s.start, s.lifetime) for s in found] == [
        ("primary", 0, 2, 8),
        ("secondary", 17, 5, 3),
    ]
    assert found[0].attention is None and found[0].creator is None


def test_bad_thresholds() -> None:
    for options, message in (
        ({"cosine": 1.5}, "cosine must be from 0 to 1, got 1.5"),
        ({"norm_ratio": 1.0}, "norm_ratio must be above 1, got 1.0"),
        ({"gap": -1}, "gap must be 0 or more, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            Thresholds(**options)  # type: ignore[arg-type]


def test_constants_of_the_construction() -> None:
    assert (SINK, FIRST, CONSTANT) == (0, 1, 3)
