"""CausalLM against transformers itself: logits, losses, generation; and what it logs, saves and refuses."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lm import CONFIGS, CONTEXT, LLAMA, VOCABULARY, Windows, batch_of, fitted, trainer
from torch.nn import functional as F

from zoo.hf import Generation
from zoo.lm import CausalLM


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_model_of_transformers(name: str, tied: bool) -> None:
    model = CausalLM(CONFIGS[name] | {"tie_word_embeddings": tied}, seed=3).eval()
    batch = batch_of()
    inputs = batch["tokens"][:, :-1]
    with torch.no_grad():
        theirs = model.network(input_ids=inputs).logits
        assert model.logits(inputs).equal(theirs) and model(inputs).equal(theirs)
        whole = model.network(input_ids=batch["tokens"], labels=batch["tokens"])
        ours = model.loss(batch)
        torch.testing.assert_close(ours, whole.loss, rtol=0, atol=1e-6)
        losses = model.token_losses(batch)
    assert losses.shape == (4, CONTEXT) and losses.dtype == torch.float32 and losses.mean().equal(ours)
    head, embedding = model.network.get_output_embeddings(), model.network.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied


def test_weights_are_drawn_from_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (CausalLM(LLAMA, seed=seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    torch.rand(3)
    later = CausalLM(LLAMA, seed=1)
    for name, value in first.state_dict().items():
        assert value.equal(again.state_dict()[name]) and value.equal(later.state_dict()[name])
    assert not first.network.lm_head.weight.equal(other.network.lm_head.weight)
    assert first.training and not any(part.training is False for part in first.modules())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_backends_agree(attention: Any) -> None:
    model, batch = CausalLM(LLAMA, attention=attention, seed=0), batch_of()
    assert model.network.config._attn_implementation == attention
    torch.testing.assert_close(model.loss(batch), CausalLM(LLAMA, seed=0).loss(batch), rtol=1e-5, atol=1e-6)


def test_losses_of_a_mask() -> None:
    model, batch = CausalLM(LLAMA, seed=0), batch_of()
    mask = torch.rand(4, CONTEXT, generator=torch.Generator().manual_seed(1)) > 0.5
    losses = model.token_losses(batch)
    torch.testing.assert_close(model.loss(batch | {"mask": mask}), losses[mask].mean())
    assert model.loss(batch | {"mask": torch.zeros(4, CONTEXT, dtype=torch.bool)}).item() == 0


def test_the_z_loss_is_of_the_logsumexp(tmp_path: Path) -> None:
    model, batch = CausalLM(LLAMA, z_loss=0.1, seed=0), batch_of()
    with torch.no_grad():  # logits worth a penalty
        model.network.lm_head.weight.mul_(20)
    fit = trainer(max_steps=1, max_epochs=1, default_root_dir=tmp_path)
    seen: list[torch.Tensor] = []
    model.on_before_optimizer_step = lambda optimizer: seen.append(  # type: ignore[method-assign]
        model.network.lm_head.weight.grad.clone()
    )
    twin = CausalLM(LLAMA, seed=0)
    twin.load_state_dict(model.state_dict())
    data = Windows()
    fit.fit(model, datamodule=data)
    batch = next(iter(data.train_dataloader()))
    logits = twin.logits(batch["tokens"][:, :-1])
    penalty = logits.logsumexp(-1).square().mean()
    plain = F.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten())
    (plain + 0.1 * penalty).backward()
    # Relative to the largest entry: float32 sums in another order.
    torch.testing.assert_close(seen[0], twin.network.lm_head.weight.grad, rtol=1e-4, atol=1e-5)
    logged = fit.callback_metrics
    assert float(logged["train/loss"]) == pytest.approx(plain.item(), rel=1e-5)
    assert float(logged["train/z_loss"]) == pytest.approx(penalty.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_what_decays(name: str) -> None:
    tied = CONFIGS[name] | {"tie_word_embeddings": True}
    model = CausalLM(tied, optimizer=partial(torch.optim.AdamW, weight_decay=0.3))
    decayed, rest = model.configure_optimizers().param_groups
    assert decayed["weight_decay"] == 0.3 and rest["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    apart = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, rest)]
    assert len(decayed["params"]) + len(rest["params"]) == len(names) and not apart[0] & apart[1]
    undecayed = ("norm", "ln_", "bias", "embed", "wte", "wpe")
    assert all(any(part in name for part in undecayed) for name in apart[1])
    assert not any(any(part in name for part in undecayed) for name in apart[0])
    head = CausalLM(CONFIGS[name] | {"tie_word_embeddings": False})
    decayed = head.configure_optimizers().param_groups[0]["params"]
    assert any(parameter is head.network.lm_head.weight for parameter in decayed)


def test_frozen_parameters_are_in_no_group() -> None:
    model = CausalLM(LLAMA)
    model.network.model.requires_grad_(False)
    groups = model.configure_optimizers().param_groups
    assert [len(group["params"]) for group in groups] == [1, 0]  # the head


@pytest.mark.parametrize("masked", [False, True])
def test_evaluation_weighs_tokens(masked: bool, tmp_path: Path) -> None:
    model, data = CausalLM(LLAMA, seed=0), Windows(masked)
    run = trainer(default_root_dir=tmp_path)
    [logged] = run.validate(model, datamodule=data, verbose=False)
    with torch.no_grad():
        batches = list(data.val_dataloader())
        losses = [model.token_losses(batch) for batch in batches]
        everything = torch.ones(4, CONTEXT, dtype=torch.bool)
        masks = [batch.get("mask", everything[: len(batch["tokens"])]) for batch in batches]
        kept = [loss[mask] for loss, mask in zip(losses, masks, strict=True)]
    mean = float(torch.cat(kept).double().mean())
    assert logged["val/loss"] == pytest.approx(mean, rel=1e-5)
    assert logged["val/perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert logged["val/bits_per_byte"] == pytest.approx(mean / math.log(2) / 2, rel=1e-5)
    [tested] = run.test(model, datamodule=data, verbose=False)
    assert {"test/loss", "test/perplexity", "test/bits_per_byte"} == tested.keys()


def test_two_validation_loaders_have_a_perplexity_each(tmp_path: Path) -> None:
    data = Windows()
    run = trainer(default_root_dir=tmp_path)
    loaders = [data.val_dataloader(), data.test_dataloader()]
    logged = run.validate(CausalLM(LLAMA), loaders, verbose=False)
    merged = {name: value for part in logged for name, value in part.items()}
    for number in (0, 1):
        loss = merged[f"val/loss/dataloader_idx_{number}"]
        assert merged[f"val/perplexity/dataloader_idx_{number}"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_tokens_per_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalLM(LLAMA)
    ticks = iter(range(0, 1000, 2))
    monkeypatch.setattr(model._rate, "_clock", lambda: next(ticks))
    run = fitted(model, max_steps=4, log_every_n_steps=2, limit_val_batches=0, default_root_dir=tmp_path)
    # Opened at 0, read at 2 and 4: 128 tokens of two batches in 2 s each time.
    assert float(run.callback_metrics["train/tokens_per_second"]) == 2 * 4 * CONTEXT / 2
    assert next(ticks) == 6  # the clock was asked three times, not every step


def test_greedy_generation_is_that_of_transformers() -> None:
    for name, config in CONFIGS.items():
        model = CausalLM(config, generation=Generation(temperature=0), seed=1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)  # sharp enough that no two tokens are nearly equal
        prompts = batch_of(3, 5)["tokens"]
        training = model.generate(prompts, torch.arange(3), 12)
        assert model.training
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        theirs = model.network.eval().generate(prompts, attention_mask=torch.ones_like(prompts), **options)
        assert training.equal(theirs), name


def test_sampling_depends_on_seed_item_and_position_alone() -> None:
    model = CausalLM(LLAMA, generation=Generation(temperature=0.9, top_k=12), seed=5)
    prompts, index = batch_of(6, 5)["tokens"], torch.arange(6) + 100
    whole = model.generate(prompts, index, 16)
    assert whole.shape == (6, 22) and whole[:, :6].equal(prompts)
    order = torch.tensor([4, 1])
    assert model.generate(prompts[order], index[order], 16).equal(whole[order])
    assert model.generate(prompts, index, 5).equal(whole[:, :11])
    other = CausalLM(LLAMA, generation=Generation(temperature=0.9, top_k=12), seed=6)
    other.load_state_dict(model.state_dict())
    assert not other.generate(prompts, index, 16).equal(whole)
    assert not model.generate(prompts, index + 6, 16).equal(whole)


def test_predict_writes_text(tmp_path: Path) -> None:
    model = CausalLM(LLAMA, generation=Generation(max_new_tokens=4, temperature=0))
    [made] = trainer(default_root_dir=tmp_path).predict(model, datamodule=Windows()) or []
    assert made["tokens"].shape == (3, 10) and made["index"].tolist() == [0, 1, 2]
    assert made["text"] == [" ".join(map(str, row)) for row in made["tokens"].tolist()]


def test_a_checkpoint_of_pretrained_weights_needs_them_no_more(tmp_path: Path) -> None:
    source = CausalLM(CONFIGS["qwen3"] | {"tie_word_embeddings": True}, seed=4)
    source.network.save_pretrained(tmp_path / "saved")
    before = torch.get_rng_state()
    model = CausalLM(pretrained=str(tmp_path / "saved"))
    assert source.needs_checkpoint and not model.needs_checkpoint  # to be evaluated
    assert torch.get_rng_state().equal(before) and all(part.training for part in model.modules())
    for name, value in source.state_dict().items():
        assert value.equal(model.state_dict()[name])
    run = fitted(model, enable_checkpointing=True, default_root_dir=tmp_path, max_steps=1)
    run.save_checkpoint(tmp_path / "run.ckpt")
    (tmp_path / "saved").rename(tmp_path / "gone")
    loaded = CausalLM.load_from_checkpoint(tmp_path / "run.ckpt", optimizer=torch.optim.SGD)
    assert loaded.hparams["pretrained"] is None and model.hparams_initial["pretrained"] is not None
    batch = batch_of()
    assert loaded.loss(batch).equal(model.loss(batch))


def test_pretrained_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device the config is all that is read, and the network is never asked."""
    folder = tmp_path / "saved"
    source = CausalLM(LLAMA, seed=5)
    source.network.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    with torch.device("meta"):
        model = CausalLM(pretrained=str(folder))
        assert {p.device.type for p in model.parameters()} == {"meta"} and model.training
        assert {n: p.shape for n, p in model.named_parameters()} == {
            n: p.shape for n, p in source.named_parameters()
        }
        with pytest.raises(ValueError, match=r"pretrained='some/repo' is not a local folder, and no copy"):
            CausalLM(pretrained="some/repo")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ValueError, match="is a folder without weights"):
            CausalLM(pretrained=str(folder))


class OwnTokens(Windows):
    own_vocabulary = True


def test_tokens_that_a_pretrained_model_does_not_know(tmp_path: Path) -> None:
    """A model of random weights learns any tokens; one that was trained knows those of its tokenizer."""
    CausalLM(LLAMA, seed=5).network.save_pretrained(tmp_path / "saved")
    data = OwnTokens()
    data.vocab_size = VOCABULARY - 1
    with pytest.raises(
        ValueError, match=r"the data make tokens of their own, of \d+ ids, and the pretrained"
    ):
        trainer().fit(CausalLM(pretrained=str(tmp_path / "saved")), datamodule=data)
    data.vocab_size = VOCABULARY
    trainer().fit(CausalLM(pretrained=str(tmp_path / "saved")), datamodule=data)
    data.vocab_size = VOCABULARY - 1
    trainer().fit(CausalLM(LLAMA), datamodule=data)


def test_pretrained_that_lacks_weights(tmp_path: Path) -> None:
    source = CausalLM(LLAMA)
    source.network.model.save_pretrained(tmp_path)  # without the head
    with pytest.raises(ValueError, match=r"lacks 1 weights of LlamaForCausalLM \(lm_head.weight\)"):
        CausalLM(pretrained=str(tmp_path))
    with pytest.raises(ValueError, match=r"pretrained='.*nowhere'.*could not be read"):
        CausalLM(pretrained=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of config.*got neither"),
        ({"config": LLAMA, "pretrained": "x"}, "exactly one of config.*got both"),
        ({"config": LLAMA, "revision": "main"}, "revision='main' is of a pretrained model"),
        ({"config": {"hidden_size": 3}}, "must have the key model_type"),
        ({"config": LLAMA | {"model_type": "lama"}}, "'lama' is not a causal.*did you mean .*llama"),
        ({"config": LLAMA | {"model_type": "vit"}}, "'vit' is not a causal language model"),
        ({"config": LLAMA | {"hiden_size": 3}}, r"no key 'hiden_size'.*did you mean hidden_size"),
        ({"config": LLAMA | {"dtype": "bfloat16"}}, "must not hold 'dtype'.*trainer.precision"),
        ({"config": LLAMA | {"hidden_size": "many"}}, "does not describe a llama model.*hidden_size"),
        ({"config": LLAMA | {"hidden_size": 30}}, "does not describe a llama model(?s:.*)multiple"),
        ({"config": LLAMA, "attention": "fast"}, "attention must be one of sdpa, eager"),
        (
            {"config": {"model_type": "bloom", "n_layer": 1, "n_head": 2, "hidden_size": 8, "vocab_size": 9}},
            "attention='sdpa' does not work for bloom here; 'eager' always does",
        ),
        ({"config": LLAMA, "attention": "flash_attention_2"}, "attention='flash_attention_2' does not work"),
        ({"config": LLAMA, "z_loss": -1.0}, "z_loss must be 0 or more, got -1.0"),
        ({"config": LLAMA, "generation": {"temperature": -0.5}}, "generation: temperature must be 0"),
        ({"config": LLAMA, "generation": {"top_k": 0}}, "generation: top_k must be at least 1"),
        (
            {"config": LLAMA, "generation": {"max_new_tokens": 0}},
            "generation: max_new_tokens must be at least 1",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalLM(**arguments)


def test_data_that_do_not_fit(tmp_path: Path) -> None:
    for data, message in (
        (Windows(vocab_size=VOCABULARY + 1), "vocab_size=38 tokens, but the model knows 37"),
        (Windows(context=49), "the data's context=49: that is longer than .*max_position_embeddings=48"),
    ):
        for verb in ("fit", "validate", "predict"):
            with pytest.raises(ValueError, match=message):
                getattr(trainer(default_root_dir=tmp_path), verb)(CausalLM(LLAMA), datamodule=data)
    model = CausalLM(LLAMA)
    with pytest.raises(ValueError, match="longer than the model's max_position_embeddings=48"):
        model.logits(torch.zeros(1, 49, dtype=torch.long))
    with pytest.raises(ValueError, match="40 tokens of a prompt and 10 new: that is longer"):
        model.generate(torch.zeros(1, 40, dtype=torch.long), torch.arange(1), 10)
    with pytest.raises(ValueError, match=r"needs batches with 'tokens'.*this one has \['x'\]"):
        model.loss({"x": torch.zeros(2)})


@pytest.mark.parametrize(
    ("width", "ffn", "layers", "heads", "parameters"),
    [
        (768, 3072, 12, 12, 190_532_352),
        (1024, 2048, 24, 16, 354_731_008),
        (1536, 6144, 24, 32, 1_060_578_816),
    ],
)
def test_the_authors_models(width: int, ffn: int, layers: int, heads: int, parameters: int) -> None:
    """The LLaMAs of Wen et al. (arXiv 2410.05192; their Levanter configs), on meta."""
    config = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": 50304, "max_position_embeddings": 4096,
    }  # fmt: skip
    with torch.device("meta"):
        model = CausalLM(config)
    assert next(model.parameters()).is_meta
    # Two embeddings, and per layer four projections, three of the FFN and two norms; the last norm.
    closed = 2 * 50304 * width + layers * (4 * width**2 + 3 * width * ffn + 2 * width) + width
    assert sum(parameter.numel() for parameter in model.parameters()) == closed == parameters
