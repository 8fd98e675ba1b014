"""`SinkLogger`: every kind of module, a sink that grows, events, files, neutrality beside others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from pool import Pool
from ranks import look_for_sinks_on_rank
from tiny_models import LLAVA, images_and_tokens
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toys import AttentionToy, ToyClassifier

from zoo.attention import AttentionCall, rows, watch_attention
from zoo.callbacks import WSDS, ExactResume, SinkLogger
from zoo.datamodules import BigramBackcopy, Digits
from zoo.flow import DiT, MeanFlow
from zoo.hf import build_network
from zoo.lm import CausalLM
from zoo.schedules import wsds
from zoo.sinks import Planted, planted_llama, planted_tokens
from zoo.vision import ImageClassifier


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        **({
            "accelerator": "cpu", "max_steps": 4, "callbacks": list(callbacks), "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False, "logger": CSVLogger(folder, "", ""),
            "log_every_n_steps": 1, "num_sanity_val_steps": 0, "default_root_dir": folder,
            "limit_val_batches": 1,
        } | options)
    )  # fmt: skip


BACKCOPY: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 24, "n_positions": 32, "n_embd": 64, "n_layer": 1, "n_head": 1,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
VIT = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}


class Stranger(LightningModule):
    """Somebody's module with `nn.MultiheadAttention`, a step that logs and a method that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def run(self, batch: dict[str, Tensor]) -> Tensor:
        return self.encoder(self.embed(batch["x"][:, 0]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.run(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.run(batch).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


HOSTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "CausalLM": (lambda: CausalLM(BACKCOPY, seed=0), lambda: BigramBackcopy(seed=0), {}),
    "compiled CausalLM": (lambda: CausalLM(BACKCOPY, seed=0), lambda: BigramBackcopy(seed=0), {}),
    "ImageClassifier": (lambda: ImageClassifier(options=VIT, seed=0), lambda: Digits(seed=0), {}),
    "MeanFlow": (
        lambda: MeanFlow(DiT(width=16, depth=2, heads=2), seed=0), lambda: Digits(seed=0), {"probe": "probe"}
    ),
    "stranger": (Stranger, lambda: Digits(seed=0), {"probe": "run"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTS)
def test_every_kind_of_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and the random state are bitwise those of the run without; numbers reach the logger."""
    make, data, options = HOSTS[name]
    original = nn.Module.compile
    runs = []
    for logger in (SinkLogger(every_n_steps=2, sequences=3, **options), None):
        torch.manual_seed(0)
        model = make()
        if name.startswith("compiled"):
            original(model.network, backend="eager")
        trainer(tmp_path / str(logger is None), *([logger] if logger else [])).fit(model, datamodule=data())
        runs.append((model.state_dict(), torch.random.get_rng_state()))
        if logger is not None:
            report = logger.report
            assert (
                report is not None
                and report.sequences == 3
                and report.layers == len(report.curves["entropy"])
            )
    assert torch.equal(runs[0][1], runs[1][1])
    assert all(torch.equal(value, runs[1][0][key]) for key, value in runs[0][0].items())
    header = (tmp_path / "False" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"sinks/entropy", "sinks/max_logit", "sinks/first_token", "sinks/seconds"} <= set(header)
    assert json.loads((tmp_path / "False" / "sinks.json").read_text())["step"] == 4
    assert (tmp_path / "False" / "sinks.png").is_file()


def test_beside_wsds(tmp_path: Path) -> None:
    """The decays of a tree of schedules are those without the look."""
    ends = []
    for look in (True, False):
        torch.manual_seed(0)
        model = AttentionToy()
        callbacks = [WSDS(wsds([10, 20], warmup=1)), *([SinkLogger(every_n_steps=3)] if look else [])]
        run = trainer(
            tmp_path / str(look),
            ExactResume(),
            *callbacks,
            max_steps=-1,
            max_epochs=-1,
            enable_checkpointing=True,
        )
        callbacks[0].fit(run, model, datamodule=Digits(seed=0))  # type: ignore[attr-defined]
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


class VisionLanguage(LightningModule):
    """Somebody's module around a stock vision-language model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = build_network(LLAVA, seed=0, task="image-text-to-text")

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.network(**batch, labels=batch["input_ids"]).loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pass

    def train_dataloader(self) -> Any:
        return DataLoader([images_and_tokens()] * 4, batch_size=None)  # type: ignore[arg-type]

    val_dataloader = train_dataloader

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@pytest.mark.parametrize(
    ("stack", "layers", "tokens"),
    [(None, 1, 7), ("network.model.vision_tower.encoder.layers", 2, 5)],
)
def test_a_vision_language_model(stack: str | None, layers: int, tokens: int, tmp_path: Path) -> None:
    """The layers of its language model, or others by name; training is left as it is."""
    logger = SinkLogger(every_n_steps=2, stack=stack)
    ends = []
    for callbacks in ([logger], []):
        model = VisionLanguage()
        trainer(tmp_path, *callbacks).fit(model)
        ends.append(model.state_dict())
    assert logger.report is not None and (logger.report.layers, logger.report.tokens) == (layers, tokens)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.slow
def test_two_processes(pool: Pool, tmp_path: Path) -> None:
    """Rank zero looks, both train on as without, and the files are written once."""
    (looked, plain, scalars), (others, _, nothing) = pool.run(look_for_sinks_on_rank, str(tmp_path))
    assert all(torch.equal(value, plain[name]) for name, value in looked.items())
    assert all(torch.equal(value, others[name]) for name, value in looked.items())
    assert scalars is not None and nothing is None
    assert len(list(tmp_path.rglob("sinks.json"))) == len(list(tmp_path.rglob("sinks.png"))) == 1


class Fixed(LightningModule):
    """Planted sinks that come and go: no training at all."""

    def __init__(self) -> None:
        super().__init__()
        self.network = planted_llama([Planted(0, 2000.0, 2, 10), Planted(1, 60.0, 5, 8)])
        self.unused = nn.Parameter(torch.zeros(()))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.network(batch["tokens"]).logits.mean() * 0 + self.unused

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == 3:  # its writer forgets the secondary sink
            self.network.model.layers[5].mlp.down_proj.weight.data.zero_()  # type: ignore[index, union-attr]
            self.network.model.layers[8].mlp.down_proj.weight.data.zero_()  # type: ignore[index, union-attr]
        return self.loss(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pass

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pass

    def train_dataloader(self) -> Any:
        return DataLoader([{"tokens": planted_tokens(48, {17: 1})}] * 8, batch_size=None)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = train_dataloader

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.unused], lr=0.1)


def events(folder: Path) -> list[tuple[int, str, str]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [(line["step"], line["event"], line["message"]) for line in lines]


def test_births_and_deaths_are_told_once(tmp_path: Path) -> None:
    logger = SinkLogger(every_n_steps=2)
    trainer(tmp_path, logger, max_steps=6).fit(Fixed())
    assert events(tmp_path)[:2] == [
        (
            2,
            "sinks_born",
            "attention sinks born: 1 primary from layer 2 for 8, 1 secondary from layer 5 for 3",
        ),
        (4, "sinks_died", "attention sinks gone: secondary at 0:17"),
    ]
    assert [name for _, name, _ in events(tmp_path)] == ["sinks_born", "sinks_died", "sinks_drawn"]
    other = SinkLogger()
    other.load_state_dict(logger.state_dict())
    assert other.state_dict() == {"alive": [["primary", 0, 0]]}


def test_a_test_reports_once(tmp_path: Path) -> None:
    logger = SinkLogger()
    trainer(tmp_path, logger).test(Fixed(), verbose=False)
    assert logger.report is not None and len(logger.report.sinks) == 2
    assert [name for _, name, _ in events(tmp_path)] == ["sinks_born", "sinks_drawn"]


def test_some_layers_and_a_folder(tmp_path: Path) -> None:
    """Sinks are found with the attention of few layers; the files go where they are asked to go."""
    logger = SinkLogger(every_n_steps=1, layers=[6, 4], dirpath=str(tmp_path / "a" / "b"))
    trainer(tmp_path, logger, max_steps=1).fit(Fixed())
    assert logger.report is not None and logger.report.curves["attention_layer"] == [4, 6]
    assert [sink.kind for sink in logger.report.sinks] == ["primary", "secondary"]
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"sinks.json", "sinks.png"}


def test_a_fast_dev_run_leaves_no_file(tmp_path: Path) -> None:
    trainer(tmp_path, SinkLogger(every_n_steps=1), fast_dev_run=2).fit(Fixed())
    assert not list(tmp_path.rglob("sinks.*"))


def test_a_sink_grows_on_a_trained_toy(tmp_path: Path) -> None:
    """Guo et al.'s task, after 500 updates: the first token gets more than 1.5 times even attention,
    its value has shrunk, and queries at triggers leave it."""
    data = BigramBackcopy(seed=0)
    model = CausalLM(
        BACKCOPY,
        seed=0,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99), weight_decay=1e-4),
    )
    logger = SinkLogger(every_n_steps=500, sequences=64, queries=None)
    trainer(tmp_path, logger, max_steps=500, log_every_n_steps=100).fit(model, datamodule=data)
    assert logger.report is not None
    even = sum(1 / n for n in range(1, 33)) / 32
    assert even == pytest.approx(0.127, abs=1e-3)
    assert logger.report.scalars["first_token"] > 1.5 * even
    assert logger.report.scalars["value_drain"] < 0.75
    calls: list[AttentionCall] = []
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad(), watch_attention(model, calls.append):
        model.eval().loss(batch)
    on_first = rows(calls[0], torch.arange(32))[:, 0, :, 0]
    tokens = batch["tokens"][:, :-1]
    triggers = (tokens >= 1) & (tokens <= 3)
    assert on_first[triggers].mean() < 0.02 < 0.3 < on_first[~triggers].mean()


class NoAttention(ToyClassifier):
    pass


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (NoAttention, {}, "NoAttention has no layers with attention"),
        (AttentionToy, {"probe": "looses"}, r"probe='looses'\) needs a method of AttentionToy of this name"),
        (AttentionToy, {"stack": "layers"}, "stack must be one of"),
        (AttentionToy, {"layers": [1, 4]}, r"layers must be numbers .* among 0, 1, 2, 3; got \[1, 4\]"),
    ],
)
def test_what_cannot_be_looked_at_is_said_before_training(
    make: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, SinkLogger(**options)).fit(make(), datamodule=Digits(seed=0))


def test_no_validation_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SinkLogger needs validation data, and this run has none"):
        trainer(tmp_path, SinkLogger(), limit_val_batches=0).fit(AttentionToy(), datamodule=Digits(seed=0))


@pytest.mark.parametrize(("name", "value"), [("every_n_steps", 0), ("sequences", 0), ("queries", 0)])
def test_bad_numbers(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SinkLogger(**{name: value})  # type: ignore[arg-type]
