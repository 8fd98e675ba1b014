"""The paper's detector on states made by hand, its shipped levels, its labels, and what it gets wrong."""

import math

import pytest
import torch
from torch import Tensor

from zoo.sinks import Planted, analyze, paper_detect, planted_llama, planted_tokens, sink_levels, states_of
from zoo.sinks.analysis import record
from zoo.sinks.levels import level_entropy, spearman
from zoo.sinks.paper import PaperSink, paper_label


def states(layers: int, primary: range, sinks: dict[int, list[int]], tokens: int = 40) -> Tensor:
    """Hidden states (L + 1, 1, T, D): token 0 is the primary sink of some layers, others as listed."""
    hidden = torch.randn(layers + 1, 1, tokens, 32, generator=torch.Generator().manual_seed(0))
    hidden[..., 0] = 0
    direction = torch.zeros(32)
    direction[0] = 1.0
    for layer in range(layers):
        if layer in primary:
            hidden[layer + 1, 0, 0] += 5e4 * direction
        for token, alive in sinks.items():
            if layer in alive:
                hidden[layer + 1, 0, token] += 500 * direction
    return hidden


def test_levels_of_the_shipped_files() -> None:
    """DeepSeek-R1-Distill-Qwen-14B: (22, 23); Qwen3-4B-Base: (16, 18); a gap counts the layers there are."""
    found = paper_detect(
        states_of(states(48, range(4, 46), {9: list(range(22, 45)), 20: [22, 23, 24, 25, 27, 30]}))
    )
    assert [(s.place, s.label, s.l_start, s.lifetime) for s in found] == [
        (0, "bos_sink", 4, 42),
        (9, "secondary", 22, 23),
        (20, "secondary", 22, 6),
    ]
    assert found[2].layers == (22, 23, 24, 25, 27, 30)
    found = paper_detect(states_of(states(36, range(6, 35), {12: list(range(16, 34))})), first=2)
    assert [(s.place, s.label, s.l_start, s.lifetime) for s in found] == [
        (0, "bos_sink", 6, 29),
        (12, "secondary", 16, 18),
    ]


def test_counts_of_the_shipped_files() -> None:
    """The candidates of 300 sequences of DeepSeek-14B as (first layer, lifetime): count, in their order."""
    counts = {(22, 23): 114, (22, 22): 98, (22, 24): 45, (22, 3): 5, (22, 21): 3, (22, 4): 2, (22, 2): 1, (22, 18): 1, (22, 16): 1}  # fmt: skip  # noqa: E501
    sinks = [Life(start, life) for (start, life), count in counts.items() for _ in range(count)]
    assert sum(counts.values()) == 270
    assert sink_levels(sinks) == counts and [*sink_levels(sinks)][:4] == [*counts][:4]
    labels = [paper_label(sink.lifetime, 48) for sink in sinks]
    assert (labels.count("secondary"), labels.count("noise")) == (262, 8)


class Life:
    def __init__(self, start: int, lifetime: int) -> None:
        self.start, self.lifetime = start, lifetime


@pytest.mark.parametrize(
    ("layers", "secondary"), [(28, range(5, 13)), (36, range(5, 21)), (48, range(5, 33)), (64, range(5, 49))]
)
def test_labels(layers: int, secondary: range) -> None:
    assert [n for n in range(1, layers) if paper_label(n, layers) == "secondary"] == list(secondary)


def test_a_shallow_model_has_no_secondary_sinks() -> None:
    """L = 12: the paper's rule calls both sinks of the planted model primary; ours tells them apart."""
    model, tokens = (
        planted_llama([Planted(0, 2000.0, 2, 10), Planted(1, 60.0, 5, 8)]),
        planted_tokens(48, {17: 1}),
    )
    recorded, _ = record(model, lambda: model(tokens))
    assert [(s.place, s.label, s.l_start, s.lifetime) for s in paper_detect(recorded, 2)] == [
        (0, "bos_sink", 2, 8),
        (17, "bos_sink", 5, 3),
    ]
    assert [sink.kind for sink in analyze(model, tokens).sinks] == ["primary", "secondary"]


def test_the_final_norm_ends_a_primary_sink() -> None:
    """Alive to the end, it seems to end a layer early: the last state is that after the norm."""
    model, tokens = planted_llama([Planted(0, 2000.0, 2)]), planted_tokens(48)
    recorded, _ = record(model, lambda: model(tokens))
    (sink,) = paper_detect(recorded, 2)
    assert (sink.l_start, sink.lifetime) == (2, 9)
    (ours,) = analyze(model, tokens).sinks
    assert (ours.start, ours.lifetime) == (2, 10)


def test_a_model_without_sinks_has_one_by_the_papers_rule() -> None:
    model, tokens = planted_llama([]), planted_tokens(48)
    recorded, _ = record(model, lambda: model(tokens))
    assert [type(sink) for sink in paper_detect(recorded, 2)][:1] == [PaperSink]
    assert analyze(model, tokens).sinks == []


def test_bad_input() -> None:
    model = planted_llama([])
    tokens = planted_tokens(9)
    recorded, _ = record(model, lambda: model(tokens), torch.arange(9)[None] > 2)
    with pytest.raises(ValueError, match="without padding or packing"):
        paper_detect(recorded)
    recorded, _ = record(model, lambda: model(tokens))
    with pytest.raises(ValueError, match="first must be 1, 2 or 3, got 5"):
        paper_detect(recorded, 5)


def test_spearman_is_that_of_scipy() -> None:
    from scipy.stats import spearmanr

    generator = torch.Generator().manual_seed(0)
    for size in (3, 10, 40):
        a, b = (torch.randint(6, (size,), generator=generator).double().tolist() for _ in range(2))
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert math.isnan(spearman([1, 2], [1, 2])) and math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    with pytest.raises(ValueError, match="as many values"):
        spearman([1], [])
    assert level_entropy({}) == 0
