"""The files that predictions leave: form, order, interruption, two processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from pool import Pool
from ranks import predict_on_rank
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.callbacks import SampleWriter
from zoo.io import read_json_lines


class Echo(LightningModule):
    """Predicts what it is given; fails at a batch if told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at = fails_at

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        if batch_idx == self.fails_at:
            raise RuntimeError("stopped")
        return {"samples": batch["x"], "label": batch.get("label"), "index": batch["index"]}


def predict(folder: Path, batches: list[Any], module: LightningModule | None = None, **options: Any) -> None:
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, logger=False, enable_progress_bar=False,
        callbacks=[SampleWriter(**options)],
    )  # fmt: skip
    trainer.predict(module or Echo(), DataLoader(batches, batch_size=None), return_predictions=False)  # type: ignore[arg-type]


def images(order: list[int], channels: int = 1) -> list[dict[str, Tensor]]:
    """Batches of three; image number k is gray with the value k."""
    index = torch.tensor(order)
    x = (index.float() / 127.5 - 1).reshape(-1, 1, 1, 1).expand(-1, channels, 4, 5)
    return [
        {"x": x[i : i + 3], "label": index[i : i + 3] % 10, "index": index[i : i + 3]}
        for i in range(0, len(order), 3)
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_the_order_of_their_index(channels: int, tmp_path: Path) -> None:
    order = torch.randperm(250, generator=torch.Generator().manual_seed(0)).tolist()
    predict(tmp_path, images(order, channels))
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"arr_0", "arr_1"}
        pixels, labels = archive["arr_0"], archive["arr_1"]
    assert pixels.dtype == np.uint8 and pixels.shape == (250, 4, 5, 3) and labels.dtype == np.int64
    # x * 127.5 + 128 without the rest: k comes back as k, or k + 1 where k / 127.5 was rounded up.
    assert np.abs(pixels.astype(int) - np.arange(250)[:, None, None, None]).max() <= 1
    assert (np.diff(pixels[:, 0, 0, 0].astype(int)) >= 0).all()
    assert labels.tolist() == [k % 10 for k in range(250)]
    assert Image.open(tmp_path / "samples.png").size[0] >= 10 * 10
    [event] = read_json_lines(tmp_path / "events.jsonl")
    assert event["event"] == "samples_written" and event["count"] == 250
    assert not (tmp_path / ".samples").exists()


def test_points_and_latents_stay_floats(tmp_path: Path) -> None:
    points = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    predict(tmp_path / "points", [{"x": points, "index": torch.arange(7)}])
    with np.load(tmp_path / "points" / "samples.npz") as archive:
        assert archive.files == ["arr_0"] and np.array_equal(archive["arr_0"], points.numpy())
    assert (tmp_path / "points" / "samples.png").is_file()
    latents = torch.randn(5, 4, 8, 8)
    predict(tmp_path / "latents", [{"x": latents, "index": torch.arange(5)}])
    with np.load(tmp_path / "latents" / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"], latents.numpy())
    assert not (tmp_path / "latents" / "samples.png").exists()


def test_what_was_there_is_replaced_as_a_whole(tmp_path: Path) -> None:
    predict(tmp_path, images([0, 1, 2, 3]))
    whole = (tmp_path / "samples.npz").read_bytes()
    with pytest.raises(RuntimeError, match="stopped"):
        predict(tmp_path, images(list(range(9))), Echo(fails_at=2))
    assert (tmp_path / "samples.npz").read_bytes() == whole
    assert not (tmp_path / ".samples").exists()
    predict(tmp_path, images([4, 5]), picture=0)
    with np.load(tmp_path / "samples.npz") as archive:
        assert len(archive["arr_0"]) == 2


def test_an_interruption_before_the_first_batch_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        predict(tmp_path, images([0, 1]), Echo(fails_at=0))
    assert not list(tmp_path.iterdir())


def test_fid_reads_the_file(tmp_path: Path) -> None:
    from zoo.metrics.inception import read_images

    predict(tmp_path, images(list(range(7)), channels=3))
    with np.load(tmp_path / "samples.npz") as archive:
        pixels = archive["arr_0"]
    read = torch.cat(list(read_images(tmp_path / "samples.npz", 3)))
    assert np.array_equal(read.permute(0, 2, 3, 1).numpy(), pixels)


def test_two_processes_leave_one_file(tmp_path: Path, pool: Pool) -> None:
    """Eleven items over two ranks: the sampler repeats one, the file does not."""
    pool.run(predict_on_rank, str(tmp_path))
    with np.load(tmp_path / "samples.npz") as archive:
        assert archive["arr_0"][:, 0].tolist() == list(range(11))
        assert archive["arr_1"].tolist() == [k % 3 for k in range(11)]
    assert not (tmp_path / ".samples").exists()


def test_other_predictions_are_refused(tmp_path: Path) -> None:
    class Plain(Echo):
        def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return batch["x"]

    with pytest.raises(TypeError, match="Plain returned Tensor"):
        predict(tmp_path, images([0, 1]), Plain())


@pytest.mark.parametrize("name", ["picture", "columns", "scale"])
def test_bad_arguments(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        SampleWriter(**{name: -1})
