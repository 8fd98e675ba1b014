"""Preconditionings against the equations of their papers, and against each other across the bridges."""

import math
from pathlib import Path as FilePath

import pytest
import torch
from torch import Tensor

from zoo.flow import (
    MLP,
    DataPrediction,
    Diffusion,
    EDMPreconditioning,
    LinearPath,
    PreconditionedNetwork,
    TrigonometricPath,
    VarianceExplodingPath,
    VelocityPrediction,
    bridge,
)
from zoo.flow.handover import check_preconditioning
from zoo.flow.paths import Path, expand
from zoo.flow.preconditioning import Preconditioning
from zoo.flow.stored_network import StoredNetwork

PATHS = [LinearPath(), VarianceExplodingPath(), TrigonometricPath(0.5), TrigonometricPath(1.3)]
PRECONDITIONINGS = [EDMPreconditioning(0.5), EDMPreconditioning(0.75), VelocityPrediction(), DataPrediction()]
LEVELS = torch.tensor([0.002, 0.05, 0.4, 1.0, 7.0, 79.0], dtype=torch.float64)


def network(z: Tensor, t: Tensor, h: Tensor | None, label: Tensor | None) -> Tensor:
    """Some smooth function of state and time."""
    return torch.tanh(z * 0.7 + t[:, None].sin()) + 0.1 * t[:, None] * z.flip(1)


def draws() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, len(LEVELS), 3, dtype=torch.float64, generator=generator)
    return x, noise


def test_edm_is_the_table_of_its_paper() -> None:
    s, sd = LEVELS, 0.5
    edm, path = EDMPreconditioning(sd), VarianceExplodingPath()
    skip, out = edm.denoiser(path, s)
    factor, time = edm.inputs(path, s)
    torch.testing.assert_close(skip, sd**2 / (s**2 + sd**2), rtol=1e-14, atol=0)
    torch.testing.assert_close(out, s * sd / (s**2 + sd**2).sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(factor, 1 / (s**2 + sd**2).sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(time, s.log() / 4, rtol=1e-14, atol=0)
    # lambda(s) c_out^2 = 1: unit weight on the output is EDM's weight on the denoised data.
    assert isinstance(out, Tensor)
    torch.testing.assert_close((s**2 + sd**2) / (s * sd) ** 2 * out**2, torch.ones_like(s))


def test_edm_on_the_trigonometric_path_is_trigflow() -> None:
    """D = cos t x - sin t sd F_trig(x / sd), dx/dt = sd F_trig, with F_trig = -F."""
    sd = 0.5
    path, edm = TrigonometricPath(sd), EDMPreconditioning(sd)
    t = path.time_of(LEVELS)
    x, noise = draws()
    z = path.interpolate(x, noise, t)
    model = PreconditionedNetwork(network, edm, path)
    f_trig = -network(z / sd, (sd * t.tan()).log() / 4, None, None)
    denoised = t.cos()[:, None] * z - t.sin()[:, None] * sd * f_trig
    torch.testing.assert_close(model.denoise(z, t), denoised, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.velocity(z, t), sd * f_trig, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS, ids=repr)
@pytest.mark.parametrize("path", PATHS, ids=repr)
class TestEveryReadingOnEveryPath:
    def test_velocity_and_denoiser_agree(self, preconditioning: Preconditioning, path: Path) -> None:
        """v = alpha' D + sigma' (z - alpha D) / sigma, which the code never divides by sigma to get."""
        t = path.time_of(LEVELS)
        z = path.interpolate(*draws(), t)
        model = PreconditionedNetwork(network, preconditioning, path)
        denoised = model.denoise(z, t)
        alpha, sigma = expand(path.alpha(t), z), expand(path.sigma(t), z)
        noise = (z - alpha * denoised) / sigma
        expected = expand(path.alpha_slope(t, t), z) * denoised + expand(path.sigma_slope(t, t), z) * noise
        torch.testing.assert_close(model.velocity(z, t), expected, rtol=1e-9, atol=1e-9)

    def test_the_target_is_the_output_that_denoises(
        self, preconditioning: Preconditioning, path: Path
    ) -> None:
        t, (x, noise) = path.time_of(LEVELS), draws()
        z, target = path.interpolate(x, noise, t), preconditioning.target(path, x, noise, t)
        exact = PreconditionedNetwork(lambda *_: target, preconditioning, path)
        torch.testing.assert_close(exact.denoise(z, t), x, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(exact.velocity(z, t), path.velocity(x, noise, t), rtol=1e-9, atol=1e-9)

    def test_all_paths_hold_the_same_model(self, preconditioning: Preconditioning, path: Path) -> None:
        home = VarianceExplodingPath()
        x, noise = draws()
        there = PreconditionedNetwork(network, preconditioning, home).denoise(
            home.interpolate(x, noise, LEVELS), LEVELS
        )
        t = path.time_of(LEVELS)
        here = PreconditionedNetwork(network, preconditioning, path).denoise(path.interpolate(x, noise, t), t)
        torch.testing.assert_close(here, there, rtol=1e-10, atol=1e-10)

    def test_one_number_for_all_items(self, preconditioning: Preconditioning, path: Path) -> None:
        t = path.time_of(LEVELS)[3]
        z = path.interpolate(*draws(), t.expand(len(LEVELS)))
        model = PreconditionedNetwork(network, preconditioning, path)
        torch.testing.assert_close(model.denoise(z, t), model.denoise(z, t.expand(len(z))))
        torch.testing.assert_close(model.velocity(z, t), model.velocity(z, t.expand(len(z))))

    def test_described_and_rebuilt(self, preconditioning: Preconditioning, path: Path) -> None:
        stored = StoredNetwork(FilePath("run.ckpt"), {}, preconditioning.describe(), None)
        assert stored.build_preconditioning().describe() == preconditioning.describe()


@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS[:3], ids=repr)
def test_clean_data_stay_as_they_are(preconditioning: Preconditioning) -> None:
    """f(x, 0) = x, the boundary condition of consistency models, with a finite label of the time."""
    x, _ = draws()
    for path in PATHS:
        zero = torch.zeros(len(x), dtype=torch.float64)
        denoised = PreconditionedNetwork(network, preconditioning, path).denoise(x, zero)
        torch.testing.assert_close(denoised, x, rtol=1e-14, atol=1e-14)


class TestBoundary:
    """Data are kept up to a least level b: .002 in the first consistency models, .003 in ECT's samples."""

    def test_coefficients(self) -> None:
        s, sd, b = LEVELS, 0.5, 0.002
        skip, out = EDMPreconditioning(sd, boundary=b).denoiser(VarianceExplodingPath(), s)
        torch.testing.assert_close(skip, sd**2 / ((s - b) ** 2 + sd**2), rtol=1e-13, atol=0)
        torch.testing.assert_close(out, (s - b) * sd / (s**2 + sd**2).sqrt(), rtol=1e-12, atol=1e-18)

    @pytest.mark.parametrize("path", PATHS, ids=repr)
    def test_any_path_holds_the_same_model(self, path: Path) -> None:
        preconditioning, home, (x, noise) = (
            EDMPreconditioning(0.5, boundary=0.01),
            VarianceExplodingPath(),
            draws(),
        )
        there = PreconditionedNetwork(network, preconditioning, home).denoise(
            home.interpolate(x, noise, LEVELS), LEVELS
        )
        t = path.time_of(LEVELS)
        z, model = path.interpolate(x, noise, t), PreconditionedNetwork(network, preconditioning, path)
        denoised = model.denoise(z, t)
        torch.testing.assert_close(denoised, there, rtol=1e-10, atol=1e-10)
        alpha, sigma = expand(path.alpha(t), z), expand(path.sigma(t), z)
        slopes = expand(path.alpha_slope(t, t), z), expand(path.sigma_slope(t, t), z)
        expected = slopes[0] * denoised + slopes[1] * (z - alpha * denoised) / sigma
        torch.testing.assert_close(model.velocity(z, t), expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("path", PATHS, ids=repr)
    @pytest.mark.parametrize("level", [0.0, 0.004, 0.01])
    def test_states_below_it_are_data(self, path: Path, level: float) -> None:
        x, noise = draws()
        t = path.time_of(torch.full((len(x),), level, dtype=torch.float64))
        z = path.interpolate(x, noise, t)
        model = PreconditionedNetwork(network, EDMPreconditioning(0.5, boundary=0.01), path)
        torch.testing.assert_close(model.denoise(z, t), z / expand(path.alpha(t), z), rtol=1e-12, atol=1e-12)
        assert model.velocity(z, t).isfinite().all()

    def test_it_may_differ_at_a_hand_over(self) -> None:
        saved = EDMPreconditioning(0.5).describe()
        check_preconditioning(EDMPreconditioning(0.5, boundary=0.002), saved, "run.ckpt")
        with pytest.raises(ValueError, match=r"run\.ckpt was trained with EDMPreconditioning"):
            check_preconditioning(EDMPreconditioning(0.6, boundary=0.002), saved, "run.ckpt")

    def test_a_diffusion_model_has_none(self) -> None:
        preconditioning = EDMPreconditioning(boundary=0.002)
        with pytest.raises(ValueError, match=r"boundary=0\.002 is for consistency models"):
            preconditioning.target(preconditioning.path, *draws(), LEVELS)
        with pytest.raises(ValueError, match=r"boundary=0\.002\) has the boundary of a consistency model"):
            Diffusion(MLP(3, width=4, depth=1, two_times=False), preconditioning=preconditioning)


def test_pure_noise_has_finite_coefficients() -> None:
    noise = draws()[1]
    for path in (LinearPath(), TrigonometricPath(0.5)):
        end = torch.full((len(noise),), path.end, dtype=torch.float64)
        for preconditioning in PRECONDITIONINGS:
            model = PreconditionedNetwork(network, preconditioning, path)
            assert bool(
                model.denoise(noise, end).isfinite().all() & model.velocity(noise, end).isfinite().all()
            )


def test_the_linear_velocity_of_an_edm_network_in_float32() -> None:
    """Against float64 over the whole path: (z - D) / t would lose 1e-7 / t; the written-out form does not."""
    t = torch.linspace(1e-4, 80 / 81, 200, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x, noise = 0.5 * torch.randn(2, 200, 3, dtype=torch.float64, generator=generator)
    path = LinearPath()
    z = path.interpolate(x, 2 * noise, t)
    model = PreconditionedNetwork(network, EDMPreconditioning(0.5), path)
    exact = model.velocity(z, t)
    error = (model.velocity(z.float(), t.float()) - exact).abs().amax(1)
    assert bool((error < 1e-5 / t.clamp(max=1)).all())
    assert error.max() < 1e-5  # everywhere, not only far from the data


@pytest.mark.parametrize("source", PATHS, ids=repr)
@pytest.mark.parametrize("target", PATHS, ids=repr)
def test_bridges_carry_states_exactly_and_back(source: Path, target: Path) -> None:
    t, (x, noise) = source.time_of(LEVELS), draws()
    time, factor = bridge(t, source, target)
    torch.testing.assert_close(target.level_of(time), LEVELS, rtol=1e-11, atol=0)
    carried = expand(factor, x) * source.interpolate(x, noise, t)
    torch.testing.assert_close(carried, target.interpolate(x, noise, time), rtol=1e-11, atol=1e-12)
    back, inverse = bridge(time, target, source)
    torch.testing.assert_close(back, t, rtol=1e-10, atol=0)
    torch.testing.assert_close(factor * inverse, torch.ones_like(t), rtol=1e-11, atol=0)


def test_bridges_at_the_ends() -> None:
    linear, trigonometric = LinearPath(), TrigonometricPath(0.5)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    time, factor = bridge(ends, linear, trigonometric)
    torch.testing.assert_close(time, torch.tensor([0.0, math.pi / 2], dtype=torch.float64))
    # Data are data, and pure noise has the scale of each path.
    torch.testing.assert_close(factor, torch.tensor([1.0, 0.5], dtype=torch.float64))
    time, _ = bridge(ends, linear, VarianceExplodingPath())
    assert time.tolist() == [0.0, math.inf]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma_data": 0.0}, "sigma_data must be positive"),
        ({"boundary": -0.1}, "boundary must be a noise level from 0 up to sigma_max, got -0.1"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "0 < sigma_min < sigma_max must hold, got 2.0 and 1.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDMPreconditioning(**arguments)
