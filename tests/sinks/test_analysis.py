"""`analyze` on anybody's models, steering, the report, the verb; nothing is left behind or drawn."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny_models import CONFIGS, EAGER_ONLY, LLAVA, images_and_tokens, tiny
from torch import nn

from zoo.attention import attention_modules
from zoo.cli import main
from zoo.hf import build_network
from zoo.sinks import Planted, SinkReport, analyze, planted_llama, planted_tokens, steered
from zoo.sinks.commands import sinks as verb
from zoo.sinks.figures import save_figure
from zoo.sinks.report import SCALARS

TOKENS = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(0))
PLANTED = [Planted(0, 2000.0, 2, 10), Planted(1, 60.0, 5, 8)]


def close(left: SinkReport, right: SinkReport) -> None:
    assert left.scalars.keys() == right.scalars.keys()
    for name, value in left.scalars.items():
        assert value == pytest.approx(right.scalars[name], rel=1e-4, abs=1e-4, nan_ok=True), name


@pytest.mark.parametrize("model_type", CONFIGS)
def test_families_of_transformers(model_type: str) -> None:
    model = tiny(model_type, "eager").train()
    state = torch.random.get_rng_state()
    report = analyze(model, TOKENS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(part.training for part in model.modules())
    assert report.layers == 4 and report.tokens == 48
    assert list(report.scalars) == [name for name in SCALARS if name in report.scalars]
    assert set(SCALARS) - set(report.scalars) <= {"gate", "closed_gates"}
    assert ("gate" in report.scalars) == (model_type in ("qwen3_5_text", "qwen3_next"))
    assert (report.scalars["no_op"] > 0) == (model_type == "gpt_oss")
    assert len(report.curves["attention_layer"]) == len(attention_modules(model))
    if model_type not in EAGER_ONLY:
        close(report, analyze(tiny(model_type, "sdpa"), TOKENS))


def test_half_precision_and_sampled_rows() -> None:
    exact = analyze(planted_llama(PLANTED), planted_tokens(200, {17: 1}))
    half = analyze(planted_llama(PLANTED, dtype=torch.bfloat16), planted_tokens(200, {17: 1}))
    assert [(s.kind, s.place, s.start) for s in half.sinks] == [
        (s.kind, s.place, s.start) for s in exact.sinks
    ]
    few = analyze(planted_llama(PLANTED), planted_tokens(200, {17: 1}), queries=40)
    assert [(s.kind, s.place, s.start, s.end) for s in few.sinks] == [
        (s.kind, s.place, s.start, s.end) for s in exact.sinks
    ]
    assert few.sinks[1].attention == pytest.approx(exact.sinks[1].attention, abs=0.08)  # .5 / sqrt(40)


def test_a_vision_transformer() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=3)
    report = analyze(model, torch.randn(2, 3, 32, 32))
    assert report.tokens == 2 * 17 and report.layers == 3 and report.sinks == []
    with torch.no_grad():  # a register: a class token of large norm that all attend to
        model.cls_token.fill_(100.0)
    assert analyze(model, torch.randn(2, 3, 32, 32)).scalars["norm_outliers"] == pytest.approx(1 / 17)


def test_a_strangers_encoder_with_time_first() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    x = torch.randn(7, 2, 16)  # (T, B, D)
    report = analyze(model, x)
    assert (report.sequences, report.tokens, report.layers) == (2, 14, 3)
    other = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 3)
    other.load_state_dict(model.state_dict())
    close(report, analyze(other, x.transpose(0, 1)))


def test_the_language_model_of_a_vision_language_model() -> None:
    model = build_network(LLAVA, task="image-text-to-text")
    report = analyze(model, images_and_tokens())
    assert (report.layers, report.tokens) == (1, 7)
    assert analyze(model, images_and_tokens(), stack="model.vision_tower.encoder.layers").tokens == 5


def test_a_named_way_to_run() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = planted_llama(PLANTED)

        def probe(self, batch: dict[str, Any]) -> None:
            self.network(batch["tokens"])

    model, tokens = Wrapped(), planted_tokens(48, {17: 1})
    report = analyze(
        model, {"tokens": tokens}, forward=model.probe, tokens=tokens, texts=lambda ids: [f"<{ids[0]}>"]
    )
    assert [(sink.token, sink.text) for sink in report.sinks] == [(0, "<0>"), (1, "<1>")]
    assert "'<1>'" in report.table()


@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (lambda: nn.Linear(2, 2), torch.zeros(1, 2), "Linear has no layers with attention"),
        (
            lambda: tiny("llama"),
            {"input_ids": TOKENS, "attention_mask": torch.ones(2, 9)},
            r"expected states of \(2, 9\)",
        ),
    ],
)
def test_bad_input(make: Any, batch: Any, message: str) -> None:
    with pytest.raises(Exception, match=message):
        analyze(make(), batch)


def test_a_forward_that_does_not_run_the_layers() -> None:
    model = tiny("llama")
    with pytest.raises(RuntimeError, match="4 layers were to run once each, but 0 did"):
        analyze(model, TOKENS, forward=lambda batch: model.get_input_embeddings()(batch))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"stack must be one of model.layers, got 'layers'"):
        analyze(model, TOKENS, stack="layers")


# Steering: the paper's causal claims on planted models.


def test_without_its_writer_there_is_no_secondary_sink() -> None:
    model, tokens = (
        planted_llama([Planted(0, 2000.0, 2, 10), Planted(1, 60.0, 5)]),
        planted_tokens(48, {17: 1}),
    )
    with steered(model, 5):
        kinds = [sink.kind for sink in analyze(model, tokens).sinks]
    assert kinds == ["primary"]
    assert [sink.kind for sink in analyze(model, tokens).sinks] == ["primary", "secondary"]
    with steered(model, 4):  # another layer writes nothing
        assert len(analyze(model, tokens).sinks) == 2


def test_the_size_of_what_is_written_sets_attention_and_lifetime() -> None:
    model = planted_llama([Planted(0, 20000.0, 2), Planted(1, 120.0, 5)], layers=24, growth=2.0)
    tokens = planted_tokens(48, {17: 1})
    lives, scores = [], []
    for norm in (60.0, 75.0, 90.0, 120.0):
        with steered(model, 5, norm=norm):
            sink = analyze(model, tokens).sinks[1]
        lives.append(sink.lifetime)
        scores.append(sink.max_attention)
    assert lives == sorted({*lives}) and scores == sorted(scores)
    assert sink.lifetime == analyze(model, tokens).sinks[1].lifetime
    with steered(model, 5, factor=0.5):
        assert analyze(model, tokens).sinks[1].lifetime == lives[0]


def test_steering_leaves_the_first_tokens_and_others_alone() -> None:
    model = planted_llama([Planted(0, 2000.0, 2, 10), Planted(0, 500.0, 5), Planted(1, 60.0, 5, 8)])
    tokens = planted_tokens(48, {17: 1})
    first = analyze(model, tokens).sinks[0]
    with steered(model, 5):
        assert analyze(model, tokens).sinks[0].curve == pytest.approx(first.curve)
    with steered(model, 5, keep=0):
        assert analyze(model, tokens).sinks[0].curve[6] == pytest.approx(first.curve[6] - 500, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 12}, "from 0 to 11, got 12"),
        ({"layer": 0, "cosine": 1.0}, "cosine"),
        ({"layer": 0, "norm": -1.0}, "norm"),
    ],
)
def test_bad_steering(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), steered(planted_llama([]), **options):
        pass


# The report and the verb.


def test_json_and_figure(tmp_path: Path) -> None:
    report = analyze(planted_llama(PLANTED), planted_tokens(48, {17: 1}))
    whole = json.loads(report.to_json())
    assert [sink["kind"] for sink in whole["sinks"]] == ["primary", "secondary"]
    assert whole["levels"] == [{"start": 5, "lifetime": 3, "count": 1}]
    assert whole["scalars"]["norm_lifetime_correlation"] is None
    table = report.table().splitlines()
    assert table[1].split()[:2] == ["primary", "0"] and table[2].endswith("MLP 5")
    assert report.table(1).endswith("... and 1 more")
    for made in (report, analyze(planted_llama([]), planted_tokens(48))):
        save_figure(tmp_path / "a.png", made, "title")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted model whose tokenizer knows a word for each token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    planted_llama(PLANTED).save_pretrained(folder)  # type: ignore[operator]
    words = {f"w{n}": n for n in range(1, 64)} | {"<s>": 0}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w9"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    text = [f"w{token}" for token in planted_tokens(48, {17: 1})[0, 1:].tolist()]
    (folder / "text.txt").write_text(" ".join(text))
    return folder


def test_the_verb(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sinks", str(saved), "--text", str(saved / "text.txt"), "--tokens", "48"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "'w1'" in printed and "levels (first layer, lifetime): (5, 3): 1" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sinks.json", "sinks.png"}
    assert len(json.loads((tmp_path / "out" / "sinks.json").read_text())["sinks"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_dir": "nowhere"}, "is not the folder of a model: no config.json is in it"),
        ({"text": ""}, "Give --text FILE"),
        ({"text": "nowhere.txt"}, "'nowhere.txt' cannot be read: No such file"),
        ({"tokens": 1}, "tokens must be at least 2, got 1"),
        ({"tokens": 49}, "has 48 tokens, fewer than tokens=49: give --tokens 48"),
        ({"tokens": 10**6}, "max_position_embeddings=4096"),
        ({"chat": True}, "no chat template"),
        ({"stack": "layers"}, "unexpected"),
    ],
)
def test_bad_words(saved: Path, changes: dict[str, Any], message: str) -> None:
    arguments = {"model_dir": str(saved), "text": str(saved / "text.txt"), "tokens": 48} | changes
    with pytest.raises((ValueError, TypeError), match=message):
        verb(**arguments)
    assert not Path("sinks.json").exists()
