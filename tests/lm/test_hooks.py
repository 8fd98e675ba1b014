"""Hooks: what each hook is given; those that change nothing change nothing, and what they change counts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from tiny_lm import CONFIGS, CONTEXT, LLAMA, VOCABULARY, Windows, batch_of, fitted, trainer
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.hf import Generation
from zoo.lm import CausalLM


class Listener(nn.Module):
    """Has every hook, keeps what it is given, and returns what it got."""

    def __init__(self, layer: int = 1) -> None:
        super().__init__()
        self.layer = layer
        self.captured: list[tuple[str, Any]] = []

    def note(self, name: str, *given: Any) -> None:
        self.captured.append((name, [x.detach().clone() if isinstance(x, Tensor) else x for x in given]))

    def shapes(self) -> list[tuple[Any, ...]]:
        return [
            (name, *(tuple(x.shape) if isinstance(x, Tensor) else x for x in given))
            for name, given in self.captured
        ]

    def on_generation_start(self, index: Tensor) -> None:
        self.note("generation_start", index)

    def on_generation_end(self) -> None:
        self.note("generation_end")

    def on_forward_start(self, tokens: Tensor, index: Tensor | None) -> None:
        self.note("start", tokens, index)

    def on_attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, output: Tensor
    ) -> Tensor:
        self.note("attention", query, key, value, mask, scale, output)
        return output

    def on_ffn_input(self, hidden: Tensor) -> None:
        self.note("ffn", hidden)

    def on_log_probs(self, log_probs: Tensor, hidden: Tensor) -> Tensor:
        self.note("log_probs", log_probs, hidden)
        return log_probs

    def on_forward_end(self, tokens: Tensor, targets: Tensor | None, index: Tensor | None) -> None:
        self.note("end", tokens, targets, index)


class Mixture(nn.Module):
    """Mixes a learned unigram into the log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.unigram = nn.Parameter(torch.zeros(VOCABULARY))

    def on_log_probs(self, log_probs: Tensor, hidden: Tensor) -> Tensor:
        return torch.logaddexp(log_probs + 0.5**0.5, self.unigram.log_softmax(0)) - torch.tensor(1.0)


class Gate(nn.Module):
    """A second softmax of its own, and a gate for each head: memorizing attention's arithmetic."""

    def __init__(self, heads: int = 4, layer: int = 0, strength: float = 1.0) -> None:
        super().__init__()
        self.layer, self.strength = layer, strength
        self.bias = nn.Parameter(torch.zeros(heads))

    def on_attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, output: Tensor
    ) -> Tensor:
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        scores = (scale * query @ key.mT).masked_fill(~mask, -torch.inf)
        memory = (scores.softmax(-1) @ value).transpose(1, 2)  # (B, T, H, d)
        gate = self.bias.sigmoid()[:, None]
        return gate * self.strength * memory + (1 - gate) * output


class Stretch(nn.Module):
    """Multiplies the attention's output by a number."""

    def __init__(self, factor: float, layer: int = 0) -> None:
        super().__init__()
        self.layer, self.factor = layer, factor

    def on_attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, output: Tensor
    ) -> Tensor:
        return output * self.factor + 1


def hooked(network: nn.Module) -> list[str]:
    """What is attached to a network."""
    parts = network.named_modules()
    return [name for name, part in parts if {"forward", "zoo_hook_point"} & part.__dict__.keys()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_hooks_get(name: str, attention: Any) -> None:
    ear = Listener()
    model, batch = CausalLM(CONFIGS[name], attention=attention, hooks=[ear], seed=0), batch_of()
    model.eval()
    inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    mask = torch.arange(CONTEXT).expand(4, -1) > 2
    with torch.no_grad():
        own = model.network(input_ids=inputs, output_hidden_states=True)
        model.loss(batch | {"mask": mask})
    assert [event for event, _ in ear.captured] == ["start", "attention", "ffn", "log_probs", "end"]
    start, (query, key, value, seen, scale, output), (hidden,), (log_probs, same), end = (
        x for _, x in ear.captured
    )
    assert start[0].equal(inputs) and start[1].equal(batch["index"])
    assert end[0].equal(inputs) and end[1].equal(targets.masked_fill(~mask, -100)) and end[2].equal(start[1])
    assert log_probs.equal(own.logits.log_softmax(-1)) and same.equal(hidden)
    # Attention again from what was captured.
    assert query.shape == output.transpose(1, 2).shape == (4, 4, CONTEXT, 8) and key.shape == value.shape
    assert seen.equal(torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril().expand_as(seen))
    again = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale, enable_gqa=True)
    torch.testing.assert_close(again.transpose(1, 2), output, rtol=1e-4, atol=1e-6)
    # The feed-forward network from what was captured, on the way to the logits.
    layer = next(part for part in model.network.modules() if isinstance(part, nn.ModuleList))[-1]
    norm = {"gpt2": "ln_2", "opt": "final_layer_norm"}.get(name, "post_attention_layernorm")
    kept: list[Tensor] = []
    handle = getattr(layer, norm).register_forward_hook(lambda module, args, out: kept.append(out))
    with torch.no_grad():
        model.network(input_ids=inputs)
    handle.remove()
    assert hidden.equal(kept[0].view(4, CONTEXT, 32))
    assert not hooked(model.network)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_hooks_that_change_nothing_change_nothing(name: str, tmp_path: Path) -> None:
    """Training is bitwise that without them, dropout of GPT-2 included."""
    ends = []
    for hooks in ([], [Listener(0), Listener(1), Listener(0)]):
        model = CausalLM(CONFIGS[name], hooks=list(hooks), z_loss=1e-3, seed=0)
        run = fitted(model, max_steps=4, limit_val_batches=2, default_root_dir=tmp_path)
        ends.append((model.network.state_dict(), run.callback_metrics["val/loss"]))
        assert not hooked(model.network)
    assert ends[0][1].equal(ends[1][1])
    assert all(value.equal(ends[1][0][name]) for name, value in ends[0][0].items())


def test_a_hook_in_training_validation_and_generation(tmp_path: Path) -> None:
    ear = Listener()
    model = CausalLM(LLAMA, hooks=[ear], generation=Generation(max_new_tokens=3), seed=0)
    run = fitted(model, max_steps=1, limit_val_batches=1, limit_train_batches=1, default_root_dir=tmp_path)
    names = ["start", "attention", "ffn", "log_probs", "end"]
    assert [event for event, _ in ear.captured] == names * 2  # a training batch and one of validation
    ear.captured.clear()
    run.predict(model, datamodule=Windows())
    first, later = (3, 6), (3, 1)
    cached = [
        ("attention", (3, 4, 1, 8), (3, 2, S, 8), (3, 2, S, 8), (1, 1, 1, S), 8**-0.5, (3, 1, 4, 8))
        for S in (7, 8)
    ]
    rest = [("ffn", (3, 1, 32)), ("log_probs", (3, 1, VOCABULARY), (3, 1, 32)), ("end", later, None, (3,))]
    assert ear.shapes() == [
        ("generation_start", (3,)),
        ("start", first, (3,)),
        ("attention", (3, 4, 6, 8), (3, 2, 6, 8), (3, 2, 6, 8), (1, 1, 6, 6), 8**-0.5, (3, 6, 4, 8)),
        ("ffn", (3, 6, 32)),
        ("log_probs", (3, 1, VOCABULARY), (3, 1, 32)),
        ("end", first, None, (3,)),
        *(event for step in cached for event in [("start", later, (3,)), step, *rest]),
        ("generation_end",),
    ]


def test_a_cached_forward_gives_hooks_what_the_whole_does() -> None:
    """Keys, values and log-probabilities of generation are those of one forward over the result."""
    ear = Listener()
    model = CausalLM(LLAMA, hooks=[ear], generation=Generation(temperature=0), seed=0).eval()
    tokens = model.generate(batch_of(2, 5)["tokens"], torch.arange(2), 4)
    steps = {
        name: [given for event, given in ear.captured if event == name] for name in ("attention", "log_probs")
    }
    ear.captured.clear()
    with torch.no_grad():
        model.logits(tokens[:, :-1])
    whole = dict(ear.captured)
    torch.testing.assert_close(steps["attention"][-1][1], whole["attention"][1], rtol=1e-4, atol=1e-6)
    last = torch.cat([given[0] for given in steps["log_probs"]], 1)  # of the prompt's end and 3 more
    torch.testing.assert_close(last, whole["log_probs"][0][:, -4:], rtol=1e-4, atol=1e-5)


def test_logits_with_hooks_are_what_they_return() -> None:
    mixed = CausalLM(LLAMA, hooks=[Mixture()], seed=0).eval()
    plain = CausalLM(LLAMA, hooks=[Listener()], seed=0).eval()
    tokens = batch_of()["tokens"][:, :-1]
    own = CausalLM(LLAMA, seed=0).eval().logits(tokens).log_softmax(-1)
    assert plain.logits(tokens).equal(own)
    assert mixed.logits(tokens).equal(Mixture().on_log_probs(own, own))


def test_two_hooks_are_called_in_order() -> None:
    batch = batch_of()
    double, triple = Stretch(2.0), Stretch(3.0)
    captured = []
    for order in ([double, triple], [triple, double]):
        ear = Listener(0)
        CausalLM(LLAMA, hooks=[Listener(0), *order, ear], seed=0).loss(batch)
        captured.append(ear.captured[1][1][-1])
    first = Listener(0)
    CausalLM(LLAMA, hooks=[first], seed=0).loss(batch)
    output = first.captured[1][1][-1]
    assert captured[0].equal((output * 2 + 1) * 3 + 1) and captured[1].equal((output * 3 + 1) * 2 + 1)


def test_what_hooks_return_counts_and_trains_them(tmp_path: Path) -> None:
    gate, mixture = Gate(strength=3.0), Mixture()
    model = CausalLM(LLAMA, hooks=[gate, mixture], seed=0)
    batch = batch_of()
    plain = CausalLM(LLAMA, seed=0).loss(batch)
    loss = model.loss(batch)
    assert not loss.equal(plain)
    loss.backward()
    assert mixture.unigram.grad is not None and mixture.unigram.grad.abs().max() > 1e-4
    assert gate.bias.grad is not None and gate.bias.grad.abs().max() > 1e-6
    assert model.network.model.embed_tokens.weight.grad.abs().max() > 1e-6
    assert {"hooks.0.bias", "hooks.1.unigram"} <= model.state_dict().keys()
    fitted(model, max_steps=3, limit_val_batches=0, default_root_dir=tmp_path)
    assert mixture.unigram.detach().abs().max() > 0


def test_a_gated_memory_equal_to_the_attention_leaves_it() -> None:
    batch = batch_of()
    for attention in ("sdpa", "eager"):
        losses = [
            CausalLM(LLAMA, attention=attention, hooks=hooks, seed=0).token_losses(batch)  # type: ignore[arg-type]
            for hooks in ([], [Gate()], [Gate(layer=1)])
        ]
        for other in losses[1:]:
            torch.testing.assert_close(losses[0], other, rtol=1e-5, atol=1e-5)


def test_checkpoints_ask_for_hooks_again(tmp_path: Path) -> None:
    model = CausalLM(LLAMA, hooks=[Mixture()], seed=0)
    run = fitted(model, max_steps=2, default_root_dir=tmp_path, limit_val_batches=0)
    run.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(TypeError, match=r"hooks=\.\.\."):
        CausalLM.load_from_checkpoint(tmp_path / "run.ckpt", optimizer=torch.optim.SGD)
    loaded = CausalLM.load_from_checkpoint(
        tmp_path / "run.ckpt", optimizer=torch.optim.SGD, hooks=[Mixture()]
    )
    assert loaded.hooks[0].unigram.equal(model.hooks[0].unigram)
    assert loaded.loss(batch_of()).equal(model.loss(batch_of()))


def test_a_copy_has_hooks_of_its_own(tmp_path: Path) -> None:
    model = CausalLM(LLAMA, hooks=[Listener(), Mixture()], seed=0)
    twin = copy.deepcopy(model)
    assert twin.loss(batch_of()).equal(model.loss(batch_of()))
    assert len(model.hooks[0].captured) == len(twin.hooks[0].captured) == 5
    with torch.no_grad():
        twin.hooks[1].unigram[0] = 9.0
    assert not twin.loss(batch_of()).equal(model.loss(batch_of()))
    average = EMAWeightAveraging(decay=0.5)
    fitted(model, callbacks=[average], default_root_dir=tmp_path, max_steps=2)
    assert not hooked(model.network)


def test_an_error_within_leaves_nothing_attached() -> None:
    class Breaks(Listener):
        def on_attention(self, *given: Tensor) -> Tensor:
            raise ArithmeticError("broken")

    model = CausalLM(LLAMA, hooks=[Breaks()])
    with pytest.raises(ArithmeticError, match="broken"):
        model.loss(batch_of())
    assert not hooked(model.network)
    assert all(layer.self_attn.config is model.network.config for layer in model.network.model.layers)


def test_a_replaced_forward_is_called_and_stays() -> None:
    """As accelerate leaves on modules that it moves between devices."""
    model = CausalLM(LLAMA, hooks=[Listener()], seed=0)
    original_config = model.loss(batch_of())
    feed_forward: Any = model.network.model.layers[-1].mlp
    inner = feed_forward.forward
    feed_forward.forward = doubled = lambda x: 2 * inner(x)
    changed = model.loss(batch_of())
    assert len(model.hooks[0].captured) == 10
    assert not changed.equal(original_config)
    assert feed_forward.forward is doubled
    del feed_forward.forward
    assert model.loss(batch_of()).equal(original_config)


def test_compiled_networks_give_hooks_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled once; the code generator behind it needs a C++ compiler, so the traced graph runs as it is."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: original(self, backend=backend))
    ends, counts = [], []
    for compiled in (False, True):
        graphs.clear()
        ear = Listener()
        ear.note = lambda *given: None  # type: ignore[method-assign]
        model = CausalLM(LLAMA, hooks=[Gate(strength=3.0), Mixture(), ear], compile=compiled, seed=0)
        for _ in range(2):
            fitted(model, max_steps=4, limit_val_batches=0, default_root_dir=tmp_path)
            counts.append(len(graphs))
        tokens = model.generate(batch_of(2, 5)["tokens"], torch.arange(2), 4)
        ends.append((model.state_dict(), tokens))
        counts.append(len(graphs))
    assert counts == [0, 0, 0, 1, 1, 1]  # one graph for all steps and fits, none for generation
    for name, value in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], value, rtol=1e-4, atol=1e-5)
    assert ends[0][1].equal(ends[1][1])


class Misspelled(nn.Module):
    def on_log_prob(self, log_probs: Tensor, hidden: Tensor) -> Tensor:
        return log_probs


class Wrong(nn.Module):
    layer = 0

    def on_log_probs(self, log_probs: Tensor, hidden: Tensor) -> Tensor:
        return log_probs[:, :, 0]


class Forgets(Listener):
    def on_attention(self, *given: Tensor) -> Tensor:
        return None  # type: ignore[return-value]


def without(name: str) -> nn.Module:
    hook = Gate()
    delattr(hook, name)
    return hook


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (Misspelled(), r"hooks\[0\] \(Misspelled\) has on_log_prob, .* did you mean on_log_probs"),
        (nn.Linear(1, 1), r"hooks\[0\] \(Linear\) must have one of the methods on_generation_start, "),
        (Gate(layer=2), r"hooks\[0\] \(Gate\): layer must be from 0 to 1, got 2"),
        (Gate(layer=-1), "layer must be from 0 to 1, got -1"),
        (without("layer"), "must have an int attribute layer, 0 for the first; got None"),
    ],
)  # fmt: skip
def test_bad_hooks(hook: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalLM(LLAMA, hooks=[hook])


def test_bad_returns() -> None:
    with pytest.raises(ValueError, match=r"Wrong.on_log_probs must return a tensor of shape \(4, 16, 37\)"):
        CausalLM(LLAMA, hooks=[Wrong()]).loss(batch_of())
    with pytest.raises(ValueError, match=r"Forgets.on_attention must .* \(4, 16, 4, 8\).* got NoneType"):
        CausalLM(LLAMA, hooks=[Forgets()]).loss(batch_of())


def test_backends_whose_masks_cannot_be_read() -> None:
    with pytest.raises(ValueError, match=r"need attention='sdpa' or 'eager'.*got 'flex_attention'"):
        CausalLM(LLAMA, attention="flex_attention", hooks=[Gate()])


def test_models_without_the_places() -> None:
    """A state-space model has no feed-forward network and no attention; it does without until asked."""
    config = {
        "model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": VOCABULARY,
        "state_size": 4,
    }  # fmt: skip
    assert CausalLM(config, attention="eager").loss(batch_of()).isfinite()
    for hook in (Mixture(), Gate()):
        with pytest.raises(
            ValueError, match=r"MambaForCausalLM has no layers with attention.*another model_type"
        ):
            CausalLM(config, attention="eager", hooks=[hook])
    hybrid = CONFIGS["llama"] | {
        "model_type": "qwen3_5_text",
        "layer_types": ["linear_attention", "full_attention"],
    }
    with pytest.raises(ValueError, match=r"attention of layer 0 \(Qwen3_5DecoderLayer\), which has none"):
        CausalLM(hybrid, attention="eager", hooks=[Gate(layer=0)])


def test_validation_with_hooks_runs(tmp_path: Path) -> None:
    [logged] = trainer(default_root_dir=tmp_path).validate(
        CausalLM(LLAMA, hooks=[Gate(), Mixture()]), datamodule=Windows(masked=True), verbose=False
    )
    assert logged["val/loss"] > 0
