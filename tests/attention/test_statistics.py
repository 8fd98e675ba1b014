"""Statistics against dense weights in float64: masks, grouped queries, soft caps, learned sinks, samples."""

import dataclasses
from typing import Any

import pytest
import torch
from dense_attention import dense_statistics, dense_weights
from torch import Tensor

from zoo.attention import AttentionCall, attention_statistics, chunks, columns, rows, stratified_rows


def call(queries: int = 21, keys: int = 21, seed: int = 0, **options: Any) -> AttentionCall:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(2, heads, length, 8, generator=generator)
        for heads, length in ((4, queries), (2, keys), (2, keys))
    )
    return AttentionCall(query * 2, key, value, **({"scale": 0.4} | options))


def window(queries: int, keys: int, width: int) -> Tensor:
    gap = torch.arange(queries)[:, None] - torch.arange(keys)
    return ((gap >= 0) & (gap < width))[None, None]


def per_head_bias() -> Tensor:
    bias = torch.randn(2, 4, 21, 21, generator=torch.Generator().manual_seed(1))
    return bias.masked_fill(
        torch.rand(2, 1, 21, 21, generator=torch.Generator().manual_seed(2)) < 0.3, -torch.inf
    )


CALLS = {
    "causal": lambda: call(causal=True),
    "both ways": lambda: call(),
    "cross": lambda: call(queries=5),
    "one query": lambda: call(queries=1),
    "one token": lambda: call(queries=1, keys=1, causal=True),
    "soft cap": lambda: call(causal=True, softcap=0.7),
    "sinks": lambda: call(causal=True, sinks=torch.tensor([-9.0, 0.0, 1.0, 9.0])),
    "window": lambda: call(mask=window(21, 21, 4)),
    "bias by head": lambda: call(mask=per_head_bias()),
    "causal bias": lambda: call(mask=per_head_bias(), causal=True, sinks=torch.zeros(4), softcap=2.0),
    "padding": lambda: call(mask=torch.arange(21).ge(6)[None, None, None].expand(2, 1, 1, 21)),
    "transformers' floats": lambda: call(
        mask=torch.zeros(1, 1, 21, 21).masked_fill(~window(21, 21, 21), torch.finfo(torch.float32).min)
    ),
}


@pytest.mark.parametrize("block", [None, 50])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_they_are_those_of_dense_weights(
    name: str, sampled: bool, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block:
        monkeypatch.setitem(chunks.BLOCK, "cpu", block)
    made = CALLS[name]()
    which = stratified_rows(7, made.queries, seed=3) if sampled else torch.arange(made.queries)
    counted = torch.rand(2, made.queries, generator=torch.Generator().manual_seed(5)) < 0.8
    documents = torch.arange(made.keys).ge(9).long().expand(2, -1)
    starts = 9 * torch.arange(made.queries).ge(9).long().expand(2, -1)
    square = made.queries == made.keys
    expected = dense_statistics(
        made, which, counted, starts if square else torch.zeros_like(counted, dtype=torch.long)
    )
    found = attention_statistics(made, which if sampled else None, counted, documents if square else None)
    for field in dataclasses.fields(found):
        value = getattr(found, field.name).double().expand_as(expected[field.name])
        torch.testing.assert_close(
            value,
            expected[field.name].double(),
            atol=1e-5,
            rtol=1e-5,
            equal_nan=True,
            msg=lambda m, f=field: f"{f.name}: {m}",
        )
    sums = columns(made, which if sampled else None, counted)
    torch.testing.assert_close(sums.double(), expected["column_sums"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        rows(made, which).double(), dense_weights(made)[:, :, which], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_products_are_of_float32_at_least(dtype: torch.dtype) -> None:
    made = call(causal=True)
    cast = dataclasses.replace(made, query=made.query.to(dtype), key=made.key.to(dtype))
    found = columns(cast)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), dense_weights(cast).sum(2), atol=1e-5, rtol=1e-5)


def test_even_attention_is_the_null_value() -> None:
    """Equal keys: sum_{i >= k} 1 / i over T - k + 1 queries (Gu et al.): H_T / T for the first of T = 48."""
    made = AttentionCall(torch.randn(1, 2, 48, 4), torch.ones(1, 2, 48, 4), causal=True)
    found = attention_statistics(made)
    torch.testing.assert_close(found.column_sums, found.uniform.expand(1, 2, 48))
    assert found.scores()[0, 0, 0].item() == pytest.approx(0.0929, abs=5e-5)
    assert found.scores()[0, 0, -7:].isnan().all() and not found.scores()[0, 0, :-7].isnan().any()
    torch.testing.assert_close(found.relative_entropy(), torch.ones(1, 2))
    torch.testing.assert_close(found.mean_entropy(), torch.arange(1, 49).log().mean().expand(1, 2))


def test_sums_are_of_the_rows_that_count() -> None:
    made = call(causal=True, sinks=torch.tensor([0.0, 1.0, 2.0, -50.0]))
    found = attention_statistics(made)
    torch.testing.assert_close(found.column_sums.sum(-1) + 21 * found.no_op, torch.full((2, 4), 21.0))
    assert found.no_op[:, 3].abs().max() < 1e-6 < found.no_op[:, :3].min()


def test_a_row_that_sees_nothing_counts_nowhere() -> None:
    mask = window(21, 21, 21).clone()
    mask[..., :3, :] = False
    found = attention_statistics(call(mask=mask, sinks=torch.zeros(4)))
    assert found.entropies[..., :3].eq(0).all() and found.visible_keys[..., :3].eq(0).all()
    assert found.column_sums.isfinite().all() and found.queries[..., 0].item() == 18
    nothing = attention_statistics(call(mask=torch.zeros(1, 1, 1, 21, dtype=torch.bool)))
    assert nothing.column_sums.eq(0).all() and nothing.max_logits.eq(-torch.inf).all()
    assert nothing.mean_entropy().isnan().all()


def test_large_logits_stay_finite() -> None:
    made = call(causal=True)
    found = attention_statistics(dataclasses.replace(made, scale=1e6))
    assert found.entropies.isfinite().all() and found.column_sums.sum(-1).allclose(torch.tensor(21.0))
    assert found.max_logits.min() > 1e6


def test_left_right_and_no_padding_agree() -> None:
    made = call(queries=12, keys=12, causal=True)
    plain = attention_statistics(made)
    for before in (0, 5):
        query, key = (
            torch.nn.functional.pad(x, (0, 0, before, 5 - before), value=3.0) for x in (made.query, made.key)
        )
        real = (torch.arange(17) >= before) & (torch.arange(17) < before + 12)
        padded = AttentionCall(
            query, key, mask=real[None, None, None].expand(2, 1, 1, 17), causal=True, scale=0.4
        )
        found = attention_statistics(padded, counted=real.expand(2, -1), documents=real.long().expand(2, -1))
        part = slice(before, before + 12)
        torch.testing.assert_close(found.column_sums[..., part], plain.column_sums)
        torch.testing.assert_close(found.entropies[..., part], plain.entropies)
        for name in ("max_logits", "diagonal", "first_token"):
            torch.testing.assert_close(getattr(found, name), getattr(plain, name))
        assert found.column_sums.sum() == pytest.approx(plain.column_sums.sum().item(), rel=1e-6)


def test_packed_documents_are_separate_ones() -> None:
    made = call(queries=20, keys=20, causal=True)
    documents = torch.arange(20).ge(13).long().expand(2, -1)
    mask = (documents[:, :, None] == documents[:, None, :])[:, None]
    packed = attention_statistics(dataclasses.replace(made, mask=mask), documents=documents)
    for part in (slice(0, 13), slice(13, 20)):
        alone = attention_statistics(
            dataclasses.replace(made, query=made.query[:, :, part], key=made.key[:, :, part], value=None)
        )
        torch.testing.assert_close(packed.column_sums[..., part], alone.column_sums)
        torch.testing.assert_close(packed.entropies[..., part], alone.entropies)
    both = [
        attention_statistics(
            dataclasses.replace(made, query=made.query[:, :, s], key=made.key[:, :, s], value=None)
        )
        for s in (slice(0, 13), slice(13, 20))
    ]
    expected = (13 * both[0].first_token + 7 * both[1].first_token) / 20
    torch.testing.assert_close(packed.first_token, expected)


def test_a_wide_window_is_no_window() -> None:
    whole = attention_statistics(call(causal=True))
    wide = attention_statistics(call(mask=window(21, 21, 21)))
    torch.testing.assert_close(wide.column_sums, whole.column_sums)
    torch.testing.assert_close(wide.uniform, whole.uniform.expand_as(wide.uniform))


def test_sampled_scores_are_near_and_as_near_as_promised() -> None:
    """Standard error at most .5 / sqrt(rows): over 200 draws, two standard errors hold in more than 95 %."""
    made = AttentionCall(
        *(torch.randn(1, 1, 400, 8, generator=torch.Generator().manual_seed(n)) for n in (0, 1)), scale=0.5
    )
    exact = attention_statistics(made).scores()
    errors = []
    for step in range(200):
        found = attention_statistics(made, stratified_rows(64, 400, seed=1, step=step)).scores()
        errors.append((found - exact).abs().amax().item())
    assert sum(error < 2 * 0.5 / 64**0.5 for error in errors) > 190
    finer = attention_statistics(made, stratified_rows(200, 400, seed=1)).scores()
    assert (finer - exact).abs().max() < sum(errors) / len(errors)


def test_sampled_rows_are_stratified_and_seeded() -> None:
    drawn = stratified_rows(10, 105, seed=2, step=4)
    assert drawn.equal(stratified_rows(10, 105, seed=2, step=4))
    assert not drawn.equal(stratified_rows(10, 105, seed=2, step=5))
    edges = torch.arange(11) * 105 // 10
    assert ((drawn >= edges[:-1]) & (drawn < edges[1:])).all()
    assert stratified_rows(9, 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        stratified_rows(0, 3)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (torch.tensor([3, 1]), "ascending"),
        (torch.tensor([3, 3]), "ascending"),
        (torch.tensor([20, 21]), "rows must be from 0 to 20, got up to 21"),
        (torch.tensor([0.5]), "integers"),
        (torch.tensor([[1]]), "integers"),
    ],
)
def test_bad_rows(which: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(call(), which)


def test_bad_shapes() -> None:
    made = call()
    with pytest.raises(ValueError, match=r"counted must be \(2, 21\), got \(2, 3\)"):
        attention_statistics(made, counted=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"documents must be \(2, 21\)"):
        attention_statistics(made, documents=torch.ones(21, dtype=torch.long))
    with pytest.raises(ValueError, match="do not fit"):
        AttentionCall(torch.zeros(1, 3, 4, 8), torch.zeros(1, 2, 4, 8))
    with pytest.raises(ValueError, match=r"mask must be \(1 or B, 1 or H, 1 or T, S\)"):
        AttentionCall(made.query, made.key, mask=torch.ones(3, 1, 21, 21))
