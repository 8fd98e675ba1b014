"""Consistency mid-training: its pairs, its minimum at the teacher's map, its labels, and its counts."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo import rng
from zoo.flow import (
    CMT,
    MLP,
    ConsistencySampler,
    DPMSolver,
    EDMPreconditioning,
    Euler,
    EvenGrid,
    LinearPath,
    LogGrid,
    PreconditionedNetwork,
    PseudoHuber,
    Teacher,
    TrajectoryDraws,
    VarianceExplodingPath,
    VelocityPrediction,
    solve,
)
from zoo.flow.cmt import consistency_error, draw_pairs, mean_flow_pair_error, pair_count, take_pairs
from zoo.flow.distances import SquaredDistance

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False, "limit_val_batches": 0,
}  # fmt: skip


class GaussianField:
    """A teacher that knows its distribution: data from N(0, sd^2), on either path."""

    num_classes: int | None = None
    shape = (1,)

    def __init__(self, path: Any, sd: float = 0.5) -> None:
        self.path, self.sd = path, sd

    def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        gain = alpha * self.sd**2 / (alpha**2 * self.sd**2 + sigma**2)
        return gain.reshape(-1, *[1] * (z.ndim - 1)) * z if gain.ndim else gain * z

    def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        noise = (z - alpha * self.denoise(z, t)) / sigma
        return self.path.velocity(self.denoise(z, t), noise, t)


class TestPairs:
    def test_all_of_them(self) -> None:
        i, j = draw_pairs(0, 0, torch.arange(3), steps=4, two_times=False)
        assert i.tolist() == [[0, 1, 2, 3]] * 3 and j.tolist() == [[4] * 4] * 3
        i, j = draw_pairs(0, 0, torch.arange(2), steps=4, two_times=True)
        pairs = set(zip(i[0].tolist(), j[0].tolist(), strict=True))
        assert pairs == {(a, b) for a in range(5) for b in range(5) if a < b} and i.shape == (2, 10)
        assert pair_count(15, True) == 120  # of the 16 grid points of the public mean-flow code

    @pytest.mark.parametrize("two_times", [False, True])
    def test_a_draw_has_no_repeats_and_all_pairs_alike(self, two_times: bool) -> None:
        total = pair_count(4, two_times)
        i, j = draw_pairs(1, 2, torch.arange(6000), 4, two_times, count=3)
        keys = i * 5 + j
        assert i.shape == (6000, 3) and bool((i < j).all())
        assert all(len(set(row)) == 3 for row in keys[:200].tolist())
        share = torch.stack([(keys == key).double().sum() / 6000 for key in keys.unique()])
        assert len(share) == total
        # 6000 draws: a standard error of at most .0065; five of them.
        assert (share - 3 / total).abs().max() < 0.033

    def test_a_draw_depends_on_its_trajectory_alone(self) -> None:
        whole = draw_pairs(0, 5, torch.tensor([7, 3, 9]), 6, True, 4)[0]
        assert draw_pairs(0, 5, torch.tensor([3]), 6, True, 4)[0].equal(whole[1:2])
        assert not draw_pairs(0, 6, torch.tensor([7, 3, 9]), 6, True, 4)[0].equal(whole)

    def test_states_go_with_the_times_of_the_solver(self) -> None:
        """Nonuniform times: neither their labels nor the gaps between them may be even."""
        times = EvenGrid(end=0.001, shift=math.sqrt(48))(5, LinearPath())
        noise = torch.randn(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        trajectory = solve(GaussianField(LinearPath()), Euler(), noise, times)
        i, j = draw_pairs(0, 0, torch.arange(3), 5, True)
        z, end, t, r = take_pairs(trajectory, i, j)
        place = 0
        for item in range(3):
            for a in range(6):
                for b in range(a + 1, 6):
                    assert z[place].equal(trajectory.states[a, item]) and end[place].equal(
                        trajectory.states[b, item]
                    )
                    assert t[place] == times[a] and r[place] == times[b]
                    place += 1
        # What the official code would train at instead: other labels for the same states.
        assert (times - torch.linspace(1, 0.001, 6)).abs().max() > 0.35


@pytest.mark.parametrize("solver", [Euler(), DPMSolver(2), DPMSolver(3)], ids=["euler", "2M", "3M"])
class TestTheMinimumIsTheTeachersMap:
    """A linear teacher multiplies by a factor at each step: the best student is their product.

    Its loss is zero, and it is the solver's map, not the exact one.
    """

    def products(self, solver: Any, times: Tensor, path: Any) -> Tensor:
        states = solve(GaussianField(path), solver, torch.ones(1, 1, dtype=torch.float64), times).states[
            :, 0, 0
        ]
        return states[-1] / states

    def test_consistency_student(self, solver: Any) -> None:
        path, steps = VarianceExplodingPath(), 12
        times = LogGrid()(steps, path)
        product = self.products(solver, times, path)

        class Student:
            def denoise(self, z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
                place = (t[:, None] - times).abs().argmin(1)
                return product[place][:, None] * z

        noise = 80 * torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        trajectory = solve(GaussianField(path), solver, noise, times)
        z, end, t, _ = take_pairs(trajectory, *draw_pairs(0, 0, torch.arange(4), steps, False))
        assert consistency_error(Student(), z, t, end, SquaredDistance()).max() < 1e-20
        exact = math.sqrt((0.5**2 + 0.002**2) / (0.5**2 + 80**2))
        errors = {Euler: -0.19809, DPMSolver: 0.03307 if getattr(solver, "order", 0) == 2 else 0.04238}
        assert product[0].item() / exact - 1 == pytest.approx(errors[type(solver)], abs=5e-6)

    def test_mean_flow_student(self, solver: Any) -> None:
        """u_ij = (1 - product of the factors from i to j) / (t_i - t_j) z."""
        path, steps = LinearPath(), 9
        times = EvenGrid(0.99, 0.01, 3.0)(steps, path)
        product = self.products(solver, times, path)

        def student(z: Tensor, t: Tensor, h: Tensor, label: Tensor | None) -> Tensor:
            i = (t[:, None] - times).abs().argmin(1)
            j = ((t - h)[:, None] - times).abs().argmin(1)
            return ((1 - product[i] / product[j]) / (times[i] - times[j]))[:, None] * z

        noise = torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        trajectory = solve(GaussianField(path), solver, noise, times)
        z, end, t, r = take_pairs(trajectory, *draw_pairs(0, 0, torch.arange(4), steps, True))
        assert mean_flow_pair_error(student, z, t, end, r).max() < 1e-20


def test_training_reaches_the_teachers_map(tmp_path: Path) -> None:
    """A linear student per grid time, trained by the module: loss to zero, map to the product of steps."""
    path, steps = VarianceExplodingPath(), 6
    grid = LogGrid(20.0, 0.05)
    times = grid(steps, path)

    class Gains(nn.Module):
        """F whose denoiser is any gain at each grid time."""

        shape, num_classes, two_times = (1,), None, False

        def __init__(self) -> None:
            super().__init__()
            self.gains = nn.Parameter(torch.zeros(steps + 1))

        def forward(self, z: Tensor, t: Tensor, h: None, label: None) -> Tensor:
            place = ((4 * t).exp()[:, None].log() - times.log()).abs().argmin(1)
            return self.gains[place][:, None] * z

    network = Gains()
    preconditioning = EDMPreconditioning(0.5)
    teacher = Teacher.of(GaussianField(path), solver=DPMSolver(2), grid=grid, steps=steps)
    module = CMT(
        network, teacher, preconditioning=preconditioning, seed=0,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    )  # fmt: skip
    rows = [{"index": torch.arange(64) + 64 * k} for k in range(300)]
    trainer = Trainer(max_steps=300, **QUIET)
    trainer.fit(module, DataLoader(rows, batch_size=None))  # type: ignore[arg-type]
    assert trainer.callback_metrics["train/loss"] < 1e-9
    ones = torch.ones(steps + 1, 1)
    learned = PreconditionedNetwork(network, preconditioning).denoise(ones, times.float())[:-1, 0]
    states = solve(GaussianField(path), DPMSolver(2), torch.ones(1, 1).double(), times).states[:, 0, 0]
    torch.testing.assert_close(learned.double(), (states[-1] / states)[:-1], rtol=0, atol=2e-4)
    exact = math.sqrt((0.25 + 0.05**2) / (0.25 + 20**2))
    assert (
        abs(states[-1].item() / exact - 1) > 0.02
    )  # the two maps differ by more than was asked of the student


class Recorder(nn.Module):
    """A field with classes that remembers the labels it was asked for; its map depends on the label."""

    num_classes, shape = 3, (2,)

    def __init__(self) -> None:
        super().__init__()
        self.path = LinearPath()
        self.labels: list[Tensor] = []

    def velocity(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.labels.append(label)
        return z * (1 + label[:, None])

    def denoise(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return z - t * self.velocity(z, t, label)


def student(two_times: bool = True, num_classes: int | None = 3) -> MLP:
    made = MLP(2, width=16, depth=1, num_classes=num_classes, two_times=two_times)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return made


class TestTheModule:
    def test_labels_reach_the_teacher_and_follow_their_pairs(self) -> None:
        """The official code cuts labels short, does not repeat them, and never gives them to the teacher."""
        field, seen = Recorder(), []

        class Watching(MLP):
            def forward(
                self, z: Tensor, t: Tensor, h: Tensor | None = None, label: Tensor | None = None
            ) -> Tensor:
                seen.append((z, t, h, label))
                return super().forward(z, t, h, label)

        network = Watching(2, width=8, depth=1, num_classes=3)
        teacher = Teacher.of(field, solver=Euler(), grid=EvenGrid(), steps=4)
        module = CMT(network, teacher, label_dropout=0.4, trajectories=TrajectoryDraws(pairs=5), seed=0)
        label, index = torch.tensor([0, 1, 2, 1, 0, 2]), torch.arange(6)
        trainer = Trainer(max_steps=1, **QUIET)
        trainer.fit(module, DataLoader([{"label": label, "index": index}], batch_size=None))  # type: ignore[arg-type]
        dropped = rng.uniform(0, 0, index, (), "train/label") < 0.4
        expected = torch.where(dropped, 3, label)
        assert 0 < dropped.sum() < 6
        assert all(given.equal(expected) for given in field.labels) and len(field.labels) == 4
        _, (z, t, h, given) = seen  # before it trains, a fit calls the network once to see that it can
        assert given.equal(expected.repeat_interleave(5))
        # Each pair is of a trajectory of its own label: z = noise * prod(1 - (1 + label) dt).
        noise = rng.normal(0, 0, index, (2,), "train/noise").repeat_interleave(5, 0)
        done = torch.round((1 - t) * 4)
        torch.testing.assert_close(z, noise * ((1 - (1 + given) / 4) ** done)[:, None], rtol=1e-4, atol=1e-5)
        assert bool((h > 0).all() & (h <= t + 1e-6).all())

    def test_small_batches_work(self) -> None:
        """In the official code a batch smaller than the number of steps is empty."""
        teacher = Teacher.of(Recorder(), steps=16)
        module = CMT(student(), teacher, seed=0)
        trainer = Trainer(max_steps=1, **QUIET)
        batch = {"label": torch.tensor([1]), "index": torch.tensor([0])}
        trainer.fit(module, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
        assert math.isfinite(trainer.callback_metrics["train/loss"])

    def test_counts_of_pairs_trajectories_and_calls_go_on_after_a_resume(self, tmp_path: Path) -> None:
        batches = [{"label": torch.tensor([1, 2, 0]), "index": torch.arange(3)} for _ in range(4)]

        def run(steps: int, checkpoint: Path | None = None) -> list[dict[str, str]]:
            teacher = Teacher.of(Recorder(), steps=5, omega=2.0)
            module = CMT(student(), teacher, trajectories=TrajectoryDraws(pairs=4), seed=0)
            logger = CSVLogger(tmp_path, name=f"{steps}{checkpoint is None}")
            trainer = Trainer(max_steps=steps, **QUIET | {"logger": logger}, log_every_n_steps=1)
            trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=checkpoint, weights_only=True)  # type: ignore[arg-type]
            trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
            with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
                return list(csv.DictReader(file))

        run(2)
        rows = run(4, tmp_path / "2.ckpt")
        assert [float(row["train/pairs"]) for row in rows] == [36.0, 48.0]
        assert [float(row["train/trajectories"]) for row in rows] == [9.0, 12.0]
        assert [float(row["train/teacher_calls"]) for row in rows] == [90.0, 120.0]  # guided: two a step

    def test_starts_at_data_with_noise_if_asked(self) -> None:
        starts: list[Tensor] = []

        class Watched(Teacher):
            def trajectory(self, noise: Tensor, label: Tensor | None = None, x: Tensor | None = None) -> Any:
                found = super().trajectory(noise, label, x)
                starts.append(found.states[0])
                return found

        teacher = Watched.of(GaussianField(VarianceExplodingPath()), steps=2)
        network = MLP(1, width=8, depth=1, two_times=False)
        x = torch.tensor([[3.0], [-5.0]])
        batch = DataLoader([{"x": x, "index": torch.arange(2)}], batch_size=None)  # type: ignore[arg-type]
        noise = rng.normal(0, 0, torch.arange(2), (1,), "train/noise")
        for start, expected in (("prior", 80 * noise), ("data", x + 80 * noise)):
            Trainer(max_steps=1, **QUIET).fit(
                CMT(network, teacher, trajectories=TrajectoryDraws(start=start), seed=0), batch
            )  # type: ignore[arg-type]
            torch.testing.assert_close(starts[-1], expected)
        with pytest.raises(ValueError, match="CMT needs data"):
            Trainer(max_steps=1, **QUIET).fit(
                CMT(network, teacher, trajectories=TrajectoryDraws(start="data")),
                DataLoader([{"index": torch.arange(2)}], batch_size=None),  # type: ignore[arg-type]
            )

    def test_samples_of_both_students(self) -> None:
        labels = torch.tensor([0, 1, 2, 3])
        for two_times in (True, False):
            module = CMT(student(two_times), Teacher.of(Recorder(), steps=2), seed=0)
            for steps in (1, 2, 3):
                samples = module.sample(labels, steps)
                assert samples.shape == (4, 2) and bool(samples.isfinite().all())
        module = CMT(student(), Teacher.of(Recorder()), preconditioning=VelocityPrediction())
        noise = rng.normal(0, 0, torch.arange(4), (2,), "sample/noise")
        with torch.no_grad():
            one = noise - module.network(noise, torch.ones(4), torch.ones(4), labels)
        torch.testing.assert_close(module.sample(labels, 1), one)

    def test_samples_with_a_boundary(self) -> None:
        """The official code trains without one, and samples with one at .003."""
        labels, noise = torch.tensor([0, 1, 2, 3]), rng.normal(0, 0, torch.arange(4), (2,), "sample/noise")
        module = CMT(student(False), Teacher.of(Recorder()), sampler=ConsistencySampler(boundary=0.1), seed=0)
        model = PreconditionedNetwork(module.network, EDMPreconditioning(boundary=0.1))
        with torch.no_grad():
            expected = model.denoise(80.0 * noise, torch.full((4,), 80.0), labels)
        torch.testing.assert_close(module.sample(labels, 1), expected, rtol=1e-4, atol=1e-5)
        assert module.preconditioning.boundary == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"trajectories": {"pairs": 11}},
            "pairs must be from 1 to 10, which is what 4 steps of the teacher give; got 11",
        ),
        ({"trajectories": {"start": "middle"}}, "start must be 'prior' or 'data', got 'middle'"),
        ({"distance": PseudoHuber()}, "distance is for consistency students"),
        ({"sampler": {"levels": [0.5, 1.0]}}, "sampler: levels must be positive noise levels that decrease"),
        ({"sampler": {"boundary": 0.003}}, "sampler.boundary is for consistency students"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CMT(student(), Teacher.of(Recorder(), steps=4), **arguments)
