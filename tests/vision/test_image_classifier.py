"""`ImageClassifier`: timm's network inside, seeds, weights from files, what it logs and refuses."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from safetensors.torch import save_file

from zoo.datamodules import Digits
from zoo.vision import ImageClassifier

OPTIONS: dict[str, Any] = {
    "img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2,
}  # fmt: skip


def make(**changes: Any) -> ImageClassifier:
    return ImageClassifier(**({"options": OPTIONS, "seed": 0} | changes))


def test_it_is_the_network_of_timm() -> None:
    state = torch.random.get_rng_state()
    model = make()
    assert torch.equal(torch.random.get_rng_state(), state)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=10, **OPTIONS)
    plain.load_state_dict(model.network.state_dict())
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), make().parameters(), strict=True))
    assert not torch.equal(next(model.parameters()), next(make(seed=1).parameters()))


def test_it_learns_and_says_how_well(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", max_steps=60, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    model, data = (
        make(optimizer=lambda groups: torch.optim.AdamW(groups, lr=5e-3)),
        Digits(batch_size=128, seed=0),
    )
    trainer.fit(model, datamodule=data)
    [scores] = trainer.test(model, datamodule=data, verbose=False)
    logits = torch.cat([model.eval()(batch["x"]) for batch in data.test_dataloader()])
    labels = torch.cat([batch["label"] for batch in data.test_dataloader()])
    assert scores["test/accuracy"] == pytest.approx(
        (logits.argmax(-1) == labels).float().mean().item(), abs=1e-6
    )
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert scores["test/loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["test/loss"] < 2.2  # it starts at ln 10 = 2.30
    predicted = trainer.predict(model, dataloaders=data.test_dataloader())
    assert torch.allclose(torch.cat([p["probabilities"] for p in predicted]), logits.softmax(-1), atol=1e-6)


def test_what_decays() -> None:
    decayed, rest = make().parameter_groups()
    assert all(p.ndim >= 2 for p in decayed["params"]) and rest["weight_decay"] == 0


def test_weights_of_a_file(tmp_path: Path) -> None:
    source = make(seed=5)
    weights = dict(source.network.state_dict())
    save_file(weights, tmp_path / "a.safetensors")
    model = make(pretrained=str(tmp_path / "a.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
    assert not model.needs_checkpoint and model.hparams.pretrained is None
    other = make(pretrained=str(tmp_path / "a.safetensors"), num_classes=7)
    assert other.network.head.weight.shape[0] == 7
    assert torch.equal(other.network.patch_embed.proj.weight, source.network.patch_embed.proj.weight)
    del weights["norm.weight"]
    save_file(weights | {"more": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"1 missing \(norm.weight\); 1 unknown \(more\)"):
        make(pretrained=str(tmp_path / "b.safetensors"))
    (tmp_path / "c.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"c.safetensors.* cannot be read"):
        make(pretrained=str(tmp_path / "c.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vit_tiny_patch16_225"}, "timm has no model 'vit_tiny_patch16_225'"),
        ({"options": {"depht": 2}}, r"options=\{'depht': 2\} do not make a vit_tiny_patch16_224"),
        ({"options": {"pretrained": True}}, "options must not hold 'pretrained'"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be from 0 to below 1"),
        ({"pretrained": "nowhere.safetensors"}, "'nowhere.safetensors' cannot be read"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 16, 16), (1, 8, 8)])
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images \(B, 1, H, W\) of 8 x 8, got .* set in_chans and img_size"):
        make()(torch.zeros(shape))
