"""Closed-form flows against printed numbers, against an ODE solver, and against each other."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from zoo.flow import Gaussian, GaussianMixture, LinearPath, VarianceExplodingPath, sample_mean_flow
from zoo.flow.paths import Path
from zoo.flow.tangent import total_derivative

F64 = torch.float64
LINEAR, VE = LinearPath(), VarianceExplodingPath()


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


def two_modes(path: Path) -> GaussianMixture:
    weights, stds = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([0.2, 0.35], dtype=F64)
    return GaussianMixture(weights, column(-1.0, 0.8), stds, path)


def bell(path: Path, dim: int = 3) -> Gaussian:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(dim, dim, generator=generator, dtype=F64)
    return Gaussian(torch.randn(dim, generator=generator, dtype=F64), root @ root.mT / dim, path)


def states(count: int, dim: int, seed: int = 1) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_flow_maps_of_two_modes_have_the_known_values() -> None:
    # Checked elsewhere against an adaptive Runge-Kutta solver of order 8; one unit of the last printed digit
    # is allowed.
    exploding = two_modes(VE).flow_map(column(-3.0, 0.5, 4.0), 5.0, 0.01)
    linear = two_modes(LINEAR).flow_map(column(-1.2, 0.1, 1.7), 1.0, 0.0)
    assert torch.allclose(exploding, column(-0.7765297, 0.6287048, 0.9543492), rtol=0, atol=1e-7)
    assert torch.allclose(linear, column(-1.0592260, 0.6581285, 1.3336507), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("path", "t", "r"), [(LINEAR, 1.0, 0.05), (VE, 5.0, 0.05)])
def test_flow_maps_solve_their_differential_equation(path: Path, t: float, r: float) -> None:
    for distribution, z in ((two_modes(path), column(-1.2, 0.1, 1.7)), (bell(path), states(1, 3))):

        def slope(time: float, flat: object, distribution: object = distribution, z: Tensor = z) -> object:
            return (
                distribution.velocity(torch.tensor(flat, dtype=F64).reshape(z.shape), time).flatten().numpy()
            )  # type: ignore[attr-defined]

        solved = solve_ivp(slope, (t, r), z.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
        assert torch.allclose(
            distribution.flow_map(z, t, r).flatten(), torch.tensor(solved.y[:, -1]), rtol=0, atol=1e-9
        )


def test_a_mixture_of_one_is_a_gaussian() -> None:
    for path in (LINEAR, VE):
        one = GaussianMixture(torch.ones(1, dtype=F64), column(0.4), torch.tensor([0.7], dtype=F64), path)
        distribution = Gaussian(torch.tensor([0.4], dtype=F64), torch.tensor([[0.49]], dtype=F64), path)
        z, t, r = states(64, 1), torch.linspace(0.1, 1, 64, dtype=F64), torch.linspace(0, 0.5, 64, dtype=F64)
        assert torch.allclose(one.velocity(z, t), distribution.velocity(z, t), atol=1e-13)
        assert torch.allclose(one.flow_map(z, t, r), distribution.flow_map(z, t, r), atol=1e-13)
        # Here a difference is divided by t - r.
        assert torch.allclose(one.mean_velocity(z, t, r), distribution.mean_velocity(z, t, r), atol=1e-11)


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    distribution, t = GaussianMixture.eight_gaussians(), torch.linspace(0.05, 1, 40, dtype=F64)
    z = states(40, 2).requires_grad_()
    offsets = z[:, None] - (1 - t)[:, None, None] * distribution.means
    variances = ((1 - t) ** 2 * 0.01 + t**2)[:, None]
    density = (-offsets.square().sum(-1) / (2 * variances) - variances.log()).logsumexp(-1)
    [gradient] = torch.autograd.grad(density.sum(), z)
    assert torch.allclose(distribution.score(z.detach(), t), gradient, rtol=1e-10, atol=1e-10)
    # On the linear path v = -(z + t score) / (1 - t).
    z, t = z.detach()[:-1], t[:-1]
    assert torch.allclose(
        distribution.velocity(z, t),
        -(z + t[:, None] * distribution.score(z, t)) / (1 - t)[:, None],
        atol=1e-9,
    )


@pytest.mark.parametrize("path", [LINEAR, VE])
def test_maps_compose_and_invert(path: Path) -> None:
    for distribution, z in ((two_modes(path), states(50, 1)), (bell(path), states(50, 3))):
        through = distribution.flow_map(distribution.flow_map(z, 0.9, 0.4), 0.4, 0.1)
        assert torch.allclose(through, distribution.flow_map(z, 0.9, 0.1), rtol=0, atol=1e-11)
        assert torch.allclose(
            distribution.flow_map(distribution.flow_map(z, 0.9, 0.3), 0.3, 0.9), z, rtol=0, atol=1e-10
        )


def test_flow_maps_keep_their_digits_far_out() -> None:
    # At z = 20 the upper tail is 1e-89 and the lower one rounds to 1. Far out one mode alone is left.
    z = column(-20.0, 20.0)
    ends = two_modes(LINEAR).flow_map(z, 1.0, 0.0)
    assert bool(ends.isfinite().all())
    back = two_modes(LINEAR).flow_map(ends, 0.0, 1.0)
    assert torch.allclose(back, z, rtol=1e-12)


def test_the_mean_velocity_satisfies_the_mean_flow_identity() -> None:
    t = torch.linspace(0.2, 1, 60, dtype=F64)
    h = t * torch.linspace(0.05, 1, 60, dtype=F64)
    for distribution, z in ((two_modes(LINEAR), states(60, 1)), (bell(LINEAR), states(60, 3))):

        def u(z: Tensor, t: Tensor, h: Tensor, label: None, distribution: object = distribution) -> Tensor:
            return distribution.mean_velocity(z, t, t - h)  # type: ignore[attr-defined]

        v = distribution.velocity(z, t)
        identity = v - h[:, None] * total_derivative(u, z, t, h, v, None)
        assert torch.allclose(u(z, t, h, None), identity, rtol=0, atol=1e-12)


def test_the_mean_velocity_at_no_step_is_the_velocity() -> None:
    distribution, t = bell(LINEAR), torch.linspace(0.1, 1, 20, dtype=F64)
    z = states(20, 3)
    near = distribution.mean_velocity(z, t, t - 1e-7)
    assert torch.allclose(distribution.mean_velocity(z, t, t), near, atol=1e-5)  # first order in the step
    assert torch.equal(distribution.velocity(z, t), distribution.mean_velocity(z, t, t))


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_sampling_the_exact_mean_velocity_is_exact_in_any_number_of_steps(steps: int) -> None:
    for distribution, dim in ((two_modes(LINEAR), 1), (bell(LINEAR), 3)):
        noise = states(200, dim)

        def u(z: Tensor, t: Tensor, h: Tensor, label: None, distribution: object = distribution) -> Tensor:
            return distribution.mean_velocity(z, t, t - h)  # type: ignore[attr-defined]

        samples = sample_mean_flow(u, noise, steps=steps)
        assert torch.allclose(samples, distribution.flow_map(noise, 1.0, 0.0), rtol=0, atol=1e-12)


def test_the_floor_has_the_known_values() -> None:
    distribution = Gaussian(torch.zeros(1, dtype=F64), torch.tensor([[0.25]], dtype=F64))
    floors = distribution.mean_flow_floor(torch.tensor([1.0, 0.7, 0.5]), torch.tensor([0.0, 0.2, 0.4]))
    assert torch.allclose(floors, torch.tensor([0.0625, 0.19036, 0.64], dtype=F64), rtol=0, atol=5e-6)


def test_mixtures_sample_their_law() -> None:
    distribution = GaussianMixture.eight_gaussians(radius=2.0, std=0.3)
    points = distribution.sample(40_000, torch.Generator().manual_seed(0))
    nearest = torch.cdist(points, distribution.means).argmin(1)
    share = nearest.bincount(minlength=8) / len(points)
    assert (share - 1 / 8).abs().max() < 5 * math.sqrt(7 / 64 / len(points))
    # E |x|^2 = radius^2 + 2 std^2; its standard deviation is about 1.2
    assert abs(points.square().sum(1).mean() - 4.18) < 5 * 1.3 / math.sqrt(len(points))


def test_bad_laws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"covariance must be \(2, 2\)"):
        Gaussian(torch.zeros(2), torch.eye(3))
    with pytest.raises(ValueError, match="negative eigenvalue"):
        Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0])))
    with pytest.raises(ValueError, match=r"got \(2,\), \(3, 1\) and \(2,\)"):
        GaussianMixture(torch.ones(2), torch.zeros(3, 1), torch.ones(2))
    with pytest.raises(ValueError, match="must be positive"):
        GaussianMixture(torch.zeros(1), torch.zeros(1, 1), torch.ones(1))
    with pytest.raises(ValueError, match="in one dimension only, this distribution has 2"):
        GaussianMixture.eight_gaussians().flow_map(torch.zeros(1, 2, dtype=F64), 1.0, 0.0)
