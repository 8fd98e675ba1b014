"""Two ways to differentiate along a flow, the tangents they take, and teachers' velocities in mean flow."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.flow import (
    MLP,
    DiT,
    EDMPreconditioning,
    FiniteDifference,
    FlowBatch,
    Gaussian,
    GaussianMixture,
    Guidance,
    LinearPath,
    MeanFlow,
    MeanFlowTarget,
    PreconditionedNetwork,
    Teacher,
    TrigonometricPath,
    mean_flow_error,
    mean_flow_target,
    total_derivative,
)


def mixture(path: Any = None) -> GaussianMixture:
    weights, stds = torch.tensor([[0.3, 0.7], [0.2, 0.35]], dtype=torch.float64)
    return GaussianMixture(weights, torch.tensor([[-1.0], [0.8]], dtype=torch.float64), stds, path)


def exact(distribution: Any) -> Any:
    return lambda z, t, h, label: distribution.mean_velocity(z, t, t - h)


Z = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64)[:, None]
T = torch.linspace(0.35, 0.9, 8, dtype=torch.float64)
H = torch.linspace(0.1, 0.3, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    "distribution", [mixture(), Gaussian(torch.zeros(1).double(), 0.25 * torch.eye(1).double())]
)
class TestOnTheClosedForms:
    def test_both_satisfy_the_identity(self, distribution: Any) -> None:
        """u = v - (t - r) du/dt, exactly and to second order in the step."""
        velocity, u = distribution.velocity(Z, T), distribution.mean_velocity(Z, T, T - H)
        exactly = velocity - H[:, None] * total_derivative(exact(distribution), Z, T, H, velocity, None)
        torch.testing.assert_close(exactly, u, rtol=0, atol=1e-8)
        errors = []
        for step in (2e-3, 1e-3):
            slope = FiniteDifference(step)(exact(distribution), Z, T, H, velocity, None)
            errors.append((velocity - H[:, None] * slope - u).abs().max().item())
        assert errors[0] < 1e-4 and errors[0] / errors[1] == pytest.approx(4, abs=0.3)
        slope = FiniteDifference(1e-4)(exact(distribution), Z, T, H, velocity, None)
        assert (velocity - H[:, None] * slope - u).abs().max() < 2e-7

    def test_the_ends_of_the_path(self, distribution: Any) -> None:
        """Neither past t = 1 nor past r: the shorter steps still agree, to first order at t = 1."""
        seen: list[tuple[Tensor, Tensor]] = []

        def u(z: Tensor, t: Tensor, h: Tensor, label: None) -> Tensor:
            seen.append((t, h))
            return distribution.mean_velocity(z, t, t - h)

        t = torch.tensor([1.0, 0.999, 0.5, 0.5, 0.004], dtype=torch.float64)
        h = torch.tensor([1.0, 0.5, 1e-3, 1e-6, 0.002], dtype=torch.float64)
        z = Z[:5]
        velocity = distribution.velocity(z, t)
        slope = FiniteDifference()(u, z, t, h, velocity, None)
        assert len(seen) == 2
        for times, steps in seen:
            assert bool((times <= 1).all() & (times >= 0).all() & (steps >= 0).all())
            torch.testing.assert_close(times - steps, t - h, rtol=0, atol=1e-15)  # r stands still
        found = velocity - h[:, None] * slope
        torch.testing.assert_close(found, distribution.mean_velocity(z, t, t - h), rtol=0, atol=0.03)
        inside = slice(2, 4)
        torch.testing.assert_close(
            found[inside], distribution.mean_velocity(z, t, t - h)[inside], rtol=0, atol=1e-4
        )


def awake(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.double()


@pytest.mark.parametrize("two_times", [True, False])
@pytest.mark.parametrize("kind", ["dit", "mlp"])
@pytest.mark.parametrize("path", [LinearPath(), TrigonometricPath(0.5)], ids=repr)
def test_networks(kind: str, two_times: bool, path: Any) -> None:
    """One time input or two, on two paths, with dropout that neither derivative sees."""
    made: Any = (
        DiT(8, 1, 4, width=16, depth=1, heads=2, num_classes=3, dropout=0.5, two_times=two_times)
        if kind == "dit"
        else MLP(3, width=16, depth=1, num_classes=3, dropout=0.5, two_times=two_times)
    )
    model = PreconditionedNetwork(awake(made).train(), EDMPreconditioning(0.5), path)
    generator = torch.Generator().manual_seed(1)
    z, velocity = torch.randn(2, 5, *made.shape, dtype=torch.float64, generator=generator)
    t = torch.linspace(0.2, 0.9, 5, dtype=torch.float64)
    h, label = (t / 2 if two_times else None), torch.tensor([0, 1, 2, 3, 0])
    exactly = total_derivative(model, z, t, h, velocity, label)
    found = FiniteDifference(1e-4)(model, z, t, h, velocity, label)
    torch.testing.assert_close(found, exactly, rtol=1e-5, atol=1e-6)
    assert not found.requires_grad and all(m.training for m in made.modules())


def test_labels_are_the_same_in_both_evaluations() -> None:
    """The official code drops labels in each of them apart, which adds (u_c - u_null) / (2 step)."""
    labels: list[Tensor] = []

    def u(z: Tensor, t: Tensor, h: Tensor, label: Tensor) -> Tensor:
        labels.append(label)
        return z * label[:, None]

    label = torch.tensor([0, 3, 1])
    FiniteDifference()(u, Z[:3], T[:3], H[:3], Z[:3], label)
    assert len(labels) == 2 and all(given.equal(label) for given in labels)


class TestTeachers:
    def test_a_teachers_velocity_leaves_no_floor(self) -> None:
        """MFD: at the exact u the error is zero, where the data's velocity keeps a variance (MFT)."""
        distribution = Gaussian(torch.zeros(1).double(), 0.25 * torch.eye(1).double())
        generator = torch.Generator().manual_seed(0)
        x, noise = torch.randn(2, 4000, 1, dtype=torch.float64, generator=generator)
        t, h = torch.full((4000,), 0.7, dtype=torch.float64), torch.full((4000,), 0.5, dtype=torch.float64)
        teacher = lambda z, t, label: distribution.velocity(z, t)  # noqa: E731
        distilled = mean_flow_error(
            exact(distribution), FlowBatch(x=0.5 * x, noise=noise, t=t, h=h), teacher=teacher
        )
        assert distilled.max() < 1e-16
        trained = mean_flow_error(exact(distribution), FlowBatch(x=0.5 * x, noise=noise, t=t, h=h))
        standard_error = trained.std().item() / 4000**0.5
        assert trained.mean().item() == pytest.approx(0.19036, abs=5 * standard_error)

    def test_the_networks_own_velocity_as_tangent(self) -> None:
        """Improved mean flow: v - h du/dt along u(z, t, 0), which is the exact velocity where u is exact."""
        distribution = mixture()
        velocity = distribution.velocity(Z, T)
        noisy = velocity + torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
        own = mean_flow_target(exact(distribution), Z, T, H, noisy, tangent="network")
        torch.testing.assert_close(
            own, distribution.mean_velocity(Z, T, T - H) + noisy - velocity, rtol=0, atol=1e-8
        )
        along_data = mean_flow_target(exact(distribution), Z, T, H, noisy)
        assert (own - along_data).abs().max() > 0.01

    def test_a_module_with_a_teacher_is_not_guided_twice(self) -> None:
        class Field:
            path, num_classes, shape = LinearPath(), 3, (2,)

        network = MLP(2, width=8, depth=1, num_classes=3)
        with pytest.raises(ValueError, match="guide the teacher"):
            MeanFlow(
                network, target=MeanFlowTarget(teacher=Teacher.of(Field())), guidance=Guidance(omega=1.5)
            )
        with pytest.raises(ValueError, match="tangent must be 'data' or 'network', got 'both'"):
            MeanFlow(network, target=MeanFlowTarget(tangent="both"))  # type: ignore[arg-type]


def test_bad_step() -> None:
    with pytest.raises(ValueError, match="step must be positive"):
        FiniteDifference(0.0)
