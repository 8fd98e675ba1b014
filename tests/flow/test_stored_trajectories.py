"""Trajectories that were solved beforehand: the same training as with the teacher, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo import rng
from zoo.callbacks import TrajectoryWriter
from zoo.datamodules import ClassLabels, Digits, Trajectories
from zoo.flow import (
    CMT,
    MLP,
    DPMSolver,
    EDMPreconditioning,
    Euler,
    EvenGrid,
    LinearPath,
    LogGrid,
    PreconditionedNetwork,
    RandomFeatureDistance,
    SquaredDistance,
    Teacher,
    TrajectoryDraws,
    TrigonometricPath,
    VarianceExplodingPath,
)
from zoo.flow.distances import distance_to_targets
from zoo.flow.trajectories import checked_times, origin, path_named
from zoo.io import read_json_lines

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False, "limit_val_batches": 0,
}  # fmt: skip
EDM = EDMPreconditioning(0.75)


class Field:
    """A teacher whose map depends on the label, elementwise: an item's values do not depend on its batch."""

    num_classes, shape = 3, (2,)

    def __init__(self, path: Any) -> None:
        self.path = path

    def denoise(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return z * 0.2 + label[:, None]

    def velocity(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        x = self.denoise(z, t, label)
        return self.path.velocity(x, (z - alpha * x) / sigma, t)


def teacher(steps: int = 4) -> Teacher:
    return Teacher.of(Field(VarianceExplodingPath()), solver=DPMSolver(2), steps=steps)


class Watched(MLP):
    """Remembers what it was asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[Any] = []

    def forward(self, z: Tensor, t: Tensor, h: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        self.seen.append((z.detach(), t, h, label))
        return super().forward(z, t, h, label)


def student(two_times: bool = True, num_classes: int | None = 3, dim: int = 2) -> Watched:
    torch.manual_seed(0)
    made = Watched(dim, width=16, depth=1, num_classes=num_classes, two_times=two_times)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def fit(module: CMT, data: Any, steps: int = 3, **options: Any) -> Trainer:
    trainer = Trainer(max_steps=steps, **QUIET | options)
    if isinstance(data, LightningDataModule):
        trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, DataLoader(data, batch_size=None))
    return trainer


def cached(network: Any, **options: Any) -> CMT:
    """A student of stored trajectories."""
    return CMT(network, preconditioning=EDM, **options)


def stored(folder: Path, count: int = 40, two_times: bool = True, **options: Any) -> CMT:
    """Stores trajectories as `zoo predict` does; the module that made them."""
    module = CMT(
        student(two_times), teacher(), preconditioning=EDM, predict="trajectories", seed=0, **options
    )
    trainer = Trainer(**QUIET, callbacks=[TrajectoryWriter(str(folder), shard_size=16)])
    trainer.predict(module, datamodule=ClassLabels(count, 3, batch_size=16), return_predictions=False)
    return module


@pytest.mark.parametrize("two_times", [True, False], ids=["mean flow", "consistency"])
@pytest.mark.parametrize("pairs", [None, 2])
def test_training_is_that_with_the_teacher_bit_for_bit(two_times: bool, pairs: int | None) -> None:
    """On the same noise, labels and draws; the states are on the teacher's path, the student has its own."""
    label, index = torch.tensor([0, 1, 2, 1, 0, 2]), torch.tensor([4, 9, 2, 0, 7, 5])
    solver, batches = teacher(), []
    for step in range(3):
        dropped = rng.uniform(0, step, index, (), "train/label") < 0.4
        given = torch.where(dropped, 3, label)
        noise = rng.normal(0, step, index, (2,), "train/noise")
        trajectory = solver.trajectory(noise, given)
        assert isinstance(trajectory.path, VarianceExplodingPath)
        batches.append(
            {
                "states": trajectory.states.transpose(0, 1).contiguous(),
                "times": tuple(trajectory.times.tolist()),
                "path": repr(trajectory.path), "label": given, "index": index,
            }
        )  # fmt: skip
    modules, metrics = [], []
    live = [{"label": label, "index": index}] * 3
    for solves, data in ((solver, live), (None, batches)):
        module = CMT(
            student(two_times),
            solves,
            preconditioning=EDM,
            trajectories=TrajectoryDraws(pairs=pairs),
            label_dropout=0.4,
            seed=0,
        )
        metrics.append(fit(module, data).callback_metrics)
        modules.append(module.state_dict())
    assert all(value.equal(modules[1][name]) for name, value in modules[0].items())
    assert metrics[0]["train/loss"].equal(metrics[1]["train/loss"])
    count = pairs or (10 if two_times else 4)
    for found, calls in zip(metrics, (3 * 6 * 4, 0), strict=True):
        assert found["train/trajectories"] == 18 and found["train/pairs"] == 18 * count
        assert found["train/teacher_calls"] == calls


def test_the_whole_road(tmp_path: Path) -> None:
    """predict, files, datamodule: the first update is the live one on the same items, without the teacher."""
    stored(tmp_path / "made", label_dropout=0.3)
    data = Trajectories(str(tmp_path / "made"), batch_size=8, val_share=0, seed=0)
    data.setup("fit")
    index = next(iter(data.train_dataloader()))["index"]
    after = []
    for solves, source in ((teacher(), [{"label": index % 3, "index": index}]), (None, data)):
        module = CMT(
            student(),
            solves,
            preconditioning=EDM,
            trajectories=TrajectoryDraws(pairs=3),
            label_dropout=0.3,
            seed=0,
        )
        trainer = fit(module, source, 1, default_root_dir=tmp_path / str(solves is None))
        after.append(module.state_dict())
    assert all(value.equal(after[1][name]) for name, value in after[0].items())
    assert trainer.callback_metrics["train/teacher_calls"] == 0
    [event] = read_json_lines(tmp_path / "True" / "events.jsonl")
    assert event["event"] == "trajectories_stored" and event["count"] == 40 and event["steps"] == 4


def test_each_pass_draws_other_pairs(tmp_path: Path) -> None:
    stored(tmp_path / "made", count=8)
    network = student()
    data = Trajectories(str(tmp_path / "made"), batch_size=8, val_share=0, seed=0)
    fit(CMT(network, preconditioning=EDM, trajectories=TrajectoryDraws(pairs=2), seed=0), data, 6)
    # One batch is one pass; a trajectory is found again by its states, whatever its place in the batch.
    kinds = [
        {(round(t.item(), 4), round(h.item(), 4)) for t, h in zip(times, spans, strict=True)}
        for _, times, spans, _ in network.seen[1:]  # before it trains, a fit calls the network once
    ]
    assert len({frozenset(kind) for kind in kinds}) == 6
    assert len(set().union(*kinds)) == 10  # in 96 draws every one of the 10 pairs came


def test_labels_are_those_that_the_teacher_was_given(tmp_path: Path) -> None:
    """They are not dropped again: the trajectory of a class would be learned as one without."""
    stored(tmp_path / "made", label_dropout=0.5)
    network = student()
    data = Trajectories(str(tmp_path / "made"), batch_size=40, val_share=0, seed=0)
    fit(
        CMT(network, preconditioning=EDM, trajectories=TrajectoryDraws(pairs=1), label_dropout=1.0, seed=0),
        data,
        1,
    )
    data.setup("fit")
    expected = next(iter(data.train_dataloader()))["label"]
    _, (_, _, _, label) = network.seen  # before it trains, a fit calls the network once
    assert label.equal(expected) and set(expected.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_times_survive_the_precision_of_the_trainer(
    precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning rounds every floating tensor of a batch; the solver's times are to stay the solver's."""
    stored(tmp_path / "made", two_times=False)
    data = Trajectories(str(tmp_path / "made"), batch_size=8, val_share=0, seed=0)
    seen: list[Tensor] = []

    class Asked(PreconditionedNetwork):
        def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            seen.append(t)
            return super().denoise(z, t, label)

    asked = property(lambda self: Asked(self.network, self.preconditioning, self.path))
    monkeypatch.setattr(CMT, "model", asked)
    fit(CMT(student(False), preconditioning=EDM, seed=0), data, 1, precision=precision)
    exact = LogGrid()(4, VarianceExplodingPath())[:4]
    expected = exact if precision == "64-true" else exact.float()
    assert seen[0].equal(expected.repeat(8)) and seen[0].dtype == expected.dtype


def test_the_distance_is_loaded_before_training(tmp_path: Path) -> None:
    class Lazy(SquaredDistance):
        loaded = False

        def __init__(self, missing: bool) -> None:
            super().__init__()
            self.missing = missing

        def load(self) -> None:
            if self.missing:
                raise ValueError("weights='vgg.pth': the file does not exist")
            self.loaded = True

    class Never(ClassLabels):
        def setup(self, stage: str) -> None:
            pass

        def train_dataloader(self) -> Any:
            raise AssertionError("a batch was asked for")

    distance = Lazy(missing=False)
    batch = {"label": torch.tensor([1]), "index": torch.arange(1)}
    fit(CMT(student(False), teacher(), preconditioning=EDM, distance=distance), [batch], 1)
    assert distance.loaded
    with pytest.raises(ValueError, match=r"vgg.pth': the file does not exist"):
        fit(CMT(student(False), teacher(), preconditioning=EDM, distance=Lazy(missing=True)), Never(4, 3), 1)


class TestTargetsAreEmbeddedOnce:
    def images(self, count: int, seed: int) -> Tensor:
        return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))

    @pytest.mark.parametrize("name", ["random features", "squared"])
    def test_equal_to_repeated_targets(self, name: str) -> None:
        random = RandomFeatureDistance(1, width=4, scales=2)
        distance = random if name == "random features" else SquaredDistance()
        targets = self.images(3, 1)
        found = []
        for once in (True, False):
            a = self.images(12, 0).requires_grad_()
            values = (
                distance_to_targets(distance, a, targets)
                if once
                else distance(a, targets.repeat_interleave(4, 0))
            )
            (gradient,) = torch.autograd.grad(values.square().sum(), a)
            found.append((values.detach(), gradient))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)

    def test_the_network_sees_each_target_once(self) -> None:
        rows: list[int] = []

        class Counted(RandomFeatureDistance):
            def embed(self, x: Tensor) -> list[Tensor]:
                rows.append(len(x))
                return super().embed(x)

        distance_to_targets(Counted(1, 4, 2), self.images(12, 0), self.images(3, 1))
        assert sorted(rows) == [3, 12]

    def test_targets_must_divide_the_rows(self) -> None:
        with pytest.raises(ValueError, match="must divide that of rows, got 5 and 12"):
            distance_to_targets(SquaredDistance(), self.images(12, 0), self.images(5, 1))


class TestRefused:
    def batch(self, **changes: Any) -> dict[str, Any]:
        made = {
            "states": torch.zeros(2, 5, 2), "times": (4.0, 3.0, 2.0, 1.0, 0.5),
            "path": "VarianceExplodingPath()", "label": torch.tensor([0, 1]), "index": torch.arange(2),
        }  # fmt: skip
        return {name: value for name, value in (made | changes).items() if value is not None}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"states": None}, "CMT has no teacher, and the batch has no 'states'"),
            ({"times": None}, r"a batch with 'states' needs \['times'\] beside them"),
            ({"path": None, "index": None}, r"needs \['index', 'path'\]"),
            ({"states": torch.zeros(2, 4, 2)}, r"states must be \(B, 5, 2\).*got \(2, 4, 2\)"),
            ({"states": torch.zeros(2, 5, 3)}, r"states must be \(B, 5, 2\).*got \(2, 5, 3\)"),
            ({"times": (4.0,), "states": torch.zeros(2, 1, 2)}, "at least two finite numbers that decrease"),
            ({"times": (0.5, 1.0, 2.0, 3.0, 4.0)}, r"decrease from noise to data; got \[0.5, 1.0"),
            ({"times": (float("inf"), 3.0, 2.0, 1.0, 0.5)}, "at least two finite numbers"),
            ({"times": torch.tensor([4.0, 3, 2, 1, 0.5]).bfloat16()}, "torch.bfloat16, which has blurred"),
            ({"path": "SpiralPath()"}, r"path must be one of LinearPath.*got 'SpiralPath\(\)'"),
            ({"label": None}, "the network has 3 classes, but the batch has no 'label'"),
            ({"path": "LinearPath()", "times": (1.0, 0.8, 0.6, 0.4, 0.2)}, "no place on VarianceExp"),
        ],
    )  # fmt: skip
    def test_batches(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            fit(CMT(student(False), preconditioning=EDM), [self.batch(**changes)], 1)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: cached(student(dim=3)), r"states of shape \(2,\), the student takes \(3,\)"),
            (lambda: cached(student(num_classes=None)), "with 3 classes.*num_classes=None"),
            (lambda: cached(student(num_classes=7)), "of a teacher with 3 classes.*num_classes=7"),
            (
                lambda: cached(student(), trajectories=TrajectoryDraws(pairs=11)),
                "from 1 to 10, which is what 4 steps .* give; got 11",
            ),
        ],
    )
    def test_students_before_the_first_batch(
        self, make: Callable[[], CMT], message: str, tmp_path: Path
    ) -> None:
        stored(tmp_path / "made")
        with pytest.raises(ValueError, match=message):
            fit(make(), NoBatches(str(tmp_path / "made"), val_share=0), 1)

    def test_a_path_without_a_place_for_the_first_state(self, tmp_path: Path) -> None:
        solver = Teacher.of(Field(LinearPath()), solver=Euler(), grid=EvenGrid(), steps=3)
        made = CMT(student(), solver, preconditioning=EDM, predict="trajectories", seed=0)
        trainer = Trainer(**QUIET, callbacks=[TrajectoryWriter(str(tmp_path / "made"))])
        trainer.predict(made, datamodule=ClassLabels(9, 3), return_predictions=False)
        with pytest.raises(
            ValueError, match=r"pure noise on LinearPath.* no finite time on the student's Var"
        ):
            fit(CMT(student(False), preconditioning=EDM), NoBatches(str(tmp_path / "made"), val_share=0), 1)

    def test_no_teacher_and_no_trajectories(self) -> None:
        with pytest.raises(ValueError, match="CMT has no teacher, and Digits has no stored trajectories"):
            fit(CMT(student(dim=64), None), Digits(), 1)
        with pytest.raises(
            ValueError, match="predict='trajectories' solves the teacher's flow: give teacher"
        ):
            CMT(student(), None, predict="trajectories")
        with pytest.raises(ValueError, match="predict must be 'samples' or 'trajectories', got 'both'"):
            CMT(student(), None, predict="both")  # type: ignore[arg-type]

    def test_labels_beyond_the_students_classes(self, tmp_path: Path) -> None:
        stored(tmp_path / "made")
        data = Trajectories(str(tmp_path / "made"), val_share=0)
        data.setup("fit")
        assert data.trajectories is not None
        anyone = {**vars(data.trajectories), "num_classes": None}
        for highest, message in ((3, "labels up to 3, the network has 2"), (None, "have no labels")):
            form = type(data.trajectories)(**anyone | {"highest_label": highest})
            with pytest.raises(ValueError, match=message):
                form.check_student((2,), 2, VarianceExplodingPath())


class NoBatches(Trajectories):
    """Whose batches nobody may ask for."""

    def train_dataloader(self) -> Any:
        raise AssertionError("a batch was asked for")


def test_paths_by_their_names() -> None:
    for path in (LinearPath(), VarianceExplodingPath(), TrigonometricPath(0.731)):
        assert repr(path_named(repr(path))) == repr(path)
    wrong = ("", "LinearPath", "LinearPath(sigma_data=2)", "TrigonometricPath(sigma_data=-1)", "print(x=1)")
    for text in wrong:
        with pytest.raises(ValueError, match="path"):
            path_named(text)


def test_times_keep_their_digits() -> None:
    times = LogGrid()(16, VarianceExplodingPath())
    assert checked_times(tuple(times.tolist())).equal(times) and checked_times(times).equal(times)


def test_the_origin_tells_teachers_apart() -> None:
    def facts(scale: float, **options: Any) -> dict[str, Any]:
        network = student(False)
        nn.init.constant_(next(network.parameters()), scale)
        return json.loads(origin(Teacher.of(PreconditionedNetwork(network, EDM), **options), seed=5))

    one, other, guided = facts(1.0), facts(1.5), facts(1.0, omega=2.0)
    assert one["sha256"] == guided["sha256"] != other["sha256"]
    assert (one["omega"], guided["omega"], one["seed"], one["steps"]) == (1.0, 2.0, 5, 16)
    assert one["solver"] == "DPMSolver" and one["order"] == 3 and one["num_classes"] == 3
