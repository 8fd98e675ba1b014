"""What every callback of the zoo is put through. A new callback is one more `CallbackCase` in
tests/components."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode
from toys import AttentionToy, ManualAttentionToy, ManualToy, ToyClassifier

from zoo.callbacks import ExactResume
from zoo.datamodules import Digits

STEPS = 17  # one epoch of 14 batches and a bit
HOSTS: dict[str, tuple[type[LightningModule], type[LightningModule]]] = {
    "classifier": (ToyClassifier, ManualToy),
    "attention": (AttentionToy, ManualAttentionToy),
}


@dataclass(frozen=True)
class CallbackCase:
    """How to make one callback.

    Args:
        active: Makes the callback as a user would, at work in a run of `STEPS` updates.
        inactive: Makes it so that its moment never comes.
        observer: It only looks: at work, too, it leaves training as it is.
        single: What the refusal of a second instance says, where a run can have one only.
        paths: The key of its state that names files: two runs in two folders differ in it.
        host: The model that it is tested in: a small MLP, or four equal attention blocks, for callbacks that
            are idle without stages or attention. Each has a variant under manual optimization.
    """

    active: Callable[[], Callback]
    inactive: Callable[[], Callback]
    observer: bool = True
    single: str | None = None
    paths: str | None = None
    host: Literal["classifier", "attention"] = "classifier"

    @property
    def automatic(self) -> type[LightningModule]:
        return HOSTS[self.host][0]

    @property
    def manual(self) -> type[LightningModule]:
        return HOSTS[self.host][1]


def fit(
    folder: Path,
    callbacks: Sequence[Callback] = (),
    module: type[LightningModule] = ToyClassifier,
    checkpoint: Path | None = None,
    **options: Any,
) -> LightningModule:
    """Trains a toy on digits for `STEPS` updates, with an average and a checkpoint after every update in
    ``folder``."""
    torch.manual_seed(0)
    model = module()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=[
            EMAWeightAveraging(decay=0.9),
            *callbacks,
            ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
        ],
        logger=CSVLogger(folder, name=None, version=""),
        log_every_n_steps=1,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, datamodule=Digits(batch_size=100, seed=0), ckpt_path=checkpoint, weights_only=True)
    return model


def assert_same_run(left: LightningModule, right: LightningModule) -> None:
    """Bitwise equal weights, and equal losses where both logged them."""
    for (name, a), (_, b) in zip(left.state_dict().items(), right.state_dict().items(), strict=True):
        assert torch.equal(a, b), f"{name} differs by up to {(a - b).abs().max()}"
    losses, others = left.losses, right.losses  # type: ignore[attr-defined]
    shared = min(len(losses), len(others))
    assert shared > 0
    assert torch.stack(losses[-shared:]).equal(torch.stack(others[-shared:]))  # type: ignore[arg-type]


class SyncCounter(TorchDispatchMode):
    """Counts what would make a host wait for a device: reading a value, or a shape that depends on values."""

    WAITS = (
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::masked_select",
        "aten::unique",
        "aten::is_nonzero",
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().split(".")[0] in self.WAITS
        return func(*args, **(kwargs or {}))


class CountSyncs(Callback):
    """Counts host syncs inside the batches of a run, the first and the last left out."""

    def __init__(self) -> None:
        self.counter = SyncCounter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1:
            self.counter.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == STEPS - 1:
            self.counter.__exit__(None, None, None)


def count_syncs(folder: Path, callbacks: Sequence[Callback], module: type[LightningModule]) -> int:
    """Host syncs in a run with these callbacks."""
    counter = CountSyncs()
    fit(folder, [*callbacks, counter], module)
    return counter.counter.count


class Baselines:
    """Runs without a callback: each is made once a session, and compared with the runs of all callbacks."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._runs: dict[str, LightningModule] = {}
        self._syncs: dict[type[LightningModule], int] = {}

    def run(self, module: type[LightningModule], **options: Any) -> LightningModule:
        key = f"{module.__name__} {sorted(options.items())}"
        if key not in self._runs:
            self._runs[key] = fit(self._folders.mktemp("baseline"), module=module, **options)
        return self._runs[key]

    def syncs(self, module: type[LightningModule]) -> int:
        if module not in self._syncs:
            self._syncs[module] = count_syncs(self._folders.mktemp("baseline"), [], module)
        return self._syncs[module]


def same(left: Any, right: Any) -> bool:
    """Equality of nested plain values and tensors."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.equal(right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


class CallbackTester:
    """The guarantees of every callback. Its test file has a class-scoped fixture `case`."""

    @pytest.fixture(scope="class")
    @classmethod
    def plain(cls, case: CallbackCase, baselines: Baselines) -> LightningModule:
        """A run without the callback."""
        return baselines.run(case.automatic)

    @pytest.fixture(scope="class")
    @classmethod
    def exact(
        cls, case: CallbackCase, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[LightningModule, Path]:
        """A run with the callback at work and everything that an exact resume needs."""
        folder = tmp_path_factory.mktemp("exact")
        return fit(folder, CallbackTester.with_exact_resume(case), case.automatic), folder

    @staticmethod
    def with_exact_resume(case: CallbackCase) -> list[Callback]:
        callback = case.active()
        return [callback] if isinstance(callback, ExactResume) else [ExactResume(), callback]

    def test_inactive_is_neutral(self, case: CallbackCase, plain: LightningModule, tmp_path: Path) -> None:
        assert_same_run(plain, fit(tmp_path, [case.inactive()], case.automatic))

    def test_observer_is_neutral_at_work(
        self, case: CallbackCase, plain: LightningModule, tmp_path: Path
    ) -> None:
        run = fit(tmp_path, [case.active()], case.automatic)
        if case.observer:
            assert_same_run(plain, run)
        else:
            with pytest.raises(AssertionError):
                assert_same_run(plain, run)

    @pytest.mark.parametrize("step", [1, 7, 14, 15])  # early, in mid-epoch, at an epoch's end, after it
    def test_resume_is_bitwise(
        self, case: CallbackCase, exact: tuple[LightningModule, Path], step: int, tmp_path: Path
    ) -> None:
        whole, folder = exact
        callbacks = CallbackTester.with_exact_resume(case)
        resumed = fit(tmp_path, callbacks, case.automatic, checkpoint=folder / f"step={step}.ckpt")
        assert len(resumed.losses) == STEPS - step  # type: ignore[arg-type]
        assert_same_run(whole, resumed)
        key = callbacks[-1].state_key
        states = [
            torch.load(path / f"step={STEPS}.ckpt", weights_only=True)["callbacks"].get(key)
            for path in (folder, tmp_path)
        ]
        for state in states if case.paths else []:
            assert state.pop(case.paths)
        assert same(*states)

    def test_two_instances(self, case: CallbackCase, plain: LightningModule, tmp_path: Path) -> None:
        both = [case.active(), case.active()]
        if case.single:
            with pytest.raises(Exception, match=case.single):
                fit(tmp_path, both, case.automatic)
        else:
            run = fit(tmp_path, both, case.automatic)
            if case.observer:
                assert_same_run(plain, run)

    @pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}], ids=str)
    def test_trainer_options(
        self, case: CallbackCase, baselines: Baselines, options: dict[str, Any], tmp_path: Path
    ) -> None:
        with_callback = fit(tmp_path, [case.active()], case.automatic, **options)
        if case.observer:
            assert_same_run(with_callback, baselines.run(case.automatic, **options))

    def test_manual_optimization(self, case: CallbackCase, baselines: Baselines, tmp_path: Path) -> None:
        with_callback = fit(tmp_path, [case.active()], case.manual)
        if case.observer:
            assert_same_run(with_callback, baselines.run(case.manual))

    def test_no_host_sync_per_step(self, case: CallbackCase, baselines: Baselines, tmp_path: Path) -> None:
        """At work a callback may read values at its moments; with none coming it must never wait for the
        device."""
        without = baselines.syncs(case.automatic)
        assert without > 0  # the optimizer's and the logger's own: the counter sees them
        assert count_syncs(tmp_path, [case.inactive()], case.automatic) == without
