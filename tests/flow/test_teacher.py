"""Teachers: what they read from checkpoints, guidance, single steps, and what they refuse."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.flow import (
    MLP,
    DiT,
    EDMPreconditioning,
    EvenGrid,
    GaussianMixture,
    Guided,
    Heun,
    LinearPath,
    LogGrid,
    MeanFlowSteps,
    PreconditionedNetwork,
    Teacher,
    VarianceExplodingPath,
    VelocityPrediction,
    integrate,
)

ARGUMENTS: dict[str, Any] = {"dim": 2, "width": 16, "depth": 1, "num_classes": 3, "two_times": False}


def wake(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


def save(folder: Path, network: nn.Module, config: Any = None, **extra: Any) -> Path:
    """A checkpoint as a run of a Diffusion module leaves it, average and raw weights apart."""
    raw = {f"network.{name}": value for name, value in network.state_dict().items()}
    contents = {
        "state_dict": {name: value / 2 for name, value in raw.items()},
        "current_model_state": raw,
        "hyper_parameters": {} if config is None else {"network": config},
        "flow": {"preconditioning": EDMPreconditioning(0.75).describe()},
        "global_step": 1,
    }
    torch.save(contents | extra, folder / "run.ckpt")
    return folder / "run.ckpt"


CONFIG = {"class_path": "zoo.flow.MLP", "init_args": ARGUMENTS}


def test_a_checkpoint_says_what_it_holds(tmp_path: Path) -> None:
    network = wake(MLP(**ARGUMENTS))
    path = save(tmp_path, network, CONFIG)
    z, t, label = (
        torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
        torch.full((4,), 0.7),
        torch.tensor([0, 1, 2, 3]),
    )
    for weights, scale in (("raw", 1.0), ("ema", 0.5)):
        teacher = Teacher(str(path), weights).load()  # type: ignore[arg-type]
        twin = MLP(**ARGUMENTS)
        twin.load_state_dict({name: scale * value for name, value in network.state_dict().items()})
        expected = PreconditionedNetwork(twin, EDMPreconditioning(0.75)).velocity(z, t, label)
        assert teacher.velocity(VarianceExplodingPath(), z, t, label).equal(expected)
    assert teacher.shape == (2,) and teacher.num_classes == 3
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training


def test_a_folder_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    import os

    for number in (0, 1):
        (tmp_path / f"version_{number}").mkdir()
        path = save(tmp_path / f"version_{number}", wake(MLP(**ARGUMENTS), number), CONFIG)
        os.utime(path, (number, number))
    newest = wake(MLP(**ARGUMENTS), 1).state_dict()
    loaded = Teacher(str(tmp_path), "raw").load()
    assert all(value.equal(newest[name]) for name, value in loaded.network.state_dict().items())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "does not say what network it holds .* give network to the teacher"),
        ({"class_path": "os.system", "init_args": {"command": "touch hacked"}}, "not a network of the zoo"),
        ({"class_path": "zoo.flow.commands.run", "init_args": {}}, "not a network of the zoo"),
        (
            {"class_path": "zoo.flow.MLP", "init_args": ARGUMENTS | {"width": 8}},
            "of another shape|size mismatch",
        ),
    ],
)
def test_a_checkpoint_is_not_believed_everything(config: Any, message: str, tmp_path: Path) -> None:
    path = save(tmp_path, wake(MLP(**ARGUMENTS)), config)
    with pytest.raises(ValueError, match=message):
        Teacher(str(path)).load()


def test_what_a_teacher_refuses(tmp_path: Path) -> None:
    path = save(tmp_path, wake(MLP(**ARGUMENTS)), CONFIG)
    with pytest.raises(ValueError, match=r"teacher checkpoint='nowhere': no checkpoint at nowhere"):
        Teacher("nowhere").load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        Teacher(str(tmp_path / "empty")).load()
    with pytest.raises(
        ValueError, match=r"sigma_data=0.75.*reads its network's output with EDM.*sigma_data=0.5"
    ):
        Teacher(str(path), preconditioning=EDMPreconditioning(0.5)).load()
    with pytest.raises(ValueError, match=r"shape \(2,\), the student takes \(3,\)"):
        Teacher(str(path)).load().check_student((3,), 3)
    with pytest.raises(ValueError, match="the teacher has 3 classes"):
        Teacher(str(path)).load().check_student((2,), None)
    with pytest.raises(ValueError, match="which has no finite time on the student's Var"):
        Teacher(str(path), path=LinearPath()).load().check_path(VarianceExplodingPath())
    with pytest.raises(ValueError, match="MeanFlowSteps asks for mean velocities"):
        Teacher(str(path), solver=MeanFlowSteps(), omega=2.0).load()
    with pytest.raises(ValueError, match="a teacher needs checkpoint"):
        Teacher().load()
    with pytest.raises(ValueError, match="omega=1 does not look at it"):
        Teacher(str(path), guide=Teacher(str(path)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged or was cut short"):
        Teacher(str(path)).load()


def test_a_teacher_is_shared_by_copies(tmp_path: Path) -> None:
    teacher = Teacher(str(save(tmp_path, wake(MLP(**ARGUMENTS)), CONFIG)))
    assert copy.deepcopy({"teacher": teacher})["teacher"] is teacher


def distribution(path: Any) -> GaussianMixture:
    weights, stds = torch.tensor([[0.3, 0.7], [0.2, 0.35]], dtype=torch.float64)
    return GaussianMixture(weights, torch.tensor([[-1.0], [0.8]], dtype=torch.float64), stds, path)


class Labeled:
    """Two distributions as classes, their mixture (label 2) as unconditional; counts its evaluations."""

    num_classes = 2
    shape = (1,)

    def __init__(self, path: Any) -> None:
        self.path, self.calls = path, 0
        whole = distribution(path)
        parts = [
            GaussianMixture(torch.ones(1).double(), whole.means[k : k + 1], whole.stds[k : k + 1], path)
            for k in (0, 1)
        ]
        self.distributions = [*parts, whole]

    def _ask(self, name: str, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.calls += len(z)
        t = t.expand(len(z))
        values = torch.stack([getattr(part, name)(z, t) for part in self.distributions])
        return values[label, torch.arange(len(z))]

    def velocity(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self._ask("velocity", z, t, label)

    def denoise(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self._ask("denoise", z, t, label)


@pytest.mark.parametrize("path", [LinearPath(), VarianceExplodingPath()], ids=repr)
def test_classifier_free_guidance(path: Any) -> None:
    field = Labeled(path)
    guided = Guided(field, omega=1.7, low=0.1, high=0.9)
    z = torch.tensor([[0.1], [0.4], [-0.3]], dtype=torch.float64)
    label, null = torch.tensor([0, 1, 1]), torch.full((3,), 2)
    levels = torch.tensor([0.05, 0.5, 1.5], dtype=torch.float64)
    t = path.time_of(levels)
    inside = torch.tensor([[False], [True], [False]])
    for name in ("velocity", "denoise"):
        own, other = getattr(field, name)(z, t, label), getattr(field, name)(z, t, null)
        expected = torch.where(inside, other + 1.7 * (own - other), own)
        torch.testing.assert_close(getattr(guided, name)(z, t, label), expected)
        for number, time in enumerate(t):  # a single time for all items takes the other branch
            found = getattr(guided, name)(z, time, label)[number]
            torch.testing.assert_close(found, expected[number])
    # A guided velocity is that of the guided denoiser.
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    denoised = guided.denoise(z, t, label)
    slope = path.alpha_slope(t, t)[:, None] * denoised
    slope = slope + path.sigma_slope(t, t)[:, None] * (z - alpha * denoised) / sigma
    torch.testing.assert_close(guided.velocity(z, t, label), slope)


def test_autoguidance_and_refusals() -> None:
    field, weak = Labeled(LinearPath()), Labeled(LinearPath())
    weak.distributions = weak.distributions[::-1]
    z, t, label = torch.ones(2, 1).double(), torch.tensor(0.5).double(), torch.tensor([0, 1])
    guided = Guided(field, 3.0, guide=weak)
    own, other = field.velocity(z, t, label), weak.velocity(z, t, label)
    torch.testing.assert_close(guided.velocity(z, t, label), other + 3 * (own - other))
    with pytest.raises(ValueError, match="the guide's path"):
        Guided(field, 2.0, guide=Labeled(VarianceExplodingPath()))
    field.num_classes = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="has no classes: leave omega=1"):
        Guided(field, 2.0)
    with pytest.raises(ValueError, match="0 <= low <= high"):
        Guided(weak, 2.0, low=3.0, high=1.0)


@pytest.mark.parametrize(("omega", "calls"), [(1.0, 6), (2.0, 12)])
def test_calls_of_the_teacher_are_counted(omega: float, calls: int) -> None:
    field = Labeled(LinearPath())
    teacher = Teacher.of(field, steps=6, omega=omega)
    noise = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    trajectory = teacher.trajectory(noise, torch.tensor([0, 1, 0, 1, 2]))
    assert teacher.calls_per_trajectory == calls and field.calls == 5 * calls
    assert trajectory.times.equal(teacher.times())


def test_trajectories_start_at_the_prior_or_at_data_with_noise() -> None:
    teacher = Teacher.of(Labeled(VarianceExplodingPath()), steps=4)
    noise, x = torch.tensor([[0.5]]).double(), torch.tensor([[3.0]]).double()
    label = torch.tensor([0])
    assert teacher.trajectory(noise, label).states[0].item() == 40.0
    assert teacher.trajectory(noise, label, x).states[0].item() == 43.0


def test_a_mean_flow_network_as_a_teacher(tmp_path: Path) -> None:
    network = wake(MLP(**ARGUMENTS | {"two_times": True}))
    path = save(
        tmp_path, network, {"class_path": "zoo.flow.MLP", "init_args": ARGUMENTS | {"two_times": True}},
        flow={"preconditioning": VelocityPrediction().describe()},
    )  # fmt: skip
    teacher = Teacher(str(path), "raw", solver=MeanFlowSteps(), grid=EvenGrid(shift=2.0), steps=3)
    noise, label = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    trajectory = teacher.trajectory(noise, label)
    times = trajectory.times.float()
    z = noise
    for k in range(3):
        t, h = times[k].expand(4), (trajectory.times[k] - trajectory.times[k + 1]).float().expand(4)
        with torch.no_grad():
            z = z - h[:, None] * network(z, t, h, label)
        torch.testing.assert_close(trajectory.states[k + 1], z)


@pytest.mark.parametrize("path", [LinearPath(), VarianceExplodingPath()], ids=repr)
def test_single_steps_are_the_solvers(path: Any) -> None:
    """Items with times of their own: each step is what the solver does to that item alone."""
    from zoo.flow import Euler

    teacher = Teacher.of(Labeled(path))
    z, label = torch.tensor([[0.1], [0.4], [-0.3]]).double(), torch.tensor([0, 1, 2])
    t = path.time_of(torch.tensor([0.5, 1.0, 3.0]).double())
    r = path.time_of(torch.tensor([0.4, 0.0, 0.3]).double())
    for second, solver in ((False, Euler()), (True, Heun())):
        found = teacher.step(path, z, t, r, label, second)
        for k in range(3):
            alone = integrate(
                teacher.field, solver, z[k : k + 1], torch.stack([t[k], r[k]]), label[k : k + 1]
            )
            torch.testing.assert_close(found[k : k + 1], alone)


def test_a_teacher_read_on_another_path(tmp_path: Path) -> None:
    teacher = Teacher(str(save(tmp_path, wake(MLP(**ARGUMENTS)), CONFIG)), omega=1.5, grid=LogGrid())
    z, label = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    t = torch.tensor([0.1, 0.4, 0.7, 0.95])
    found = teacher.velocity(LinearPath(), z, t, label)
    s = t / (1 - t)
    denoised = teacher.field.denoise(z / (1 - t)[:, None], s, label)
    torch.testing.assert_close(found, (z - denoised) / t[:, None], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="the teacher's field lives on LinearPath"):
        Teacher.of(Labeled(LinearPath())).velocity(VarianceExplodingPath(), z[:, :1], t, label)


def test_other_networks_may_be_given(tmp_path: Path) -> None:
    network = wake(DiT(4, 1, 2, width=16, depth=1, heads=2, num_classes=None, two_times=False))
    path = save(tmp_path, network)
    twin = DiT(4, 1, 2, width=16, depth=1, heads=2, num_classes=None, two_times=False)
    teacher = Teacher(str(path), "raw", network=twin, steps=2)
    assert teacher.trajectory(torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])).states.shape == (
        3,
        3,
        1,
        4,
        4,
    )
