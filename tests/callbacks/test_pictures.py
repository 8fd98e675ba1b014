"""The pictures: their pixels, their files, and what is said when they cannot be drawn."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from toys import ToyClassifier

from zoo.callbacks import LossCurve, SampleGrid
from zoo.callbacks._png import image_grid, point_cloud, save_blocks
from zoo.datamodules import Digits
from zoo.io import read_json_lines


def test_grid_puts_every_pixel_where_it_belongs() -> None:
    images = torch.linspace(-1.5, 1.5, 6 * 2 * 3).reshape(6, 1, 2, 3)
    grid = image_grid(images, columns=4, scale=3)
    assert grid.shape == (2 * 6 + 2, 4 * 9 + 3 * 2, 3)
    for number, image in enumerate(images):
        top, left = number // 4 * 8, number % 4 * 11
        for row in range(2):
            for column in range(3):
                block = grid[top + 3 * row : top + 3 * row + 3, left + 3 * column : left + 3 * column + 3]
                expected = round((min(max(float(image[0, row, column]), -1), 1) + 1) * 127.5)
                assert (block == expected).all()
    assert (grid[8:, 22:] == 255).all()  # no seventh and eighth image
    assert (grid[6:8] == 255).all()


def test_grid_keeps_colors_and_refuses_other_channels() -> None:
    red = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1)
    assert image_grid(red, 1).tolist() == [[[255, 0, 0]]]
    with pytest.raises(ValueError, match="1 or 3 channels"):
        image_grid(torch.zeros(1, 4, 8, 8), 1)


def test_cloud_counts_points_in_their_bins() -> None:
    points = torch.tensor([[0.1, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1], [0.9, 0.6], [5.0, 0.0]])
    cloud = point_cloud(points, torch.zeros(2), torch.ones(2), size=2)
    # Upwards: the first coordinate to the right, the second up. One point of four is half as dark.
    assert cloud[:, :, 0].tolist() == [[255, 128], [0, 255]]


def test_blocks_are_one_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "page.png"
    left, right = torch.zeros(20, 30, 3, dtype=torch.uint8), torch.full((10, 15, 3), 77, dtype=torch.uint8)
    save_blocks(path, [("1 step", left), ("4 steps", right)])
    page = Image.open(path)
    assert page.mode == "RGB" and page.width == 30 + 15 + 3 * 10
    assert page.getpixel((10, 24)) == (0, 0, 0) and page.getpixel((50, 24)) == (77, 77, 77)


def fit(folder: Path, callbacks: list[Any], model: LightningModule | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    options = {"logger": CSVLogger(folder, name=None, version=""), "default_root_dir": folder} | options
    trainer = Trainer(
        accelerator="cpu", max_steps=6, callbacks=callbacks, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, log_every_n_steps=1, limit_val_batches=1,
        **options,
    )  # fmt: skip
    trainer.fit(model or ToyClassifier(), datamodule=Digits(batch_size=100, seed=0))
    return trainer


def test_pictures_of_a_run(tmp_path: Path) -> None:
    fit(
        tmp_path,
        [SampleGrid(every_n_steps=2, labels=[3, 5], per_label=3), LossCurve(["train/loss", "val/loss"])],
    )
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step={step:06d}.png" for step in (2, 4, 6)
    ]
    for name in ("samples.png", "loss.png"):
        Image.open(tmp_path / name).verify()
    events = read_json_lines(tmp_path / "events.jsonl")
    assert [event["event"] for event in events] == ["samples_drawn"] * 4 + ["loss_drawn"]
    assert [event["step"] for event in events] == [2, 4, 6, 6, 6]


class Recorder(ToyClassifier):
    """Notes which weights were asked for samples, and in which mode."""

    asked: list[tuple[Tensor, bool]] = []  # noqa: RUF012 (shared with the averaged copy on purpose)

    def sample(self, labels: Tensor, steps: int, seed: int = 0, index: Tensor | None = None) -> Tensor:
        assert not torch.is_grad_enabled()
        self.asked.append((self.network[1].weight.detach().clone(), self.network.training))
        return torch.zeros(len(labels), 2)


@pytest.mark.parametrize("first", [True, False])
def test_samples_come_from_the_average_whatever_the_order(tmp_path: Path, first: bool) -> None:
    Recorder.asked.clear()
    grid, average = SampleGrid(every_n_steps=3, steps=[1]), EMAWeightAveraging(decay=0.5)
    model = Recorder()
    fit(tmp_path, [grid, average] if first else [average, grid], model)
    assert len(Recorder.asked) == 3 and not any(training for _, training in Recorder.asked)
    assert average._average_model is not None
    final = average._average_model.module.network[1].weight
    assert Recorder.asked[-1][0].equal(final)
    # Listed before the average, the picture of the last step shows the average of the step before.
    assert Recorder.asked[-2][0].equal(final) is not first
    assert not Recorder.asked[0][0].equal(final)
    assert model.network.training


def test_no_files_in_a_fast_dev_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu", fast_dev_run=True, callbacks=[SampleGrid(), LossCurve()], enable_progress_bar=False
    )
    trainer.fit(ToyClassifier(), datamodule=Digits(batch_size=100))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("last", "shown"), [(2.5, {"3", "4", "5"}), (0.02, {"$\\mathdefault{10^{-1}}$"})])
def test_a_curve_within_a_decade_has_plain_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: float, shown: set[str]
) -> None:
    class Falls(ToyClassifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("falls", 5 - (5 - last) * min(self.global_step, 3) / 3)
            return super().training_step(batch, batch_idx)

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: drawn.append(figure))
    monkeypatch.setattr("zoo.callbacks.loss_curve.atomic_path", nullcontext)
    fit(tmp_path, [LossCurve(["falls"])], Falls())
    [panel] = drawn[0].axes
    assert panel.get_yscale() == "log"
    labels = {label.get_text().removesuffix(".0") for label in panel.get_yticklabels()}
    assert shown <= labels, labels


def test_curve_without_values_or_logger_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"none of \['train/lost'\] was logged"):
        fit(tmp_path, [LossCurve(["train/lost"])])
    with pytest.warns(UserWarning, match="no CSVLogger"):
        fit(tmp_path, [LossCurve()], logger=False)
    assert not (tmp_path / "loss.png").exists()


def test_bad_arguments(tmp_path: Path) -> None:
    for arguments, message in (
        ({"every_n_steps": -1}, "every_n_steps must be at least 0, got -1"),
        ({"steps": []}, "steps must be at least 1"),
        ({"steps": [4, 0]}, "steps must be at least 1, got 0"),
        ({"per_label": 0}, "per_label must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            SampleGrid(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one logged value"):
        LossCurve([])

    class Mute(ToyClassifier):
        sample = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match="Mute has none"):
        fit(tmp_path, [SampleGrid()], Mute())
