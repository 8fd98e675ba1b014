"""WSDS beyond the tester: what every update's learning rate is, files and ledger, resume, branches,
refusals."""

import csv
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_tester import assert_same_run
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from pool import Pool
from ranks import schedule_on_rank
from toys import ManualToy, ToyClassifier

from zoo.callbacks import WSDS, ExactResume
from zoo.datamodules import Digits
from zoo.io import load_checkpoint, read_json_lines
from zoo.schedules import (
    Decay,
    DecayOnDemand,
    Schedule,
    constant,
    read_ledger,
    weights_of_shape,
    wsd,
    wsds,
    wsm,
)

PEAK = 1e-2  # of the toys
PLAN = wsds(
    [10, 20, 40], warmup=4, decay=0.2
)  # decays from 8, 16 and 32; passes over the data end at 14 and 28


class Rates(Callback):
    """Notes the learning rate of every group in every update, and steals the process's life at one of
    them."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.seen: list[tuple[int, list[float]]] = []
        self.kill_at = kill_at
        self.betas: list[tuple[float, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if optimizer is not trainer.optimizers[0]:
            return
        if self.kill_at == trainer.global_step:
            os.kill(os.getpid(), signal.SIGKILL)
        groups = [group for each in trainer.optimizers for group in each.param_groups]
        self.seen.append((trainer.global_step, [float(group["lr"]) for group in groups]))
        self.betas.append(groups[0].get("betas"))

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.seen]

    @property
    def factors(self) -> list[float]:
        return [rates[0] / PEAK for _, rates in self.seen]


def fit(
    folder: Path,
    owner: WSDS | Schedule,
    *others: Callback,
    model: type[LightningModule] = ToyClassifier,
    checkpoint: Path | None = None,
    exact: bool = True,
    **options: Any,
) -> tuple[LightningModule, Rates]:
    """Trains a toy with dropout, averaged weights and a checkpoint after every update in ``folder/all``."""
    torch.manual_seed(0)
    module = model()
    rates = next((callback for callback in others if isinstance(callback, Rates)), Rates())
    owner = WSDS(owner) if isinstance(owner, Schedule) else owner
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[
            owner,  # before what it has to wait for: it finds its place by itself
            *[callback for callback in others if callback is not rates],
            rates,
            *([ExactResume(), EMAWeightAveraging(decay=0.9)] if exact else []),
            ModelCheckpoint(folder / "all", "{step}", every_n_train_steps=1, save_top_k=-1),
        ],
        logger=CSVLogger(folder, name=None, version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_steps": 40, "log_every_n_steps": 1} | options),
    )
    owner.fit(trainer, module, datamodule=Digits(batch_size=100, seed=0), ckpt_path=checkpoint)
    return module, rates


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[LightningModule, Rates, Path]:
    """A run of `PLAN` that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return *fit(folder, PLAN), folder


def test_every_update_has_its_rate(whole: tuple[LightningModule, Rates, Path]) -> None:
    _, rates, _ = whole
    assert rates.steps == list(range(40))
    assert rates.factors == pytest.approx(PLAN.factors(), rel=1e-15)


def test_files_and_ledger(whole: tuple[LightningModule, Rates, Path]) -> None:
    _, _, folder = whole
    entries = read_ledger(folder / "checkpoints")
    assert [(e.kind, e.budget, e.step, e.updates_spent) for e in entries] == [
        ("pre", 10, 8, 8), ("post", 10, 10, 10), ("pre", 20, 16, 16), ("post", 20, 20, 20),
        ("pre", 40, 32, 32), ("post", 40, 40, 40),
    ]  # fmt: skip
    assert [e.parent for e in entries] == [None, *[e.path for e in entries[:-1]]]
    assert entries[0].path == "wsds-budget10-pre-step8.ckpt"
    assert {e.schedule for e in entries} == {PLAN.hash}
    for number, entry in enumerate(entries):
        checkpoint = load_checkpoint(folder / "checkpoints" / entry.path)  # weights_only, as all loads
        state = checkpoint["callbacks"]["WSDS{'name': 'wsds'}"]
        assert checkpoint["global_step"] == entry.step and "current_model_state" in checkpoint
        assert Schedule.from_json(state["schedule"]) == PLAN
        assert [e["path"] for e in state["files"]["ledger"]] == [e.path for e in entries[: number + 1]]
    events = read_json_lines(folder / "events.jsonl")
    assert [e["event"] for e in events] == ["branch_point_saved", "budget_reached"] * 3
    assert all(Path(e["path"]).is_file() for e in events)


def test_monitors_see_the_rate_in_any_order(tmp_path: Path) -> None:
    for place in (0, 1):
        callbacks: list[Callback] = [LearningRateMonitor(), WSDS(PLAN)]
        trainer = Trainer(
            accelerator="cpu", max_steps=40, log_every_n_steps=1, enable_progress_bar=False,
            enable_model_summary=False, logger=CSVLogger(tmp_path / str(place), name=None, version=""),
            callbacks=callbacks if place else callbacks[::-1],
        )  # fmt: skip
        trainer.fit(ToyClassifier(), datamodule=Digits(batch_size=100, seed=0))
        with open(tmp_path / str(place) / "metrics.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["lr-AdamW"]]
        found = {int(row["step"]): float(row["lr-AdamW"]) / PEAK for row in rows}
        assert found == pytest.approx(dict(enumerate(PLAN.factors())), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},  # 14 batches a pass: the last update of each has two
        {"limit_train_batches": 5},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {"gradient_clip_val": 0.1},
        {"max_steps": -1, "max_epochs": 100},
    ],
    ids=str,
)
def test_options_of_the_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    _, rates = fit(tmp_path, PLAN, **options)
    assert rates.steps == list(range(40))
    assert rates.factors == pytest.approx(PLAN.factors(), rel=1e-15)
    assert len(read_ledger(tmp_path / "checkpoints")) == 6


class TwoGroups(ToyClassifier):
    def configure_optimizers(self) -> Any:
        weights = [p for p in self.parameters() if p.ndim > 1]
        biases = [p for p in self.parameters() if p.ndim == 1]
        return torch.optim.AdamW([{"params": weights}, {"params": biases, "lr": PEAK / 7}], lr=PEAK)


def test_groups_keep_their_ratio(tmp_path: Path) -> None:
    _, rates = fit(tmp_path, PLAN, model=TwoGroups)
    for factor, (_, (first, second)) in zip(PLAN.factors(), rates.seen, strict=True):
        assert (first, second) == pytest.approx((PEAK * factor, PEAK / 7 * factor), rel=1e-15)


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    """``global_step`` counts both; the schedule counts the first one's, also after a resume."""
    whole, rates = fit(tmp_path / "whole", PLAN, model=ManualToy, max_steps=80)
    assert rates.steps == list(range(0, 80, 2))
    assert rates.factors == pytest.approx(PLAN.factors(), rel=1e-15)
    assert all(one == other for _, (one, other) in rates.seen)
    entries = read_ledger(tmp_path / "whole" / "checkpoints")
    assert [entry.step for entry in entries] == [8, 10, 16, 20, 32, 40]
    checkpoint = tmp_path / "whole" / "checkpoints" / entries[2].path
    resumed, after = fit(tmp_path / "resumed", PLAN, model=ManualToy, max_steps=80, checkpoint=checkpoint)
    assert after.seen == rates.seen[16:]
    assert_same_run(whole, resumed)


class Capturable(ToyClassifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=torch.tensor(PEAK, dtype=torch.float64))


def test_tensors_are_filled_in_place(tmp_path: Path) -> None:
    class Same(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            found.add(id(trainer.optimizers[0].param_groups[0]["lr"]))

    found: set[int] = set()
    _, rates = fit(tmp_path, PLAN, Same(), model=Capturable)
    assert len(found) == 1
    assert rates.factors == pytest.approx(PLAN.factors(), rel=1e-12)


# Updates done when the run is cut: in the warm-up, in the stable phase, at the first decay's beginning,
# within it, before its last update, at the jump, one after it; at a pass's end, and at the beginning
# and end of others.
@pytest.mark.parametrize("step", [2, 6, 8, 9, 10, 11, 14, 16, 28, 39])
def test_resume_is_bitwise(step: int, whole: tuple[LightningModule, Rates, Path], tmp_path: Path) -> None:
    module, rates, folder = whole
    resumed, after = fit(tmp_path, PLAN, checkpoint=folder / "all" / f"step={step}.ckpt")
    assert after.seen == rates.seen[step:]
    assert_same_run(module, resumed)
    one, other = (load_checkpoint(path / "all" / "step=40.ckpt") for path in (folder, tmp_path))
    for left, right in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        assert left["param_groups"] == right["param_groups"]
        for number, moments in left["state"].items():
            assert all(torch.equal(moments[key], right["state"][number][key]) for key in moments)


def _killed(folder: str, step: int) -> None:
    torch.set_num_threads(1)
    fit(Path(folder), PLAN, Rates(kill_at=step))


@pytest.mark.parametrize(
    "step", [2, 6, 8, 9, 10]
)  # the update that dies: warm-up, stable, first, last, the jump
def test_resume_after_sigkill(step: int, whole: tuple[LightningModule, Rates, Path], tmp_path: Path) -> None:
    module, rates, _ = whole
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(str(tmp_path), step))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    checkpoint = tmp_path / "all" / f"step={step}.ckpt"
    assert {entry.step for entry in read_ledger(tmp_path / "checkpoints")} == {
        s for s in (8, 10) if s <= step
    }
    resumed, after = fit(tmp_path, PLAN, checkpoint=checkpoint)
    assert after.seen == rates.seen[step:]
    assert_same_run(module, resumed)
    assert [entry.step for entry in read_ledger(tmp_path / "checkpoints")] == [8, 10, 16, 20, 32, 40]


def test_a_branch_is_a_run_from_scratch(whole: tuple[LightningModule, Rates, Path], tmp_path: Path) -> None:
    """From the state before the second decay, by another schedule alone: here WSD for 36 updates."""
    _, _, folder = whole
    branch = wsds([10, 36], warmup=4, decay=Decay([2, 8], of="explicit"))
    scratch, rates = fit(tmp_path / "scratch", branch)
    checkpoint = folder / "checkpoints" / "wsds-budget20-pre-step16.ckpt"
    branched, after = fit(tmp_path / "branch", branch, checkpoint=checkpoint)
    assert after.seen == rates.seen[16:] and len(after.seen) == 20
    assert_same_run(scratch, branched)
    entries = read_ledger(tmp_path / "branch" / "checkpoints")
    assert entries[0].parent == str(checkpoint) and entries[1].parent == entries[0].path


def test_the_tree_of_wsd(tmp_path: Path) -> None:
    """Every budget's model and the trunk are those of a run for that budget alone."""
    tree = wsd([10, 20, 40], warmup=4, decay=0.2)
    module, rates = fit(tmp_path / "tree", tree)
    assert rates.steps == [*range(10), *range(8, 20), *range(16, 40)]
    entries = read_ledger(tmp_path / "tree" / "checkpoints")
    assert [(e.kind, e.budget, e.step, e.updates_spent) for e in entries] == [
        ("pre", 10, 8, 8), ("post", 10, 10, 10), ("pre", 20, 16, 18), ("post", 20, 20, 22),
        ("pre", 40, 32, 38), ("post", 40, 40, 46),
    ]  # fmt: skip
    assert entries[-1].updates_spent == tree.total_updates
    parents = {entry.path: entry.parent for entry in entries}
    assert parents["wsds-budget20-pre-step16.ckpt"] == "wsds-budget10-pre-step8.ckpt"
    for total in (10, 20, 40):
        alone, _ = fit(tmp_path / str(total), wsd([total], warmup=4, decay=0.2))
        name = next(entry.path for entry in entries if (entry.budget, entry.kind) == (total, "post"))
        saved = load_checkpoint(tmp_path / "tree" / "checkpoints" / name)
        for key, value in alone.state_dict().items():  # after a fit these are the averaged weights
            assert torch.equal(value, saved["state_dict"][key])
    rows = [row.split(",") for row in (tmp_path / "tree" / "metrics.csv").read_text().splitlines()]
    sub_run = rows[0].index("wsds/sub_run")
    assert [float(row[sub_run]) for row in rows[1:] if row[sub_run]] == [0.0] * 10 + [1.0] * 12 + [2.0] * 24
    assert torch.stack(module.losses[-24:]).equal(torch.stack(alone.losses[-24:]))


@pytest.mark.parametrize("at", [(9, 0), (10, 0), (18, 1)])
def test_the_tree_resumes_on_any_leg(at: tuple[int, int], tmp_path: Path) -> None:
    step, sub_run = at
    tree = wsd([10, 20, 30], warmup=4, decay=0.2)
    whole, rates = fit(tmp_path / "whole", tree)
    assert len(rates.seen) == 10 + 12 + 14
    kept = (
        tmp_path / "kept.ckpt"
    )  # sub-runs repeat update numbers, and Lightning then counts the file's version up
    found = [load_checkpoint(path) for path in (tmp_path / "whole" / "all").glob(f"step={step}*.ckpt")]
    [saved] = [c for c in found if c["callbacks"]["WSDS{'name': 'wsds'}"]["sub_run"] == sub_run]
    torch.save(saved, kept)
    resumed, after = fit(tmp_path / "whole", tree, checkpoint=kept)
    first = [0, 10][sub_run] + step - [0, 8][sub_run]
    assert after.seen == rates.seen[first:]
    assert_same_run(whole, resumed)


def test_without_its_own_fit_the_first_leg_is_run(tmp_path: Path) -> None:
    owner = WSDS(wsd([10, 20], decay=0.2), dirpath=str(tmp_path / "mine"))
    trainer = Trainer(
        accelerator="cpu", max_steps=20, callbacks=[owner], logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(ToyClassifier(), datamodule=Digits(batch_size=100, seed=0))
    assert trainer.global_step == 10
    assert owner.next_sub_run() == str(tmp_path / "mine" / "wsds-budget10-pre-step8.ckpt")


def test_the_future_may_change(whole: tuple[LightningModule, Rates, Path], tmp_path: Path) -> None:
    _, _, folder = whole
    longer = wsds([10, 20, 30, 60], warmup=4, decay=0.2)
    _, after = fit(tmp_path, longer, checkpoint=folder / "all" / "step=22.ckpt", max_steps=60)
    assert after.factors == pytest.approx(longer.factors()[22:], rel=1e-15)
    assert [entry.step for entry in read_ledger(tmp_path / "checkpoints")] == [24, 30, 48, 60]


def test_the_past_may_not(whole: tuple[LightningModule, Rates, Path], tmp_path: Path) -> None:
    _, _, folder = whole
    other = wsds([12, 20, 40], warmup=4, decay=0.2)
    checkpoint = folder / "all" / "step=22.ckpt"
    with pytest.raises(ValueError, match=r"in update 8 its factor is 1, and the checkpoint's run had 0.55"):
        fit(tmp_path, other, checkpoint=checkpoint)
    assert not (tmp_path / "checkpoints").exists()
    assert other.first_difference(PLAN, 8) is None  # up to there it would have been taken
    fit(tmp_path / "early", other, checkpoint=folder / "all" / "step=8.ckpt")
    _, after = fit(tmp_path / "said", WSDS(other, allow_new_past=True), checkpoint=checkpoint)
    assert after.factors == pytest.approx(other.factors()[22:], rel=1e-15)


class HalfPeak(ToyClassifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=PEAK / 2)


def test_a_new_peak_must_be_said(whole: tuple[LightningModule, Rates, Path], tmp_path: Path) -> None:
    _, _, folder = whole
    checkpoint = folder / "all" / "step=22.ckpt"
    with pytest.raises(
        ValueError, match=r"had the peak learning rate 0.01, the config has 0.005: give the old one"
    ):
        fit(tmp_path, PLAN, model=HalfPeak, checkpoint=checkpoint)
    _, after = fit(tmp_path, WSDS(PLAN, allow_new_peak=True), model=HalfPeak, checkpoint=checkpoint)
    assert after.factors == pytest.approx([factor / 2 for factor in PLAN.factors()[22:]], rel=1e-15)
    [event] = [e for e in read_json_lines(tmp_path / "events.jsonl") if e["event"] == "peak_changed"]
    assert event["message"] == "wsds: peak learning rate 0.01 until update 22, 0.005 from there on"


def test_a_checkpoint_that_no_wsds_has_seen(tmp_path: Path) -> None:
    """A run at a constant rate, without this callback, gets its decay."""

    def stock(folder: Path, **options: Any) -> Trainer:
        return Trainer(
            accelerator="cpu", max_steps=20, logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, **options,
        )  # fmt: skip

    torch.manual_seed(0)
    first = stock(tmp_path / "stock", callbacks=[ModelCheckpoint(tmp_path / "stock")])
    first.fit(ToyClassifier(), datamodule=Digits(batch_size=100, seed=0))
    [checkpoint] = (tmp_path / "stock").glob("*.ckpt")
    _, rates = fit(tmp_path, wsd([30], decay=0.4), checkpoint=checkpoint, exact=False, max_steps=30)
    assert rates.factors == pytest.approx(wsd([30], decay=0.4).factors()[20:], rel=1e-15)
    [event] = [e for e in read_json_lines(tmp_path / "events.jsonl") if e["event"] == "past_unknown"]
    assert "was saved without WSDS, so its 20 updates are not checked" in event["message"]


class WithScheduler(ToyClassifier):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=PEAK)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5)]


class NoBetas(ToyClassifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=PEAK)


@pytest.mark.parametrize(
    ("owner", "model", "options", "says"),
    [
        (lambda: WSDS(PLAN), WithScheduler, {}, "two owners, WSDS and StepLR of WithScheduler: leave out"),
        (lambda: WSDS(PLAN, beta2_in_decay=0.99), NoBetas, {}, "needs optimizers with betas, got SGD"),
        (
            lambda: WSDS(wsds([10], decay=Decay(min_ratio=0.0)), stop_at_end=False),
            ToyClassifier,
            {"max_steps": 20},
            "max_steps 20 goes beyond the schedule's 10 updates, whose last learning rate is 0",
        ),
    ],
)  # fmt: skip
def test_refusals_before_the_first_update(
    owner: Any, model: Any, options: Any, says: str, tmp_path: Path
) -> None:
    rates = Rates()
    with pytest.raises(ValueError, match=says):
        fit(tmp_path, owner(), rates, model=model, **options)
    assert rates.seen == [] and not (tmp_path / "checkpoints").exists()


def test_refusals_at_construction() -> None:
    with pytest.raises(ValueError, match="beta2_in_decay must be in"):
        WSDS(PLAN, beta2_in_decay=1.0)
    with pytest.raises(ValueError, match="needs a schedule without branches"):
        WSDS(wsd([10, 20]), decay_on_demand=DecayOnDemand())
    with pytest.raises(ValueError, match="nothing to branch from"):
        WSDS(wsd([10, 20]), save_pre=False)
    with pytest.raises(ValueError, match="a file to look for or a monitor"):
        DecayOnDemand(file=None)
    with pytest.raises(ValueError, match="patience and every must be at least 1"):
        DecayOnDemand(patience=0)
    with pytest.raises(ValueError, match="decay must be a share between 0 and 1"):
        DecayOnDemand(decay=1.0)
    with pytest.raises(ValueError, match="never reaches zero"):
        DecayOnDemand(decay=Decay(shape="inv", min_ratio=0.0))


def test_beyond_the_plan_and_before_its_end(tmp_path: Path) -> None:
    _, stopped = fit(tmp_path / "stop", wsds([20], decay=0.2), max_steps=30)
    assert len(stopped.seen) == 20
    _, held = fit(tmp_path / "hold", WSDS(wsds([20], decay=0.2), stop_at_end=False), max_steps=30)
    assert held.factors[20:] == pytest.approx([0.1] * 10)
    peak = WSDS(wsds([20], decay=0.2, after_end="peak"), stop_at_end=False)
    assert fit(tmp_path / "peak", peak, max_steps=30)[1].factors[20:] == pytest.approx([1.0] * 10)
    _, cut = fit(tmp_path / "cut", wsds([10, 20], decay=0.2), max_steps=15)
    assert len(cut.seen) == 15
    [event] = [
        e for e in read_json_lines(tmp_path / "cut" / "events.jsonl") if e["event"] == "budgets_missed"
    ]
    assert event["message"] == "wsds: max_steps 15 ends the run before budget 20 (update 20)"


def test_beta2_in_decays_alone(whole: tuple[LightningModule, Rates, Path], tmp_path: Path) -> None:
    plan, owner = wsds([20, 40], decay=0.2), lambda: WSDS(wsds([20, 40], decay=0.2), beta2_in_decay=0.9999)
    module, rates = fit(tmp_path / "whole", owner())
    expected = [(0.9, 0.9999 if plan.phase(k) == "decay" else 0.999) for k in range(40)]
    assert rates.betas == expected
    for step in (18, 20):
        checkpoint = tmp_path / "whole" / "all" / f"step={step}.ckpt"
        resumed, after = fit(tmp_path / str(step), owner(), checkpoint=checkpoint)
        assert after.betas == expected[step:]
        assert_same_run(module, resumed)


class Touch(Callback):
    """Somebody who asks for a decay, after some update."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.path.touch()


@pytest.mark.parametrize("then", ["stop", "continue"])
def test_decay_on_demand_by_file(then: Any, tmp_path: Path) -> None:
    def owner() -> WSDS:
        demand = DecayOnDemand(every=5, decay=0.25, then=then)
        return WSDS(constant(40, warmup=4), decay_on_demand=demand)

    flag = tmp_path / "whole" / "decay.now"
    module, rates = fit(tmp_path / "whole", owner(), Touch(flag, 12))
    expected = constant(40, warmup=4).with_decay(15, 5, then=then)  # 5 of 20 updates are a quarter
    assert rates.factors == pytest.approx(expected.factors(), rel=1e-15)
    assert len(rates.seen) == (20 if then == "stop" else 40) and not flag.exists()
    entries = read_ledger(tmp_path / "whole" / "checkpoints")
    assert [(e.kind, e.budget, e.step) for e in entries] == [("pre", 20, 15), ("post", 20, 20)]
    for step in (14, 15, 17):  # before it was asked for, as it begins, within it
        checkpoint = tmp_path / "whole" / "all" / f"step={step}.ckpt"
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / "decay.now").touch() if step == 14 else None
        resumed, after = fit(folder, owner(), checkpoint=checkpoint)
        assert after.seen == rates.seen[step:]
        assert_same_run(module, resumed)


class Plateau(Callback):
    """Logs a number that grows for a while, and its negative."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        pl_module.log("gap", float(min(trainer.global_step, 12)))
        pl_module.log("hill", 6.0 - min(trainer.global_step, 12))  # through zero, as the gap of an average


@pytest.mark.parametrize(("monitor", "mode"), [("gap", "max"), ("hill", "min")])
def test_decay_on_demand_by_a_plateau(monitor: str, mode: Any, tmp_path: Path) -> None:
    demand = DecayOnDemand(file=None, monitor=monitor, mode=mode, patience=3, every=2, decay=0.2)
    _, rates = fit(tmp_path, WSDS(constant(40), decay_on_demand=demand), Plateau())
    # Looks after 12 (the last maximum), 14, 16 and 18 updates.
    expected = constant(40).with_decay(18, 5)
    assert rates.factors == pytest.approx(expected.factors()[: len(rates.seen)], rel=1e-15)
    assert len(rates.seen) == 23
    owner = WSDS(constant(40), decay_on_demand=DecayOnDemand(file=None, monitor="height", every=2))
    with pytest.raises(ValueError, match="watches 'height', which nothing has logged by update 2; there is"):
        fit(tmp_path / "none", owner, Plateau())


def test_merges(tmp_path: Path) -> None:
    """WSM: the mean of snapshots of the trunk, also of a run that was resumed elsewhere within the window."""
    plan = wsm([20, 40], warmup=4, snapshots=4, decay=Decay(0.6, shape="1-sqrt", min_ratio=0.0))
    fit(tmp_path / "whole", plan)
    folder = tmp_path / "whole" / "checkpoints"
    entries = read_ledger(folder)
    assert [(e.kind, e.budget, e.step) for e in entries] == [
        ("snapshot", 20, 8), ("snapshot", 20, 12), ("snapshot", 20, 16), ("pre", 20, 20), ("merged", 20, 20),
        ("snapshot", 40, 24), ("snapshot", 40, 32), ("pre", 40, 40), ("merged", 40, 40),
    ]  # fmt: skip
    weights = weights_of_shape("1-sqrt", 4)
    for total, steps in ((20, (8, 12, 16, 20)), (40, (16, 24, 32, 40))):
        states = [load_checkpoint(tmp_path / "whole" / "all" / f"step={step}.ckpt") for step in steps]
        merged = load_checkpoint(folder / f"wsds-budget{total}-merged-step{total}.ckpt")
        for name, value in merged["state_dict"].items():
            # The trunk's own weights, not their running average, which these checkpoints have under
            # state_dict.
            parts = [state["current_model_state"][name].double() for state in states]
            mean = sum(weight * part for weight, part in zip(weights, parts, strict=True))
            torch.testing.assert_close(value, mean.float(), rtol=1e-6, atol=1e-8)
    checkpoint = tmp_path / "whole" / "all" / "step=29.ckpt"
    fit(tmp_path / "elsewhere", plan, checkpoint=checkpoint)
    again = load_checkpoint(tmp_path / "elsewhere" / "checkpoints" / "wsds-budget40-merged-step40.ckpt")
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in merged["state_dict"].items())
    (folder / "wsds-budget20-snapshot-step16.safetensors").unlink()
    with pytest.raises(
        ValueError, match="the merge at update 40 needs snapshots of the updates 16, which the"
    ):
        fit(tmp_path / "lost", plan, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="a merge without its last checkpoint"):
        WSDS(plan, save_pre=False)


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir(parents=True)
    (tmp_path / "checkpoints" / "ledger.json").write_text("{}")
    with pytest.raises(ValueError, match=r"ledger.json is not a ledger .*: move it away"):
        fit(tmp_path, PLAN)


def test_state_is_plain(whole: tuple[LightningModule, Rates, Path]) -> None:
    _, _, folder = whole
    state = load_checkpoint(folder / "all" / "step=40.ckpt")["callbacks"]["WSDS{'name': 'wsds'}"]
    assert json.loads(json.dumps(state)) == state


@pytest.mark.slow
def test_two_processes_agree(pool: Pool, tmp_path: Path) -> None:
    """The same rates on both ranks, one ledger, and a decay that one rank was asked for."""
    (rates, weights), (others, other_weights) = pool.run(schedule_on_rank, str(tmp_path))
    assert rates == others and len(rates) == 20
    expected = constant(40).with_decay(16, 4)
    assert rates == pytest.approx([PEAK * factor for factor in expected.factors()], rel=1e-15)
    for name, value in weights.items():
        assert torch.equal(value, other_weights[name])
    assert [entry.step for entry in read_ledger(tmp_path / "checkpoints")] == [16, 20]
