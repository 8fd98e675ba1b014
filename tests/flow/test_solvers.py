"""Solvers against the published digits of a Gaussian, against closed forms, and at the ends of every path."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from zoo.flow import (
    DPMSolver,
    Euler,
    EvenGrid,
    Gaussian,
    GaussianMixture,
    Heun,
    KarrasGrid,
    LinearPath,
    LogGrid,
    MeanFlowSteps,
    Trajectory,
    TrigonometricPath,
    VarianceExplodingPath,
    integrate,
    solve,
)
from zoo.flow.paths import Path
from zoo.flow.solvers import Solver, default_solver

PATHS = [LinearPath(), VarianceExplodingPath(), TrigonometricPath(0.5)]
EXPLODING = VarianceExplodingPath()


class GaussianField:
    """Data from N(0, sd^2) on the variance-exploding path, restated: D = sd^2 / (sd^2 + s^2) x."""

    path = EXPLODING
    num_classes = None

    def __init__(self, sd: float = 0.5) -> None:
        self.sd = sd
        self.calls = 0

    def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.sd**2 / (self.sd**2 + t**2) * z

    def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return (z - self.denoise(z, t)) / t


class LawField:
    """A closed-form distribution as a field; the denoiser from the velocity of the path."""

    num_classes = None

    def __init__(self, distribution: Gaussian | GaussianMixture) -> None:
        self.distribution, self.path = distribution, distribution.path

    def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.distribution.velocity(z, t)

    def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.distribution.denoise(z, t)

    def mean_velocity(self, z: Tensor, t: Tensor, h: Tensor, label: Tensor | None = None) -> Tensor:
        return self.distribution.mean_velocity(z, t, t - h)


def factor(solver: Solver, times: Tensor) -> float:
    return integrate(GaussianField(), solver, torch.ones(1, 1, dtype=torch.float64), times).item()


# Relative errors of the linear map's factor, log-sigma grid from 80 to .002; printed to five digits.
TABLE = {
    8: (-0.28107, 0.02753, 0.23581, 0.32149),
    16: (-0.15258, 0.02268, 0.01717, 0.06548),
    32: (-0.07945, 0.00659, 0.00296, 0.01494),
    64: (-0.04055, 0.00170, 0.00062, 0.00357),
}


@pytest.mark.parametrize("steps", TABLE)
def test_the_table_of_solvers(steps: int) -> None:
    exact = math.sqrt((0.5**2 + 0.002**2) / (0.5**2 + 80**2))
    assert exact == pytest.approx(0.00624992793, abs=5e-12)
    times = LogGrid()(steps, EXPLODING)
    for solver, error in zip((Euler(), DPMSolver(2), DPMSolver(3), Heun()), TABLE[steps], strict=True):
        assert factor(solver, times) / exact - 1 == pytest.approx(error, abs=5e-6)
    assert factor(DPMSolver(1), times) == pytest.approx(factor(Euler(), times), rel=1e-12)


@pytest.mark.parametrize(("steps", "error"), [(10, 0.21962), (18, 0.05527), (40, 0.00977), (80, 0.00231)])
def test_the_table_of_edm_sampling_to_zero(steps: int, error: float) -> None:
    exact = 0.5 / math.sqrt(0.5**2 + 80**2)
    field = GaussianField()
    times = KarrasGrid()(steps, EXPLODING)
    found = integrate(field, Heun(), torch.ones(1, 1, dtype=torch.float64), times).item()
    assert found / exact - 1 == pytest.approx(error, abs=5e-6)
    assert field.calls == 2 * steps - 1  # EDM's 35 at 18 steps, 79 at 40


def test_order_two_is_the_default_in_few_steps_where_it_is_the_better() -> None:
    exact = math.sqrt((0.5**2 + 0.002**2) / (0.5**2 + 80**2))
    errors = {
        (steps, order): abs(factor(DPMSolver(order), LogGrid()(steps, EXPLODING)) / exact - 1)
        for steps in (12, 14)
        for order in (2, 3)
    }
    assert errors[12, 2] == pytest.approx(0.0331, abs=5e-5)
    assert errors[12, 3] == pytest.approx(0.0424, abs=5e-5)
    assert errors[14, 2] == pytest.approx(0.0276, abs=5e-5)
    assert errors[14, 3] == pytest.approx(0.0239, abs=5e-5)
    assert [default_solver(steps).order for steps in (1, 12, 13)] == [2, 2, 3]


class OnePoint:
    """All data are one point."""

    num_classes = None

    def __init__(self, path: Path, point: Tensor) -> None:
        self.path, self.point = path, point

    def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.point.expand_as(z)

    def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        noise = (z - self.path.alpha(t) * self.point) / self.path.sigma(t)
        return self.path.velocity(self.point, noise, t)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize(
    "grid", [LogGrid(), EvenGrid(), EvenGrid(0.9, 0.1), KarrasGrid()], ids=lambda g: str(vars(g))
)
def test_dpm_solver_is_exact_on_one_point(path: Path, order: int, lower: bool, grid: object) -> None:
    """Also from pure noise (lambda = -inf) and to clean data (+inf)."""
    if isinstance(grid, EvenGrid) and grid.start == 1 and math.isinf(path.end):
        with pytest.raises(ValueError, match="no finite time"):
            grid(5, path)
        return
    point = torch.tensor([[0.7, -1.1]], dtype=torch.float64)
    times = grid(5, path)  # type: ignore[operator]
    noise = torch.tensor([[0.3, 2.0], [-1.0, 0.1]], dtype=torch.float64)
    z = path.alpha(times[0]) * point + path.sigma(times[0]) * noise
    found = solve(OnePoint(path, point), DPMSolver(order, lower), z, times)  # type: ignore[arg-type]
    for state, t in zip(found.states, times, strict=True):
        torch.testing.assert_close(
            state, path.alpha(t) * point + path.sigma(t) * noise, rtol=1e-11, atol=1e-12
        )


def mixture(path: Path) -> GaussianMixture:
    weights, stds = torch.tensor([[0.3, 0.7], [0.2, 0.35]], dtype=torch.float64)
    return GaussianMixture(weights, torch.tensor([[-1.0], [0.8]], dtype=torch.float64), stds, path)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize(
    ("solver", "order"),
    [(Euler(), 1), (Heun(), 2), (DPMSolver(1), 1), (DPMSolver(2), 2), (DPMSolver(3), 2)],
    ids=["euler", "heun", "dpm1", "dpm2", "dpm3"],
)
def test_convergence_to_the_exact_flow_of_a_mixture(path: Path, solver: Solver, order: int) -> None:
    """Halving the step divides the error by about 2^order, on every path.

    A multistep rule begins with a step of order 1, whose error of order 2 stays: order 3 converges as 2 here.
    """
    distribution, grid = mixture(path), LogGrid(5.0, 0.05)
    ends = grid(1, path)
    z = path.sigma(ends[0]) * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = distribution.flow_map(z, ends[0].item(), ends[1].item())
    errors = [
        (integrate(LawField(distribution), solver, z, grid(steps, path)) - exact).abs().max().item()
        for steps in (160, 320)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_of_the_exact_mean_velocity_are_exact(steps: int) -> None:
    distribution = mixture(LinearPath())
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    found = integrate(LawField(distribution), MeanFlowSteps(), z, EvenGrid()(steps, LinearPath()))
    torch.testing.assert_close(found, distribution.flow_map(z, 1.0, 0.0), rtol=0, atol=1e-9)


def test_a_trajectory_keeps_the_times_of_its_solver() -> None:
    """And a shifted grid is not an even one: the public mean-flow code of CMT labels it as if it were."""
    shift = math.sqrt(48)
    times = EvenGrid(end=0.001, shift=shift)(15, LinearPath())
    printed = [1, 0.9898, 0.9783, 0.9652, 0.9502, 0.9328, 0.9124, 0.8881, 0.8587, 0.8224, 0.7765, 0.7166]
    printed += [0.6351, 0.5178, 0.3344, 0.0069]
    assert times.tolist() == pytest.approx(printed, abs=5e-5)
    distribution = mixture(LinearPath())
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    trajectory = solve(LawField(distribution), Heun(), z, times)
    assert trajectory.times.equal(times) and trajectory.states.shape == (16, 5, 1)
    assert (trajectory.times - torch.linspace(1, 0, 16, dtype=torch.float64)).abs().max() > 0.4


@pytest.mark.parametrize("target", PATHS, ids=repr)
def test_a_trajectory_on_another_path_is_the_flow_there(target: Path) -> None:
    distribution, there = mixture(EXPLODING), mixture(target)
    times = LogGrid(5.0, 0.05)(6, EXPLODING)
    z = 5.0 * torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    states = torch.stack([distribution.flow_map(z, 5.0, t.item()) for t in times])
    moved = Trajectory(states, times, EXPLODING).on(target)
    torch.testing.assert_close(target.level_of(moved.times), times, rtol=1e-10, atol=0)
    for (a, t), (b, r) in pairwise(zip(moved.states, moved.times, strict=True)):
        torch.testing.assert_close(b, there.flow_map(a, t.item(), r.item()), rtol=0, atol=1e-10)


def test_pure_noise_has_no_place_on_the_exploding_path() -> None:
    distribution = mixture(LinearPath())
    trajectory = solve(
        LawField(distribution), Euler(), torch.ones(1, 1).double(), EvenGrid()(2, LinearPath())
    )
    with pytest.raises(ValueError, match="begins at pure noise"):
        trajectory.on(EXPLODING)


@pytest.mark.parametrize("times", [[1.0], [0.5, 0.5], [0.1, 0.9], [[1.0, 0.0]]])
def test_times_that_do_not_decrease(times: list[float]) -> None:
    with pytest.raises(ValueError, match="times must be at least two, and decrease"):
        solve(LawField(mixture(LinearPath())), Euler(), torch.ones(1, 1).double(), torch.tensor(times))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMSolver(4), "order must be 1, 2 or 3, got 4"),  # type: ignore[arg-type]
        (lambda: LogGrid(end=0.0), "0 < end < start < inf"),
        (lambda: KarrasGrid(rho=0), "rho must be positive"),
        (lambda: EvenGrid(start=1.5), "0 <= end < start <= 1"),
        (lambda: EvenGrid(shift=0.0), "shift must be positive"),
        (lambda: EvenGrid()(0, LinearPath()), "steps must be at least 1, got 0"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
