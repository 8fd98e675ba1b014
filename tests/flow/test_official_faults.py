"""The faults of the official code of CMT and of its mean-flow branch, one by one: ours has none of them.

Each test is of what a user would see. The parts have closer tests of their own beside it.
"""

import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo import rng
from zoo.callbacks import ExactResume, SampleReport
from zoo.datamodules import Digits
from zoo.flow import (
    CMT,
    MLP,
    ConsistencyModel,
    DiscreteConsistency,
    DiT,
    Euler,
    EvenGrid,
    FiniteDifference,
    Gaussian,
    LinearPath,
    MeanFlow,
    RatioLevels,
    SquaredDistance,
    Teacher,
    VarianceExplodingPath,
    VelocityPrediction,
)
from zoo.flow.cmt import draw_pairs, mean_flow_pair_error, take_pairs

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False, "limit_val_batches": 0,
}  # fmt: skip


class Field:
    """The flow of N(0, s^2) with s of each class, as a teacher."""

    shape = (2,)

    def __init__(self, path: Any, spreads: tuple[float, ...] = (0.5,)) -> None:
        self.path, self.spreads = path, torch.tensor([*spreads, 1.0])
        self.num_classes = len(spreads) if len(spreads) > 1 else None
        self.labels: list[Tensor | None] = []

    def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.labels.append(label)
        variance = self.spreads[torch.zeros(len(z)).long() if label is None else label] ** 2
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        rates = self.path.alpha_slope(t, t) * alpha, self.path.sigma_slope(t, t) * sigma
        factor = (rates[0] * variance + rates[1]) / (alpha**2 * variance + sigma**2)
        return factor.to(z.dtype)[:, None] * z

    def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        raise AssertionError("Euler asks for velocities")


def train(module: LightningModule, batches: list[Any], **arguments: Any) -> Trainer:
    trainer = Trainer(**{**QUIET, "max_steps": len(batches), "max_epochs": -1, **arguments})
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return trainer


def student(two_times: bool = True, num_classes: int | None = None) -> MLP:
    torch.manual_seed(0)
    return MLP(2, width=16, depth=1, num_classes=num_classes, two_times=two_times)


def test_1_conditional_mid_training_learns_each_class() -> None:
    """There labels are cut to the trajectories, not repeated for their pairs, and kept from the teacher."""
    field = Field(LinearPath(), (0.2, 2.0))
    teacher = Teacher.of(field, solver=Euler(), steps=8)
    module = CMT(
        student(num_classes=2), teacher, label_dropout=0.0, seed=0,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    )  # fmt: skip
    index = torch.arange(32)
    batches = [{"label": index % 2, "index": index + 32 * k} for k in range(400)]
    train(module, batches)
    asked = field.labels[-1]
    assert asked is not None and asked.equal(index % 2)
    count = 2000
    labels = torch.arange(count) % 2
    samples = module.sample(labels)
    found = torch.stack([samples[labels == number].std() for number in range(2)])
    # The spreads that eight Euler steps give, of which one map for both classes could have one only.
    noise = rng.normal(0, 0, torch.arange(count), (2,), "other")
    exact = teacher.trajectory(noise, labels).states[-1]
    expected = torch.stack([exact[labels == number].std() for number in range(2)])
    torch.testing.assert_close(found, expected, rtol=0.12, atol=0.02)


def test_2_a_batch_smaller_than_the_number_of_steps_trains() -> None:
    """There a process with fewer images than solver steps has an empty batch."""
    module = CMT(student(), Teacher.of(Field(LinearPath()), solver=Euler(), steps=16), seed=0)
    before = [parameter.clone() for parameter in module.parameters()]
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    trainer = train(module, [{"index": torch.tensor([0])}])
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    assert any(not new.equal(old) for new, old in zip(module.parameters(), before, strict=True))


@pytest.mark.slow
def test_3_a_resume_has_the_average_the_draws_and_the_data(tmp_path: Path) -> None:
    """There the state and the snapshot with the average are saved at different times, and the draws not."""

    def run(checkpoint: Path | None = None) -> dict[str, Any]:
        torch.manual_seed(0)
        network = DiT(8, 1, 4, width=16, depth=1, heads=2, dropout=0.1)
        module = MeanFlow(network, seed=0, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
        callbacks = [EMAWeightAveraging(decay=0.9), ExactResume(), saving]
        trainer = Trainer(**{**QUIET, "max_steps": 6, "callbacks": callbacks, "enable_checkpointing": True})
        trainer.fit(module, datamodule=Digits(batch_size=64, seed=0), ckpt_path=checkpoint, weights_only=True)
        return torch.load(saving.best_model_path, weights_only=True)

    whole = run()
    assert whole["global_step"] == 6
    resumed = run(tmp_path / "step=3.ckpt")
    for name in ("state_dict", "current_model_state"):  # the average, and the weights beside it
        for key, value in whole[name].items():
            assert value.equal(resumed[name][key]), (name, key)
    first, second = (states["optimizer_states"][0]["state"] for states in (whole, resumed))
    assert all(first[key]["exp_avg"].equal(second[key]["exp_avg"]) for key in first)


def test_4_easy_consistency_distillation_is_there() -> None:
    """The file of CD there is called by nothing, and of ECD's loss there is none.

    At the exact map an exact teacher leaves an error of its one Euler step, of fourth order in the gap as a
    square; without a teacher (ECT) the variance of data and noise stays, of second order.
    """
    path, errors = VarianceExplodingPath(), {}

    class Exact(nn.Module):
        """The output at which EDM's preconditioning is the exact map of N(0, .5^2)."""

        shape, num_classes, two_times = (2,), None, False

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, z: Tensor, t: Tensor, h: None = None, label: None = None) -> Tensor:
            s = (4 * t).exp()[:, None]
            scale = (s**2 + 0.25).sqrt()  # z is x / scale
            return (0.5 / scale - 0.25 / scale**2) * z * scale / (0.5 * s / scale) + 0 * self.unused

    for q in (16.0, 64.0):
        for teacher in (None, Teacher.of(Field(path), solver=Euler())):
            objective = DiscreteConsistency(RatioLevels(0.0, 1.0, q=q, k=0.0), SquaredDistance(), "none")
            module = ConsistencyModel(Exact(), objective=objective, teacher=teacher, seed=0)
            module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
            index = torch.arange(4000)
            x = 0.5 * rng.normal(7, 0, index, (2,))
            trainer = train(module, [{"x": x, "index": index}])
            errors[q, teacher is None] = float(trainer.callback_metrics["train/mse"])
    assert errors[16.0, False] < 1e-2 * errors[16.0, True]
    assert math.log(errors[16.0, True] / errors[64.0, True], 4) == pytest.approx(2, abs=0.3)
    assert math.log(errors[16.0, False] / errors[64.0, False], 4) == pytest.approx(4, abs=0.4)


@pytest.mark.slow
def test_5_scores_say_of_how_many_steps_they_are(tmp_path: Path) -> None:
    """There the score that is printed last, without saying so, is of two steps."""

    class Perfect(LightningModule):
        """Gives real digits in two steps, and gray in one."""

        def __init__(self, data: LightningDataModule) -> None:
            super().__init__()
            self.data = data

        def test_step(self, batch: Any, batch_idx: int) -> None: ...

        def sample(self, labels: Tensor, steps: int, seed: int, index: Tensor) -> Tensor:
            digits = self.data.test_set.columns["x"][index]  # type: ignore[attr-defined]
            return digits if steps == 2 else torch.zeros_like(digits)

    data = Digits(batch_size=128, seed=0)
    module = Perfect(data)
    report = SampleReport(steps=[1, 2], replicates=2)
    trainer = Trainer(**QUIET | {"callbacks": [report], "default_root_dir": tmp_path})
    [logged] = trainer.test(module, datamodule=data, verbose=False)
    written = json.loads((tmp_path / "sample_report.json").read_text())
    floor = written["2-step"]["frechet_floor"]["value"]  # of held-out digits
    assert written["2-step"]["frechet"]["value"] == pytest.approx(floor, rel=1e-5)
    assert written["1-step"]["frechet"]["value"] > 10 * floor
    for steps in ("1-step", "2-step"):
        assert logged[f"test/{steps}/frechet"] == pytest.approx(written[steps]["frechet"]["value"], rel=1e-6)


def test_6_no_device_and_no_generator_is_written_into_the_code() -> None:
    """There CUDA is named throughout, and its generator alone is shared; and there is no license."""
    named = [
        f"{path.name}: {line.strip()}"
        for path in Path(str(files("zoo"))).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\.cuda\(|device=[\"']cuda|torch\.cuda\.", line)
    ]
    assert not named
    losses = []
    for seed in (1, 2):  # of the global generator, on which no draw depends
        module = ConsistencyModel(student(two_times=False), seed=0)
        torch.manual_seed(seed)
        batch = {"x": rng.normal(3, 0, torch.arange(8), (2,)), "index": torch.arange(8)}
        losses.append(float(train(module, [batch]).callback_metrics["train/loss"]))
    assert losses[0] == losses[1]
    license = Path(__file__).parents[2] / "LICENSE"
    assert "Apache License" in license.read_text()


def test_7_states_are_labeled_with_the_times_of_the_solver() -> None:
    """There the states of a shifted grid are labeled with even times, by up to .45 off.

    On a straight flow, the average velocity between any two states is one number, if the times are right.
    """

    class Straight(Field):
        def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return torch.full_like(z, 3.0)

    grid = EvenGrid(end=0.001, shift=math.sqrt(48.0))
    teacher = Teacher.of(Straight(LinearPath()), solver=Euler(), grid=grid, steps=15)
    index = torch.arange(4)
    trajectory = teacher.trajectory(rng.normal(0, 0, index, (2,)))
    printed = [1, .9898, .9783, .9652, .9502, .9328, .9124, .8881, .8587, .8224, .7765, .7166, .6351, .5178,
               .3344, .0069]  # fmt: skip
    torch.testing.assert_close(trajectory.times, torch.tensor(printed).double(), rtol=0, atol=5e-5)
    even = torch.linspace(1, 0, 16, dtype=torch.float64)
    assert round(float((trajectory.times - even).abs().max()), 3) == 0.45
    z, end, t, r = take_pairs(trajectory, *draw_pairs(0, 0, index, 15, True, None))
    straight = lambda z, t, h, label: torch.full_like(z, 3.0)  # noqa: E731
    assert mean_flow_pair_error(straight, z, t, end, r).max() < 1e-8


def test_8_differences_see_one_function() -> None:
    """There dropout and the dropping of labels differ between the two evaluations, both keep gradients, and
    the times pass the ends of the path."""
    distribution = Gaussian(torch.zeros(2).double(), 0.25 * torch.eye(2).double())
    seen: list[tuple[bool, Tensor, Tensor, Tensor]] = []

    class Watched(nn.Module):
        num_classes = 3

        def forward(self, z: Tensor, t: Tensor, h: Tensor, label: Tensor) -> Tensor:
            seen.append((self.training or torch.is_grad_enabled(), t, h, label))
            return distribution.mean_velocity(z, t, t - h)

    t = torch.tensor([1.0, 0.6, 0.003], dtype=torch.float64)
    h = torch.tensor([1.0, 0.002, 0.003], dtype=torch.float64)
    z, label = torch.ones(3, 2).double(), torch.tensor([0, 2, 3])
    network = Watched().train()
    slope = FiniteDifference(5e-3)(network, z, t, h, distribution.velocity(z, t), label)
    assert network.training and not slope.requires_grad and len(seen) == 2
    for grown, times, steps, labels in seen:
        assert not grown and labels.equal(label)
        assert bool((times <= 1).all() & (steps >= 0).all() & (times >= 0).all())
        torch.testing.assert_close(times - steps, t - h, rtol=0, atol=1e-15)


def test_9_the_size_is_said_once() -> None:
    """There the config of 512 pixels says 16, and a script says what is meant.

    Here the network's shape is the only one: the teacher's must agree, and so must the data's.
    """
    other = Field(LinearPath())
    other.shape = (3,)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"teacher makes items of shape \(3,\), the student takes \(2,\)"):
        train(CMT(student(), Teacher.of(other, solver=Euler()), seed=0), [{"index": torch.arange(2)}])
    batch = {"x": torch.zeros(4, 3), "index": torch.arange(4)}
    with pytest.raises(ValueError, match=r"data have items of shape \(3,\), the network takes \(2,\)"):
        train(MeanFlow(student(), preconditioning=VelocityPrediction(), seed=0), [batch])
