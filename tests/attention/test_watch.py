"""Watching: 13 families of transformers bit by bit, timm, torch, strangers; nesting, errors, no traces."""

from typing import Any

import pytest
import timm
import torch
from dense_attention import dense_weights
from tiny_models import CONFIGS, EAGER_ONLY, LLAVA, images_and_tokens, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.attention import (
    AttentionCall,
    attention_modules,
    attention_statistics,
    find_stack,
    stacks,
    watch_attention,
)
from zoo.hf import build_network

CASES = [(name, "eager") for name in CONFIGS] + [(name, "sdpa") for name in CONFIGS if name not in EAGER_ONLY]
TOKENS = torch.randint(3, 64, (2, 16), generator=torch.Generator().manual_seed(0))


def left_padded(model_type: str) -> dict[str, Tensor]:
    mask = torch.ones_like(TOKENS)
    mask[1, :5] = 0
    return {"input_ids": TOKENS, "attention_mask": mask}


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that attaching could leave behind."""
    return {
        name: (
            set(vars(part)),
            id(vars(part).get("config")),
            len(part._forward_pre_hooks),
            len(part._forward_hooks),
            "forward" in vars(part),
        )
        for name, part in model.named_modules()
    } | {
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "stance": torch._dynamo.eval_frame._stance.stance,
    }


@pytest.mark.parametrize(("model_type", "attention"), CASES)
@pytest.mark.parametrize("padded", [False, True])
def test_families_of_transformers(model_type: str, attention: str, padded: bool) -> None:
    """The logits bit by bit, and the weights that the eager model returns, in each layer that has any."""
    model = tiny(model_type, attention)
    batch = left_padded(model_type) if padded else {"input_ids": TOKENS}
    calls: list[AttentionCall] = []
    before = state(model)
    with torch.no_grad():
        plain = model(**batch).logits
        with watch_attention(model, calls.append):
            watched = model(**batch).logits
        assert state(model) == before
        assert torch.equal(plain, watched)
        eager = tiny(model_type, "eager")
        weights = eager(**batch, output_attentions=True).attentions
    names = list(attention_modules(model))
    assert [call.layer for call in calls] == names
    layers = [layer for layer in find_stack(model) if layer.attention is not None]
    assert [layer.attention_name for layer in layers] == names
    assert len(weights) == len(calls)
    valid = batch.get("attention_mask", torch.ones_like(TOKENS)).bool()
    for call, expected in zip(calls, weights, strict=True):
        found = dense_weights(call)
        torch.testing.assert_close(
            found[:, :, :][valid[:, None].expand(found.shape[:3])],
            expected.double()[valid[:, None].expand(found.shape[:3])],
            atol=1e-5,
            rtol=1e-4,
        )
        statistics = attention_statistics(call, counted=valid)
        rows = expected.double().where(valid[:, None, :, None], 0)
        torch.testing.assert_close(statistics.column_sums.double(), rows.sum(2), atol=1e-5, rtol=1e-5)
        rest = (
            (1 - rows.sum(-1)).where(valid[:, None], 0).clamp(min=0)
            if model_type == "gpt_oss"
            else 0 * rows[..., 0]
        )
        entropies = torch.special.entr(rows).sum(-1) + torch.special.entr(rest)
        torch.testing.assert_close(statistics.entropies.double(), entropies, atol=1e-4, rtol=1e-4)


def test_all_thirteen_are_there() -> None:
    assert len(CONFIGS) == 13


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "qwen3_next"])
def test_layers_without_softmax_attention_are_known(model_type: str) -> None:
    layers = find_stack(tiny(model_type))
    assert [layer.attention is None for layer in layers] == [True, True, True, False]


def test_learned_sinks_and_soft_caps_are_in_the_call() -> None:
    calls: list[AttentionCall] = []
    with watch_attention(model := tiny("gpt_oss"), calls.append), torch.no_grad():
        model(input_ids=TOKENS)
    assert all(call.sinks is not None and call.sinks.shape == (4,) for call in calls)
    assert all(attention_statistics(call).no_op.min() > 0 for call in calls)
    calls.clear()
    with watch_attention(model := tiny("gemma2"), calls.append), torch.no_grad():
        model(input_ids=TOKENS)
    assert [call.softcap for call in calls] == [0.5] * 4
    assert max(attention_statistics(call).max_logits.max() for call in calls) <= 0.5


@pytest.mark.parametrize("model_type", ["qwen3_next", "qwen3_5_text"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gates_of_gated_attention(model_type: str, attention: str) -> None:
    model = tiny(model_type, attention)
    gates: list[tuple[str, Tensor]] = []
    projections: list[Tensor] = []
    layer = find_stack(model)[3]
    handle = layer.attention.q_proj.register_forward_hook(lambda m, a, out: projections.append(out))  # type: ignore[union-attr]
    with torch.no_grad():
        plain = model(input_ids=TOKENS).logits
        with watch_attention(
            model, lambda call: None, gate_hook=lambda name, gate: gates.append((name, gate))
        ):
            watched = model(input_ids=TOKENS).logits
    handle.remove()
    assert torch.equal(plain, watched)
    assert [name for name, _ in gates] == [layer.attention_name]
    expected = projections[1].view(2, 16, 4, 32).chunk(2, -1)[1].reshape(2, 16, 64).sigmoid()
    assert torch.equal(gates[0][1], expected)


def test_vision_transformers_of_timm() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    calls: list[AttentionCall] = []
    with torch.no_grad():
        plain = model(images)
        before = state(model)
        with watch_attention(model, calls.append):
            watched = model(images)
        assert torch.equal(plain, watched) and state(model) == before
    assert [call.layer for call in calls] == ["blocks.0.attn", "blocks.1.attn"]
    weights: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False  # so that the weights exist
        block.attn.attn_drop.register_forward_hook(lambda m, args, out: weights.append(args[0]))
    with torch.no_grad():
        model(images)
    for call, expected in zip(calls, weights, strict=True):
        torch.testing.assert_close(dense_weights(call).float(), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            attention_statistics(call).column_sums, expected.sum(2), atol=1e-5, rtol=1e-4
        )
    with (
        pytest.raises(
            ValueError, match=r"blocks.0.attn \(Attention\) ran without calling .* set its fused_attn to True"
        ),
        watch_attention(model, calls.append),
        torch.no_grad(),
    ):
        model(images)
    with torch.no_grad():
        model(images)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_no_mask_means_is_up_to_the_backend(attention: str) -> None:
    """A decoder's attention called without a mask: SDPA makes a causal one, the eager function none."""
    model, calls = tiny("llama", attention), []
    module = attention_modules(model)["model.layers.0.self_attn"]
    hidden, turns = torch.randn(1, 6, 32), (torch.ones(1, 6, 8), torch.zeros(1, 6, 8))
    with watch_attention(model, calls.append), torch.no_grad():
        module(hidden, position_embeddings=turns, attention_mask=None)
    (call,) = calls
    assert call.causal == (attention == "sdpa")
    found = (dense_weights(call) @ call.value.double().repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(found.float(), call.output, atol=1e-5, rtol=1e-5)


def test_gates_of_timm() -> None:
    from timm.layers import Attention

    class GatedAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Attention(16, 4, gated=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x)

    model, gates = GatedAttention(), []
    x = torch.randn(2, 5, 16)
    with watch_attention(model, lambda call: None, gate_hook=lambda name, gate: gates.append(gate)):
        model(x)
    assert len(gates) == 1 and torch.equal(gates[0], model.attn.gate(x).sigmoid())


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention_of_torch(batch_first: bool, extras: bool, need_weights: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(
        16, 4, batch_first=batch_first, add_bias_kv=extras, add_zero_attn=extras, kdim=8, vdim=12
    ).eval()
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 8), torch.randn(2, 7, 12)
    inputs = [x if batch_first else x.transpose(0, 1) for x in (query, key, value)]
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    mask = torch.ones(5, 7, dtype=torch.bool).triu(3)
    calls: list[AttentionCall] = []
    options = {"key_padding_mask": padding, "attn_mask": mask, "need_weights": need_weights}
    with torch.no_grad():
        plain = attention(*inputs, **options, average_attn_weights=False)[0]
        with watch_attention(attention, calls.append):
            watched = attention(*inputs, **options, average_attn_weights=False)[0]
        weights = attention(*inputs, **(options | {"need_weights": True}), average_attn_weights=False)[1]
    torch.testing.assert_close(watched, plain, atol=1e-6, rtol=1e-5)
    assert len(calls) == 1
    torch.testing.assert_close(dense_weights(calls[0]).float(), weights, atol=1e-5, rtol=1e-4)


def test_the_fast_path_of_an_encoder_is_watched() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 3).eval()
    x = torch.randn(2, 6, 16)
    calls: list[AttentionCall] = []
    before = state(model)
    with torch.no_grad():
        plain = model(x)
        with watch_attention(model, calls.append):
            watched = model(x)
    torch.testing.assert_close(watched, plain, atol=1e-6, rtol=1e-5)
    assert [call.layer for call in calls] == [f"layers.{n}.self_attn" for n in range(3)]
    assert state(model) == before
    assert [layer.name for layer in find_stack(model)] == ["layers.0", "layers.1", "layers.2"]


class PlainAttention(nn.Module):
    """A stranger's."""

    def __init__(self, grouped: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 8 * 3)
        self.scale = 0.1

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale, is_causal=mask is None)
        return out.transpose(1, 2).flatten(2)


def test_a_module_of_a_stranger() -> None:
    model = nn.Sequential(PlainAttention(), nn.Linear(8, 8), PlainAttention())
    x, calls = torch.randn(2, 5, 8), []
    plain = model(x)
    with watch_attention(model, calls.append, layers=["2"]):
        assert torch.equal(model(x), plain)
    (call,) = calls
    assert call.layer == "2" and call.module is model[2] and call.causal and call.scale == 0.1
    torch.testing.assert_close(
        call.output, (dense_weights(call) @ call.value.double()).transpose(1, 2).float()
    )


@pytest.mark.parametrize("shape", [(1, 1, 5, 5), (2, 2, 5, 5), (5, 5), (2, 1, 5, 5)])
def test_masks_of_any_shape(shape: tuple[int, ...]) -> None:
    model, calls = PlainAttention(), []
    with watch_attention(model, calls.append):
        model(torch.randn(2, 5, 8), torch.rand(shape) < 0.7)
    (call,) = calls
    found = (dense_weights(call) @ call.value.double()).transpose(1, 2)
    torch.testing.assert_close(found.nan_to_num(0.0).float(), call.output.nan_to_num(0.0))


def test_a_hook_may_change_the_output() -> None:
    model = PlainAttention()
    with watch_attention(model, lambda call: torch.zeros_like(call.output)):
        assert model(torch.randn(2, 5, 8)).eq(0).all()
    llama = tiny("llama", "sdpa")
    with torch.no_grad():
        plain = llama(input_ids=TOKENS).logits
        with watch_attention(llama, lambda call: 0 * call.output, layers=["model.layers.1.self_attn"]):
            assert not torch.equal(llama(input_ids=TOKENS).logits, plain)
        assert torch.equal(llama(input_ids=TOKENS).logits, plain)


def test_they_nest() -> None:
    """Of two on the same layer each sees what the one before it returned, in any order of leaving."""
    model = tiny("llama", "sdpa")
    name = "model.layers.0.self_attn"
    seen: list[tuple[str, float]] = []

    def hook(which: str, factor: float) -> Any:
        def call(call: AttentionCall) -> Tensor:
            seen.append((which, call.output.sum().item()))
            return factor * call.output

        return call

    before = state(model)
    with torch.no_grad():
        outer, inner = (
            watch_attention(model, hook("a", 2.0), [name]),
            watch_attention(model, hook("b", 3.0), [name]),
        )
        outer.__enter__()
        inner.__enter__()
        model(input_ids=TOKENS)
        outer.__exit__(None, None, None)
        model(input_ids=TOKENS)
        inner.__exit__(None, None, None)
    assert [which for which, _ in seen] == ["a", "b", "b"]
    assert seen[1][1] == pytest.approx(2 * seen[0][1], rel=1e-4) and seen[2][1] == seen[0][1]
    assert state(model) == before


@pytest.mark.parametrize("make", [lambda: tiny("llama", "sdpa"), lambda: nn.Sequential(PlainAttention())])
def test_an_error_leaves_nothing_behind(make: Any) -> None:
    model = make()
    inputs = TOKENS if hasattr(model, "config") else torch.randn(2, 5, 8)
    before = state(model)

    def fails(call: AttentionCall) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"), watch_attention(model, fails):
        model(inputs)
    assert state(model) == before
    model(inputs)


def test_an_error_of_the_model_that_it_catches_itself() -> None:
    """The frames of modules that raised are left, so the next calls have their right names."""

    class FailingAttention(PlainAttention):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            raise RuntimeError

    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = FailingAttention(), PlainAttention()

        def forward(self, x: Tensor) -> Tensor:
            with pytest.raises(RuntimeError):
                self.first(x)
            return F.scaled_dot_product_attention(x, x, x) + self.second(x)

    model, calls = Tries(), []
    with watch_attention(model, calls.append, layers=["second"]):
        model(torch.randn(1, 3, 8))
    assert [call.layer for call in calls] == ["second"]  # not that of the model itself
    with (
        pytest.raises(ValueError, match=r"first \(FailingAttention\) ran without"),
        watch_attention(model, calls.append),
    ):
        model(torch.randn(1, 3, 8))
    assert [call.layer for call in calls] == ["second", "second"]


def test_gradients_and_the_random_state_are_those_without() -> None:
    model = tiny("llama", "sdpa", attention_dropout=0.3).train()
    parameter = next(model.parameters())

    def run() -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        (grad,) = torch.autograd.grad(loss, parameter)
        return grad, torch.random.get_rng_state()

    plain = run()
    with watch_attention(model, lambda call: attention_statistics(call) and None):
        watched = run()
    assert torch.equal(plain[0], watched[0]) and torch.equal(plain[1], watched[1])


def test_a_compiled_network_is_watched_as_written() -> None:
    model = nn.Sequential(PlainAttention())
    model.compile(backend="eager", fullgraph=True)
    x, calls = torch.randn(2, 5, 8), []
    plain = model(x)
    with watch_attention(model, calls.append):
        assert torch.equal(model(x), plain)
    assert len(calls) == 1
    assert torch.equal(model(x), plain) and len(calls) == 1


def test_a_vision_language_model_has_two_stacks() -> None:

    model = build_network(LLAVA, task="image-text-to-text").eval()
    assert list(stacks(model)) == ["model.vision_tower.encoder.layers", "model.language_model.layers"]
    assert find_stack(model)[0].name == "model.language_model.layers.0"
    assert len(find_stack(model, "model.vision_tower.encoder.layers")) == 2
    calls: list[AttentionCall] = []
    batch = images_and_tokens()
    with torch.no_grad():
        plain = model(**batch).logits
        with watch_attention(model, calls.append):
            assert torch.equal(model(**batch).logits, plain)
    # CLIP's last layer is run too, and its class token sees 4 patches.
    assert [call.keys for call in calls] == [5, 5, 7]
    with pytest.raises(ValueError, match=r"stack must be one of .*, got 'layers'"):
        find_stack(model, "layers")


@pytest.mark.parametrize(
    ("make", "layers", "message"),
    [
        (lambda: nn.Linear(2, 2), None, "there is no attention in Linear that can be watched"),
        (
            lambda: tiny("llama"),
            ["model.layers.9.self_attn"],
            "LlamaForCausalLM has no attention 'model.layers.9.self_attn'",
        ),
        (lambda: tiny("llama"), ["nothing"], r"there are model.layers.0.self_attn, .*"),
    ],
)
def test_bad_input(make: Any, layers: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message), watch_attention(make(), lambda call: None, layers):
        pass


def test_a_backend_whose_masks_cannot_be_read_is_refused() -> None:
    model = tiny("llama", "sdpa")
    model.config._attn_implementation = "flex_attention"
    with (
        pytest.raises(ValueError, match=r"need attention='sdpa'.*'flex_attention'.*set_attn_implementation"),
        watch_attention(model, lambda call: None),
    ):
        pass
