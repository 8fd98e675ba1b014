"""Requests for samples, alone and through `zoo predict`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from zoo.callbacks import SampleWriter
from zoo.datamodules import ClassLabels
from zoo.flow import MLP, MeanFlow


def requests(data: ClassLabels) -> dict[str, torch.Tensor]:
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert max(len(batch["index"]) for batch in batches) <= data.batch_size
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_classes_take_turns() -> None:
    asked = requests(ClassLabels(23, num_classes=10, batch_size=4))
    assert asked["index"].equal(torch.arange(23)) and asked["label"].equal(torch.arange(23) % 10)


def test_given_labels_take_turns() -> None:
    asked = requests(ClassLabels(7, num_classes=10, labels=[3, 3, 9]))
    assert asked["label"].tolist() == [3, 3, 9, 3, 3, 9, 3]


def test_without_classes_there_is_no_label() -> None:
    asked = requests(ClassLabels(5, batch_size=2))
    assert set(asked) == {"index"} and asked["index"].equal(torch.arange(5))


@pytest.mark.parametrize("num_classes", [None, 3])
def test_predictions_do_not_depend_on_the_batch_size(num_classes: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MeanFlow(MLP(dim=2, width=8, depth=1, num_classes=num_classes))
    found = []
    for batch_size in (4, 11):
        folder = tmp_path / str(batch_size)
        trainer = Trainer(
            accelerator="cpu", default_root_dir=folder, logger=False, enable_progress_bar=False,
            callbacks=[SampleWriter()],
        )  # fmt: skip
        trainer.predict(model, datamodule=ClassLabels(11, num_classes, batch_size=batch_size))
        with np.load(folder / "samples.npz") as archive:
            assert ("arr_1" in archive.files) == (num_classes is not None)
            found.append(archive["arr_0"])
    assert found[0].shape == (11, 2)
    # Products of other batch sizes round in another order.
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_other_stages_are_refused(stage: str) -> None:
    with pytest.raises(ValueError, match=f"no data to {stage} on; it is for `zoo predict`"):
        ClassLabels(5).setup(stage)


def test_a_trainer_is_refused_too(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, max_steps=1)
    model = MeanFlow(MLP(dim=2, width=8, depth=1))
    with pytest.raises(ValueError, match="no data to fit on"):
        trainer.fit(model, datamodule=ClassLabels(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 1, "num_classes": 0}, "num_classes must be at least 1"),
        ({"count": 1, "labels": [0]}, "labels need num_classes"),
        ({"count": 1, "num_classes": 2, "labels": [2]}, r"labels must be classes 0 to 1, got \[2\]"),
        ({"count": 1, "num_classes": 2, "labels": []}, r"got \[\]"),
        ({"count": 1, "batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassLabels(**options)
