"""Folders of images: what is found, how it is cropped, what is refused, a run that goes on in the middle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from zoo.callbacks import ExactResume
from zoo.datamodules import ImageFolder
from zoo.datamodules.image_folder import read_image


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def noise(number: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, five images each, and other files."""
    root = tmp_path / "images"
    for number in range(10):
        save(root / ("zebra" if number % 2 else "ant") / f"{number}.png", noise(number))
    (root / "README.txt").write_text("not an image")
    return root


def items(data: ImageFolder) -> dict[str, torch.Tensor]:
    data.setup("fit")
    batches = list(data.reference_dataloader())
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("workers", [0, 2])
def test_sub_folders_are_classes(workers: int, folder: Path) -> None:
    data = ImageFolder(str(folder), size=8, batch_size=4, num_workers=workers)
    found = items(data)
    assert data.class_names == ["ant", "zebra"] and data.num_classes == 2
    assert found["label"].tolist() == [0] * 5 + [1] * 5 and found["index"].equal(torch.arange(10))
    for place, number in enumerate([0, 2, 4, 6, 8, 1, 3, 5, 7, 9]):
        expected = torch.from_numpy(noise(number)).permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(found["x"][place], expected)


def test_images_of_no_class(folder: Path, tmp_path: Path) -> None:
    data = ImageFolder(str(folder), size=8, classes=False, num_workers=0)
    assert set(items(data)) == {"x", "index"} and data.num_classes is None
    flat = tmp_path / "flat"
    for number in range(3):
        save(flat / f"{number}.PNG", noise(number))
    assert set(items(ImageFolder(str(flat), size=8, batch_size=2, num_workers=0))) == {"x", "index"}


def test_classes_of_a_dataset_json(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    pairs = [[name, 7 * (place % 2)] for place, name in enumerate(names)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    data = ImageFolder(str(folder), size=8, batch_size=4, num_workers=0)
    assert items(data)["label"].tolist() == [0, 7] * 5 and data.num_classes == 8
    (folder / "dataset.json").write_text(json.dumps({"labels": None}))
    assert "label" not in items(ImageFolder(str(folder), size=8, num_workers=0))
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs[1:]}))
    with pytest.raises(ValueError, match=r"gives ant/0.png the class None"):
        ImageFolder(str(folder), size=8).setup("fit")
    (folder / "dataset.json").write_text("[")
    with pytest.raises(ValueError, match="is not of the form"):
        ImageFolder(str(folder), size=8).setup("fit")


def test_crop_of_whole_numbers(tmp_path: Path) -> None:
    """16 x 24 to 4: two halvings, which are averages of 4 x 4 blocks, make 4 x 6, whose middle stays."""
    path = save(tmp_path / "wide.png", noise(1, 16, 24))
    blocks = noise(1, 16, 24).astype(float).reshape(4, 4, 6, 4, 3).mean((1, 3))[:, 1:5]
    expected = torch.from_numpy(blocks).permute(2, 0, 1) / 127.5 - 1
    # Each halving rounds to bytes twice, along rows and along columns: four times half a byte at most.
    torch.testing.assert_close(read_image(path, 4, 3).double(), expected, atol=2.01 / 127.5, rtol=0)


def test_crop_keeps_the_center(tmp_path: Path) -> None:
    """A ramp of 11 x 20 to 8: no halving, bicubic to 8 x 15, which keeps it a ramp; columns 3 to 10."""
    ramp = np.broadcast_to((np.arange(20) * 12).astype(np.uint8)[None, :, None], (11, 20, 3)).copy()
    found = read_image(save(tmp_path / "ramp.png", ramp), 8, 1)
    place = (torch.arange(3, 11) + 0.5) * 20 / 15 - 0.5  # in pixels of the file
    assert found.shape == (1, 8, 8)
    expected = (12 * place).expand(1, 8, 8)
    torch.testing.assert_close((found + 1) * 127.5, expected, atol=0.51, rtol=0)  # rounded to bytes


def test_colors_and_depths(tmp_path: Path) -> None:
    gray = noise(0)[..., 0]
    torch.testing.assert_close(
        read_image(save(tmp_path / "gray.png", gray), 8, 3),
        read_image(tmp_path / "gray.png", 8, 1).expand(3, 8, 8),
    )
    alpha = np.concatenate([noise(1), np.zeros((8, 8, 1), np.uint8)], axis=2)
    expected = torch.from_numpy(noise(1)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(read_image(save(tmp_path / "alpha.png", alpha), 8, 3), expected)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits(ending: str, channels: int, tmp_path: Path) -> None:
    """Pillow's own conversion to bytes would make white of everything above 255."""
    levels = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    found = read_image(save(tmp_path / f"deep.{ending}", levels), 8, channels)  # type: ignore[arg-type]
    expected = torch.from_numpy(levels.astype(np.float32) / 32767.5 - 1).expand(channels, 8, 8)
    torch.testing.assert_close(found, expected, atol=0.51 / 127.5, rtol=0)  # rounded to bytes


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_unknown_range_are_refused(kind: type, tmp_path: Path) -> None:
    path = save(tmp_path / "deep.tif", np.full((8, 8), 70_000, kind))
    with pytest.raises(ValueError, match=r"deep\.tif cannot be decoded.* 32-bit numbers \(mode [IF]\)"):
        read_image(path, 8, 3)


def test_test_folder(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "test"
    save(other / "zebra" / "a.png", noise(20))
    data = ImageFolder(str(folder), size=8, test_root=str(other), num_workers=0)
    data.setup("test")
    [batch] = list(data.test_dataloader())
    assert batch["label"].tolist() == [1] and len(list(data.val_dataloader())) == 1
    save(other / "yak" / "b.png", noise(21))
    with pytest.raises(ValueError, match="give folders with the same classes"):
        data.setup("test")


def test_without_test_folder(folder: Path) -> None:
    data = ImageFolder(str(folder), size=8, num_workers=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match=r"no data to test on.*ClassLabels"):
        data.test_dataloader()


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"root=.*no such folder"):
        ImageFolder(str(tmp_path / "none"), size=8)
    with pytest.raises(ValueError, match=r"test_root=.*no such folder"):
        ImageFolder(str(folder), size=8, test_root=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="size must be at least 1 and channels 1 or 3, got 8 and 2"):
        ImageFolder(str(folder), size=8, channels=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        ImageFolder(str(tmp_path / "empty"), size=8).setup("fit")
    save(folder / "lone.png", noise(30))
    with pytest.raises(ValueError, match=r"outside of them \(lone.png\)"):
        ImageFolder(str(folder), size=8).setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_named(workers: int, folder: Path) -> None:
    path = folder / "ant" / "4.png"
    path.write_bytes(path.read_bytes()[:60])
    data = ImageFolder(str(folder), size=8, num_workers=workers)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"4.png cannot be decoded as an image"):
        list(data.reference_dataloader())


class Sums(LightningModule):
    """Remembers the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["x"].clone())
        return self.weight * batch["x"].mean()

    def validation_step(self, batch: object, batch_idx: int) -> None:
        raise AssertionError("there is nothing to validate on")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_resumed_run_sees_the_same_images(folder: Path, tmp_path: Path) -> None:
    """With flips and a worker, stopped in the middle of a pass."""

    def fit(steps: int, checkpoint: str | None = None) -> list[torch.Tensor]:
        model = Sums()
        saves = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=3, save_top_k=-1)
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, callbacks=[ExactResume(), saves], logger=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        data = ImageFolder(str(folder), size=8, flip=True, batch_size=2, num_workers=1, seed=0)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return model.seen

    whole = fit(8)
    resumed = fit(8, str(tmp_path / "saved" / "step=3.ckpt"))
    assert len(whole) == 8 and len(resumed) == 5
    assert all(one.equal(other) for one, other in zip(whole[3:], resumed, strict=True))
