"""Callbacks that refuse a second one of their kind, before anything is written."""

from pathlib import Path

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from zoo.callbacks import SampleWriter, TextWriter, TrajectoryWriter


@pytest.mark.parametrize("kind", [SampleWriter, TextWriter, TrajectoryWriter])
def test_a_second_writer_is_refused(kind: type[Callback], tmp_path: Path) -> None:
    """As ``--trainer.callbacks+ TextWriter`` adds one to the config's."""
    two = Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[kind(), kind()],
        enable_progress_bar=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"there are two {kind.__name__} callbacks, and .*: remove one"):
        two.predict(BoringModel())
    assert not list(tmp_path.iterdir())
