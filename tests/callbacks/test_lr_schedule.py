"""LRSchedule beyond the tester and test_wsds: the run's own length, and what a resume compares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_tester import assert_same_run
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from toys import ManualToy, ToyClassifier

from zoo.callbacks import WSDS, ExactResume, LRSchedule
from zoo.datamodules import Digits
from zoo.io import load_checkpoint, read_json_lines
from zoo.schedules import RunSchedule, constant, cosine, one_cycle, wsds

PEAK = 1e-2  # of the toys; their data have 14 batches a pass


class Factors(Callback):
    """Notes the first group's learning rate and weight decay in every update."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.weight_decay: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if optimizer is trainer.optimizers[0]:
            self.seen.append(float(optimizer.param_groups[0]["lr"]) / PEAK)
            self.weight_decay.append(float(optimizer.param_groups[0].get("weight_decay", 0.0)))


def fit(
    folder: Path,
    owner: LRSchedule,
    model: Callable[[], LightningModule] = ToyClassifier,
    checkpoint: Path | None = None,
    order: int = 1,
    **options: Any,
) -> tuple[LightningModule, Factors, Trainer]:
    torch.manual_seed(0)
    module, factors = model(), Factors()
    callbacks = [
        owner, factors, ExactResume(),
        ModelCheckpoint(folder / "all", "{step}", every_n_train_steps=1, save_top_k=-1),
    ][::order]  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", callbacks=callbacks, logger=CSVLogger(folder, name=None, version=""),
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=Digits(batch_size=100, seed=0), ckpt_path=checkpoint, weights_only=True)
    return module, factors, trainer


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / "events.jsonl"
    return [e for e in read_json_lines(file) if e["event"] == name] if file.is_file() else []


@pytest.mark.parametrize("make", [one_cycle, cosine, constant])
@pytest.mark.parametrize(
    ("options", "updates"),
    [
        ({"max_steps": 20}, 20),
        ({"max_epochs": 2}, 28),
        ({"max_epochs": 2, "max_steps": 20}, 20),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 10),
        ({"max_epochs": 2, "limit_train_batches": 5}, 10),
    ],
    ids=str,
)
def test_as_long_as_the_run(make: Any, options: dict[str, Any], updates: int, tmp_path: Path) -> None:
    owner = LRSchedule(make())
    _, factors, trainer = fit(tmp_path, owner, **options)
    assert factors.seen == pytest.approx(make(updates).factors(), rel=1e-15)
    assert trainer.global_step == updates and owner.schedule == make(updates)


def test_in_any_order(tmp_path: Path) -> None:
    one, factors, _ = fit(tmp_path / "first", LRSchedule(one_cycle()), max_steps=20)
    other, others, _ = fit(tmp_path / "last", LRSchedule(one_cycle()), order=-1, max_steps=20)
    assert factors.seen == others.seen
    assert_same_run(one, other)


def test_the_same_run_as_under_torchs_scheduler(tmp_path: Path) -> None:
    class OneCycle(ToyClassifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=PEAK)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=PEAK, total_steps=20, cycle_momentum=False
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    factors = Factors()
    trainer = Trainer(
        accelerator="cpu", callbacks=[factors], logger=False, max_steps=20, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(OneCycle(), datamodule=Digits(batch_size=100, seed=0))
    _, ours, _ = fit(tmp_path, LRSchedule(one_cycle()), max_steps=20)
    assert ours.seen == pytest.approx(factors.seen, abs=1e-12)


@pytest.mark.parametrize("kind", [LRSchedule, WSDS])
def test_a_trainer_without_limit_gets_the_schedules_length(kind: Any, tmp_path: Path) -> None:
    class Length(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            found.append(trainer.estimated_stepping_batches)

    found: list[float] = []
    trainer = Trainer(
        accelerator="cpu", callbacks=[Length(), kind(wsds([8, 20]))], logger=False, max_steps=-1,
        max_epochs=-1, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(ToyClassifier(), datamodule=Digits(batch_size=100, seed=0))
    assert found == [20] and trainer.global_step == trainer.max_steps == 20
    trainer.fit(ToyClassifier(), datamodule=Digits(batch_size=100, seed=0))  # another fit of the same Trainer
    assert trainer.max_steps == 20


def test_no_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the run has no length: give trainer\.max_steps, or"):
        fit(tmp_path, LRSchedule(cosine()), max_steps=-1, max_epochs=-1)
    with pytest.raises(ValueError, match="with several optimizers the number of updates is not known"):
        fit(tmp_path, LRSchedule(cosine()), ManualToy, max_steps=20)
    with pytest.raises(ValueError, match="known when a fit has begun"):
        LRSchedule(cosine()).schedule  # noqa: B018
    with pytest.raises(ValueError, match="a warm-up of 30 updates does not fit into the 20 updates"):
        fit(tmp_path, LRSchedule(cosine(warmup=30)), max_steps=20)


def test_one_owner(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LRSchedule and WSDS, and the learning rate has one owner: remove"):
        Trainer(
            accelerator="cpu", callbacks=[LRSchedule(cosine()), WSDS(wsds([20]))], logger=False, max_steps=20,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        ).fit(ToyClassifier(), datamodule=Digits(batch_size=100, seed=0))  # fmt: skip


@pytest.mark.parametrize("length", ["max_steps", "max_epochs"])
@pytest.mark.parametrize("step", [1, 14, 17])
def test_resume_is_bitwise(length: str, step: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {length: 28 if length == "max_steps" else 2}
    whole, factors, _ = fit(tmp_path / "whole", LRSchedule(one_cycle()), **options)
    checkpoint = tmp_path / "whole" / "all" / f"step={step}.ckpt"
    resumed, after, _ = fit(tmp_path / "again", LRSchedule(one_cycle()), checkpoint=checkpoint, **options)
    assert after.seen == factors.seen[step:]
    assert_same_run(whole, resumed)


def test_a_longer_run_has_another_past(tmp_path: Path) -> None:
    fit(tmp_path / "short", LRSchedule(one_cycle()), max_steps=10)
    checkpoint = tmp_path / "short" / "all" / "step=10.ckpt"
    with pytest.raises(
        ValueError, match="as long as the run: 10 updates then, 20 now; leave the length as it"
    ):
        fit(tmp_path / "refused", LRSchedule(one_cycle()), checkpoint=checkpoint, max_steps=20)
    owner = LRSchedule(one_cycle(), allow_new_past=True)
    _, after, _ = fit(tmp_path / "allowed", owner, checkpoint=checkpoint, max_steps=20)
    assert after.seen == pytest.approx(one_cycle(20).factors()[10:], rel=1e-15)
    [event] = events(tmp_path / "allowed", "past_changed")
    assert event["first"] == 1 and "another past was allowed: in update 1 the factor is" in event["message"]
    _, after, _ = fit(tmp_path / "peak", LRSchedule(constant()), max_steps=10)
    fit(tmp_path / "on", LRSchedule(constant()), checkpoint=tmp_path / "peak/all/step=10.ckpt", max_steps=20)


class Decayed(ToyClassifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=PEAK, weight_decay=0.5, betas=(0.8, 0.99))


@pytest.mark.parametrize("kind", [LRSchedule, WSDS])
def test_other_arguments_of_the_optimizer_must_be_allowed(kind: Any, tmp_path: Path) -> None:
    plan = wsds([10, 20])
    fit(tmp_path / "old", kind(plan), max_steps=20)
    checkpoint = tmp_path / "old" / "all" / "step=9.ckpt"
    says = r"betas was \[0.9, 0.999\] and is \[0.8, 0.99\], weight_decay was 0.01 and is 0.5. Give the old"
    with pytest.raises(ValueError, match=says):
        fit(tmp_path / "refused", kind(plan), Decayed, checkpoint, max_steps=20)
    owner = kind(plan, allow_new_optimizer_arguments=True)
    _, after, trainer = fit(tmp_path / "allowed", owner, Decayed, checkpoint, max_steps=20)
    assert set(after.weight_decay) == {0.5}
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.8, 0.99)
    [event] = events(tmp_path / "allowed", "optimizer_arguments_changed")
    assert "from update 9 on: betas was [0.9, 0.999]" in event["message"]


def test_arguments_are_compared_without_the_callbacks_state(tmp_path: Path) -> None:
    """Of a checkpoint that this callback has not seen the optimizer's own state tells."""
    fit(tmp_path / "old", LRSchedule(constant()), max_steps=10)
    checkpoint = tmp_path / "old" / "all" / "step=9.ckpt"
    state = load_checkpoint(checkpoint)
    del state["callbacks"]["LRSchedule"]
    torch.save(state, checkpoint)
    with pytest.raises(ValueError, match=r"weight_decay was 0.01 and is 0.5"):
        fit(tmp_path / "other", LRSchedule(constant()), Decayed, checkpoint, max_steps=20)
    _, after, _ = fit(tmp_path / "same", LRSchedule(constant()), ToyClassifier, checkpoint, max_steps=20)
    assert len(after.seen) == 11
    [event] = events(tmp_path / "same", "past_unknown")
    assert "was saved without LRSchedule, so its 9 updates are not checked" in event["message"]


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (ToyClassifier, {"max_epochs": 1}, "max_epochs 1 ends the run before budget 20 (update 20)"),
        (ToyClassifier, {"max_steps": 15}, "max_steps 15 ends the run before budget 20 (update 20)"),
        (ManualToy, {"max_steps": 30}, "the run ended at update 15, before budget 20 (update 20)"),
    ],
)
def test_budgets_that_are_not_reached(model: Any, options: Any, says: str, tmp_path: Path) -> None:
    fit(tmp_path, LRSchedule(wsds([10, 20])), model, **options)
    [event] = events(tmp_path, "budgets_missed")
    assert event["message"] == f"LRSchedule: {says}"


def test_a_function_of_the_number_of_updates(tmp_path: Path) -> None:
    owner = WSDS(RunSchedule(lambda updates: wsds([updates // 2, updates], warmup=2)))
    fit(tmp_path, owner, max_steps=20)
    assert [budget.post for budget in owner.schedule.budgets] == [10, 20]
    assert len(list((tmp_path / "checkpoints").glob("wsds-budget*.ckpt"))) == 4
