"""GracefulStop in a Trainer of one's own; tests/cli/test_resume.py has it in `zoo fit`."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import ToyClassifier

from zoo.callbacks import ExactResume, GracefulStop, Interrupted
from zoo.datamodules import Digits
from zoo.io import load_checkpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Send(Callback):
    """Sends signals to this process in the middle of a batch."""

    def __init__(self, step: int, *signums: int) -> None:
        self.step, self.signums = step, signums

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            for signum in self.signums:
                signal.raise_signal(signum)


def fit(folder: Path, *callbacks: Callback, checkpoint: Path | None = None, **options: Any) -> ToyClassifier:
    torch.manual_seed(0)
    model = ToyClassifier()
    trainer = Trainer(
        accelerator="cpu", max_steps=30, logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ExactResume(), *callbacks], **options,
    )  # fmt: skip
    trainer.fit(model, datamodule=Digits(batch_size=100, seed=0), ckpt_path=checkpoint, weights_only=True)
    return model


def handlers() -> list[Any]:
    return [signal.getsignal(signum) for signum in SIGNALS]


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("step", [0, 5, 13])  # the first batch, in mid-epoch, an epoch's last
def test_a_stopped_run_and_its_resume_are_the_whole_run(tmp_path: Path, signum: int, step: int) -> None:
    before, whole = handlers(), fit(tmp_path / "whole")
    with pytest.raises(Interrupted) as stop:
        fit(tmp_path, GracefulStop(), Send(step, signum))
    assert stop.value.code == 128 + signum
    assert str(stop.value) == f"stopped by {signal.Signals(signum).name}"
    assert handlers() == before
    checkpoint = tmp_path / "checkpoints/interrupted.ckpt"
    assert load_checkpoint(checkpoint)["global_step"] == step + 1
    resumed = fit(tmp_path, GracefulStop(), checkpoint=checkpoint)
    for name, value in whole.state_dict().items():
        assert value.equal(resumed.state_dict()[name])
    assert handlers() == before


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, GracefulStop(), Send(5, signal.SIGINT, signal.SIGINT))
    assert not isinstance(stop.value, Interrupted)
    assert not (tmp_path / "checkpoints/interrupted.ckpt").exists()


def test_accumulated_gradients_are_completed(tmp_path: Path) -> None:
    class SendInBatch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            if args[2] == 4:  # the first of a window of four
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        fit(tmp_path, GracefulStop(), SendInBatch(), accumulate_grad_batches=4)
    assert load_checkpoint(tmp_path / "checkpoints/interrupted.ckpt")["global_step"] == 2


def test_its_checkpoint_holds_what_others_saved_before(tmp_path: Path) -> None:
    """It stands before a ModelCheckpoint in the list, and saves after it."""
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(Interrupted):
        fit(tmp_path, GracefulStop(), Send(5, signal.SIGTERM), saver)
    state = load_checkpoint(tmp_path / "checkpoints/interrupted.ckpt")["callbacks"]
    [mine] = [value for key, value in state.items() if key.startswith("ModelCheckpoint")]
    assert mine["last_model_path"] == "" and Path(mine["best_model_path"]).name == "step=6.ckpt"


def test_outside_of_the_main_thread_it_does_nothing(tmp_path: Path) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            fit(tmp_path, GracefulStop())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == []


def test_one_is_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two GracefulStop callbacks, and a signal has one handler"):
        fit(tmp_path, GracefulStop(), GracefulStop())
