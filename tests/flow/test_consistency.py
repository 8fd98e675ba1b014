"""Consistency losses: published ratios, losses restated, closed-form minima, dropout, averages, samples."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo import rng
from zoo.flow import (
    MLP,
    ConsistencyModel,
    ConsistencySampler,
    ContinuousConsistency,
    DataPrediction,
    DiscreteConsistency,
    EDMPreconditioning,
    FiniteDifference,
    Gaussian,
    GaussianMixture,
    GridLevels,
    KarrasGrid,
    LinearPath,
    LogNormalLevels,
    LogVariance,
    PreconditionedNetwork,
    PseudoHuber,
    RatioLevels,
    SquaredDistance,
    Teacher,
    TrigonometricPath,
    VarianceExplodingPath,
    VelocityPrediction,
    sample_consistency,
)
from zoo.flow.consistency import continuous_tangent

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False, "limit_val_batches": 0,
}  # fmt: skip
EXPLODING = VarianceExplodingPath()


class TestLevels:
    @pytest.mark.parametrize(
        ("q", "printed"), [(256, (0.980547, 0.987689, 0.996094)), (4096, (0.998784, 0.999231, 0.999756))]
    )
    def test_published_ratios(self, q: float, printed: tuple[float, ...]) -> None:
        levels = RatioLevels(q=q, max_ratio=1.0)
        ratios = levels.ratio(torch.tensor([0.01, 1.0, 80.0]).double(), 0)
        assert ratios.tolist() == pytest.approx(printed, abs=5.1e-7)
        clipped = RatioLevels(q=q).ratio(torch.tensor([0.01, 1.0, 80.0]).double(), 0)
        assert clipped.tolist() == pytest.approx([min(ratio, 0.999) for ratio in printed], abs=5.1e-7)

    def test_stages_bring_the_levels_together(self) -> None:
        levels = RatioLevels(q=2.0, double_every=100)
        large = torch.tensor([80.0]).double()
        assert levels.ratio(large, 99).item() == pytest.approx(1 / 2)
        assert levels.ratio(large, 100).item() == pytest.approx(3 / 4)
        assert levels.ratio(large, 10**9).item() == 0.999
        # Near the data n(0) = 1 + k / 2 = 5: the first stage asks for the data themselves.
        s, lower = levels(0, 0, torch.arange(2000))
        expected = s * (1 - (1 + 8 / (1 + s.exp())) / 2).clamp(min=0)
        torch.testing.assert_close(lower, expected)
        assert 0.3 < (lower == 0).double().mean() < 0.95
        assert stats.kstest(s.log(), stats.norm(-1.1, 2.0).cdf).pvalue > 1e-3

    def test_progress_and_not_the_draw_moves_the_stage(self) -> None:
        levels, index = RatioLevels(q=2.0, double_every=10), torch.arange(5)
        early, late = levels(0, 0, index, "val/", progress=0), levels(0, 0, index, "val/", progress=40)
        assert early[0].equal(late[0]) and bool((early[1] < late[1]).all())

    def test_the_grid_of_ict_doubles_and_is_log_normal(self) -> None:
        levels = GridLevels(double_every=1000)
        assert [levels.steps(step) for step in (0, 999, 1000, 6999, 7000, 10**8)] == [
            10,
            10,
            20,
            640,
            1280,
            1280,
        ]
        grid = levels.levels(0)
        assert (
            len(grid) == 11
            and grid[0].item() == pytest.approx(80)
            and grid[-1].item() == pytest.approx(0.002)
        )
        distribution = stats.norm(-1.1, 2.0)
        mass = [distribution.cdf(math.log(a)) - distribution.cdf(math.log(b)) for a, b in pairwise(grid)]
        expected = torch.tensor(mass).double() / sum(mass)
        torch.testing.assert_close(levels.probabilities(grid), expected, rtol=1e-9, atol=1e-12)
        s, lower = levels(3, 0, torch.arange(20_000))
        place = (s[:, None] - grid).abs().argmin(1)
        assert s.equal(grid[place]) and lower.equal(grid[place + 1])
        counts = torch.bincount(place, minlength=10)
        assert stats.chisquare(counts.numpy(), 20_000 * expected.numpy()).pvalue > 1e-3

    def test_the_uniform_grid_of_ct(self) -> None:
        levels = GridLevels(first=18, mean=None)
        s, _ = levels(0, 0, torch.arange(18_000))
        counts = torch.bincount((s[:, None] - levels.levels(0)).abs().argmin(1), minlength=18)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3

    def test_the_growing_grid_of_ct(self) -> None:
        """N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 levels, s0 = 2, s1 = 150 (Song et al.
        2023, appendix C)."""
        updates = 800_000
        levels = GridLevels(first=1, last=150, grow_over=updates, mean=None)
        for k in (0, 1, 10, 35, 36, 100, 12_345, 400_000, updates - 1, updates, updates + 1000):
            done = min(k, updates) / updates
            printed = math.ceil(math.sqrt(done * ((150 + 1) ** 2 - 2**2) + 2**2) - 1) + 1
            assert levels.steps(k) + 1 == len(levels.levels(k)) == printed
        assert [levels.steps(k) for k in (0, updates)] == [1, 150]

    def test_the_average_of_ct_slows_down(self) -> None:
        """mu(k) = exp(s0 ln(mu0) / N(k)), from .9 to .9^(2 / 151)."""
        grid = GridLevels(first=1, last=150, grow_over=1000, mean=None)
        objective = DiscreteConsistency(grid, target_decay=0.9, decay_grows=True)
        assert objective.decay(0) == pytest.approx(0.9) and objective.decay(1000) == 0.9 ** (2 / 151)
        assert objective.decay(500) == math.exp(2 * math.log(0.9) / (grid.steps(500) + 1))
        assert DiscreteConsistency(grid, target_decay=0.9).decay(500) == 0.9

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: RatioLevels(q=1.0), "q must be above 1"),
            (lambda: RatioLevels(double_every=0), "double_every must be at least 1"),
            (lambda: RatioLevels(max_ratio=0.0), r"max_ratio must be in \(0, 1\]"),
            (lambda: GridLevels(first=20, last=10), "1 <= first <= last"),
            (lambda: GridLevels(double_every=0), "double_every must be at least 1"),
            (lambda: GridLevels(std=0.0), "std must be positive"),
            (lambda: GridLevels(grow_over=0), "grow_over must be at least 1"),
            (lambda: GridLevels(grow_over=5, double_every=5), "two ways to grow"),
        ],
    )
    def test_bad_arguments(self, make: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make()


def network(num_classes: int | None = 3, dropout: float = 0.0) -> MLP:
    made = MLP(3, width=16, depth=1, num_classes=num_classes, dropout=dropout, two_times=False)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return made


class FlowBatch:
    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        x = torch.randn(3, generator=torch.Generator().manual_seed(row)).double()
        return {"x": x, "label": torch.tensor(row % 3), "index": torch.tensor(row)}


def fitted(module: Any, lr: float = 0.0) -> float:
    """The loss of the first update on twelve items."""
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=lr)
    trainer = Trainer(max_steps=1, precision="64-true", **QUIET)
    trainer.fit(module, DataLoader(FlowBatch(), batch_size=12))  # type: ignore[arg-type]
    return float(trainer.callback_metrics["train/loss"])


def drawn(levels: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    index = torch.arange(12)
    x = torch.stack([FlowBatch()[row]["x"] for row in range(12)])
    noise = rng.normal(0, 0, index, (3,), "train/noise", torch.float64)
    s, lower = levels(0, 0, index, "train/", 0)
    return x, noise, s[:, None], lower[:, None], index % 3


def denoise(net: Any, z: Tensor, s: Tensor, label: Tensor, sd: float = 0.5) -> Tensor:
    """EDM's denoiser, restated; the data themselves at s = 0."""
    inside = s.clamp(min=1e-8)
    f = net(z / (s**2 + sd**2).sqrt(), inside[:, 0].log() / 4, None, label)
    return sd**2 / (s**2 + sd**2) * z + s * sd / (s**2 + sd**2).sqrt() * f


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
class TestDiscreteLosses:
    @pytest.mark.parametrize("weight", ["gap", "edm", "none"])
    def test_ect(self, weight: Any) -> None:
        """1 / (t - r) |D(y + t e, t) - sg D(y + r e, r)|, and y itself where r = 0."""
        levels, net = RatioLevels(q=4.0), network().double()
        x, noise, s, lower, label = drawn(levels)
        assert 0 < (lower == 0).sum() < 12
        target = torch.where(lower == 0, x, denoise(net, x + lower * noise, lower, label))
        norm = (denoise(net, x + s * noise, s, label) - target).square().sum(1).sqrt()
        weights = {
            "gap": 1 / (s - lower), "edm": (s**2 + 0.25) / (s * 0.5) ** 2, "none": torch.ones_like(s),
        }  # fmt: skip
        expected = (weights[weight][:, 0] * norm).mean().item()
        module = ConsistencyModel(
            network(), objective=DiscreteConsistency(levels, weight=weight), label_dropout=0.0, seed=0
        )
        assert fitted(module) == pytest.approx(expected, rel=1e-6)  # c = 1e-8 of the pseudo-Huber norm

    def test_ict(self) -> None:
        levels, net = GridLevels(), network().double()
        x, noise, s, lower, label = drawn(levels)
        target = denoise(net, x + lower * noise, lower, label)
        c = 0.00054 * math.sqrt(3)
        squares = (denoise(net, x + s * noise, s, label) - target).square().sum(1)
        expected = (((squares + c**2).sqrt() - c) / (s - lower)[:, 0]).mean().item()
        module = ConsistencyModel(
            network(), objective=DiscreteConsistency(levels, PseudoHuber()), label_dropout=0.0, seed=0
        )
        assert fitted(module) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("second", [False, True])
    def test_distillation(self, second: bool) -> None:
        """ECD takes one Euler step of the teacher, CD one of Heun."""
        levels, net = GridLevels(first=18, mean=None), network().double()
        distribution = Gaussian(torch.zeros(3).double(), 0.49 * torch.eye(3).double(), EXPLODING)

        class Field:
            path, num_classes, shape = EXPLODING, None, (3,)

            def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
                return distribution.denoise(z, t)

            def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
                return distribution.velocity(z, t)

        x, noise, s, lower, label = drawn(levels)
        z = x + s * noise
        slope = (z - z * 0.49 / (0.49 + s**2)) / s
        end = z + (lower - s) * slope
        if second:
            end = z + (lower - s) * (slope + (end - end * 0.49 / (0.49 + lower**2)) / lower) / 2
        target = denoise(net, end, lower, label)
        expected = (denoise(net, z, s, label) - target).square().mean().item()
        objective = DiscreteConsistency(levels, SquaredDistance(), "none", second_order=second)
        module = ConsistencyModel(
            network(), objective=objective, teacher=Teacher.of(Field()), label_dropout=0.0, seed=0
        )
        assert fitted(module) == pytest.approx(expected, rel=1e-9)

    def test_another_path_is_the_same_loss(self) -> None:
        """States and times of the linear path, the same network and noise levels."""
        losses = [
            fitted(ConsistencyModel(network(), path=path, label_dropout=0.0, seed=0))
            for path in (None, LinearPath(), TrigonometricPath(0.5))
        ]
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
        assert losses[2] == pytest.approx(losses[0], rel=1e-6)

    def test_both_passes_see_the_same_dropout(self) -> None:
        """At nearly equal times the outputs are nearly equal only under equal masks."""
        objective = DiscreteConsistency(RatioLevels(q=1e9, max_ratio=1.0), SquaredDistance(), "none")
        torch.manual_seed(0)
        module = ConsistencyModel(network(dropout=0.5), objective=objective, label_dropout=0.0, seed=0)
        before = torch.get_rng_state()
        assert fitted(module) < 1e-12
        assert not before.equal(torch.get_rng_state())  # and the next update draws others

    def test_the_target_gives_no_gradient(self) -> None:
        net = network().double()
        levels = RatioLevels(q=4.0)
        x, noise, s, lower, label = drawn(levels)
        with torch.no_grad():
            target = torch.where(lower == 0, x, denoise(net, x + lower * noise, lower, label))
        (denoise(net, x + s * noise, s, label) - target).square().mean().backward()
        module = ConsistencyModel(
            network(),
            objective=DiscreteConsistency(levels, SquaredDistance(), "none"),
            label_dropout=0.0,
            seed=0,
        )
        fitted(module, lr=1.0)
        for (name, moved), own in zip(module.network.named_parameters(), net.parameters(), strict=True):
            assert own.grad is not None
            torch.testing.assert_close(moved, own.detach() - own.grad, rtol=1e-9, atol=1e-12, msg=name)

    def test_an_average_gives_the_targets(self) -> None:
        objective = DiscreteConsistency(RatioLevels(q=4.0), target_decay=0.9)
        module = ConsistencyModel(network(), objective=objective, label_dropout=0.0, seed=0)
        start = {name: value.clone().double() for name, value in module.network.named_parameters()}
        fitted(module, lr=0.1)
        assert module.target_network is not None
        averages = dict(module.target_network.named_parameters())
        for name, value in module.network.named_parameters():
            torch.testing.assert_close(averages[name], 0.9 * start[name] + 0.1 * value, rtol=1e-6, atol=1e-9)
            assert not averages[name].requires_grad
        assert any(not value.equal(start[name]) for name, value in module.network.named_parameters())


def mixture(path: Any) -> GaussianMixture:
    weights, stds = torch.tensor([[0.3, 0.7], [0.2, 0.35]], dtype=torch.float64)
    return GaussianMixture(weights, torch.tensor([[-1.0], [0.8]], dtype=torch.float64), stds, path)


class TestClosedForms:
    def test_the_floor_of_consistency_training(self) -> None:
        """At the exact f = a_t z of N(0, s^2), a = s / sqrt(s^2 + t^2), the squared error of a pair keeps
        s^2 (a_t - a_r)^2 + (t a_t - r a_r)^2: the variance that no student can learn away."""
        sd, t, r = 0.5, 2.0, 1.5
        generator = torch.Generator().manual_seed(0)
        x, noise = torch.randn(2, 400_000, dtype=torch.float64, generator=generator)
        x = sd * x
        a_t, a_r = (sd / math.sqrt(sd**2 + time**2) for time in (t, r))
        error = (a_t * (x + t * noise) - a_r * (x + r * noise)).square()
        floor = sd**2 * (a_t - a_r) ** 2 + (t * a_t - r * a_r) ** 2
        assert error.mean().item() == pytest.approx(floor, abs=5 * error.std().item() / 400_000**0.5)
        # A teacher's step has no such floor: it errs by the solver alone, which is of second order in t - r.
        distribution = Gaussian(torch.zeros(1).double(), torch.eye(1).double() * sd**2, EXPLODING)
        z = (x + t * noise)[:1000, None]
        for gap, most in ((0.1, 2e-4), (0.01, 2e-8)):
            end = z - gap * distribution.velocity(z, t)
            distilled = (
                (distribution.flow_map(end, t - gap, 0.0) - distribution.flow_map(z, t, 0.0)).square().mean()
            )
            assert distilled < most

    def test_the_exact_map_has_no_tangent(self) -> None:
        """f(z, t) = cos t z - sin t v is constant along the flow: along the exact velocity the tangent of sCM
        vanishes."""
        sd = 0.5
        path = TrigonometricPath(sd)
        distribution = mixture(path)

        class Exact(nn.Module):
            """The velocity-like output whose denoiser is the exact flow map to the data."""

            num_classes = None

            def __init__(self) -> None:
                super().__init__()
                self.path = path

            def forward(self, z: Tensor, t: Tensor, h: None, label: None) -> Tensor:
                return (t.cos()[:, None] * z - distribution.flow_map(z, t, 0.0)) / t.sin()[:, None]

        z = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
        t = torch.linspace(0.3, 1.3, 7, dtype=torch.float64)
        model = Exact()
        tangent = continuous_tangent(
            model, z, t, model(z, t, None, None), distribution.velocity(z, t), None, eps=1.0
        )
        assert tangent.abs().max() < 1e-8
        difference = continuous_tangent(
            model,
            z,
            t,
            model(z, t, None, None),
            distribution.velocity(z, t),
            None,
            FiniteDifference(1e-4),
            eps=1.0,
        )
        assert difference.abs().max() < 1e-6

    def test_the_tangent_is_the_papers(self) -> None:
        """g restated with the JVP of cos t sin t (dz/dt, 1), as FastGen and sCM-mnist write it."""
        sd, warmup, eps = 0.5, 0.3, 0.1
        net = network(None).double()
        model = PreconditionedNetwork(net, EDMPreconditioning(sd), TrigonometricPath(sd))
        generator = torch.Generator().manual_seed(0)
        z, velocity = torch.randn(2, 6, 3, dtype=torch.float64, generator=generator)
        t = torch.linspace(0.1, 1.5, 6, dtype=torch.float64)

        def f(z: Tensor, t: Tensor) -> Tensor:
            return -net(z / sd, (sd * t.tan()).log() / 4, None, None)  # F_trig = -F

        both = (t.cos() * t.sin())[:, None]
        value, jvp = torch.func.jvp(f, (z, t), (both * velocity, both[:, 0]))
        g = -(t.cos()[:, None] ** 2) * (sd * value - velocity) - warmup * (both * z + sd * jvp)
        expected = g / (g.square().mean(1, keepdim=True).sqrt() + eps)
        found = continuous_tangent(
            model, z, t, model.velocity(z, t).detach(), velocity, None, warmup=warmup, eps=eps
        )
        torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-10)

    def test_two_steps_of_the_exact_map_keep_the_law(self) -> None:
        """Noise, map, new noise, map: the marginal stays that of the data."""
        distribution = mixture(EXPLODING)

        class Model:
            path = EXPLODING

            def denoise(self, z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
                return distribution.flow_map(z, t.item(), 0.0)

        index = torch.arange(20_000)
        times = torch.tensor([80.0, 0.8], dtype=torch.float64)
        draw = lambda step: rng.normal(0, step, index, (1,), "noise", torch.float64)  # noqa: E731
        for steps in (1, 2):
            samples = sample_consistency(Model(), draw, times[:steps])[:, 0].numpy()
            cdf = lambda x: 0.3 * stats.norm.cdf(x, -1.0, 0.2) + 0.7 * stats.norm.cdf(x, 0.8, 0.35)  # noqa: E731
            assert stats.kstest(samples, cdf).pvalue > 1e-3

    @pytest.mark.parametrize("eps", [0.0, 0.3])
    @pytest.mark.parametrize("path", [EXPLODING, TrigonometricPath(0.5), LinearPath()], ids=repr)
    def test_steps_are_those_of_the_algorithm(self, eps: float, path: Any) -> None:
        """x <- f(x + sqrt(s^2 - eps^2) e, s), item by item in EDM's own coordinates, on every path."""
        net = network().double().eval()
        noise = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        levels, labels = torch.tensor([80.0, 2.0, 0.6], dtype=torch.float64), torch.arange(5) % 3
        expected = []
        for item, label in enumerate(labels):
            denoise = PreconditionedNetwork(net, EDMPreconditioning(0.5, boundary=eps)).denoise
            x = denoise(levels[0] * noise[0, item][None], levels[:1], label[None])
            for step in (1, 2):
                state = x + math.sqrt(levels[step] ** 2 - eps**2) * noise[step, item]
                x = denoise(state, levels[step][None], label[None])
            expected.append(x[0].detach())
        model = PreconditionedNetwork(net, EDMPreconditioning(0.5, boundary=eps), path)
        samples = sample_consistency(model, lambda step: noise[step], path.time_of(levels), labels)
        torch.testing.assert_close(samples, torch.stack(expected), rtol=1e-9, atol=1e-9)

    def test_steps_below_the_boundary_keep_what_they_are_given(self) -> None:
        model = PreconditionedNetwork(network().double().eval(), EDMPreconditioning(0.5, boundary=0.3))
        noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        once, twice = (
            sample_consistency(model, lambda step: noise[step], torch.tensor(levels), torch.zeros(5).long())
            for levels in ([80.0], [80.0, 0.2])
        )
        torch.testing.assert_close(twice, once)


class TestContinuousLoss:
    def restated(self, velocity_of: Any, weight: str, warmup: float) -> float:
        sd, net = 0.5, network().double()
        index = torch.arange(12)
        x = torch.stack([FlowBatch()[row]["x"] for row in range(12)])
        noise = rng.normal(0, 0, index, (3,), "train/noise", torch.float64)
        s = (-1.0 + 1.4 * rng.normal(0, 0, index, (), "train/level", torch.float64)).exp()
        t = (s / sd).atan()
        z = t.cos()[:, None] * x + sd * t.sin()[:, None] * noise
        model = PreconditionedNetwork(net, EDMPreconditioning(sd), TrigonometricPath(sd))
        output = model.velocity(z, t, index % 3).detach()
        velocity = velocity_of(x, noise, z, t)
        g = continuous_tangent(model, z, t, output, velocity, index % 3, warmup=warmup)
        weights = 1 / s if weight == "noise" else torch.ones_like(s)
        return (weights * g.square().mean(1)).mean().item()

    @pytest.mark.parametrize("weight", ["noise", "none"])
    def test_sct(self, weight: Any) -> None:
        """dz/dt = cos t (sd e) - sin t x; at update 0 of a warm-up the second term is absent."""
        pair = lambda x, noise, z, t: 0.5 * t.cos()[:, None] * noise - t.sin()[:, None] * x  # noqa: E731
        for warmup, share in ((0, 1.0), (100, 0.0)):
            module = ConsistencyModel(
                network(),
                objective=ContinuousConsistency(weight=weight, warmup=warmup),
                label_dropout=0.0,
                seed=0,
            )
            assert fitted(module) == pytest.approx(self.restated(pair, weight, share), rel=1e-9)

    def test_scd(self) -> None:
        path = TrigonometricPath(0.5)
        distribution = Gaussian(torch.zeros(3).double(), 0.49 * torch.eye(3).double(), path)

        class Field:
            num_classes, shape = None, (3,)

            def __init__(self) -> None:
                self.path = path

            def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
                return distribution.velocity(z, t)

        module = ConsistencyModel(
            network(), objective=ContinuousConsistency(warmup=0), teacher=Teacher.of(Field()),
            label_dropout=0.0, seed=0,
        )  # fmt: skip
        expected = self.restated(lambda x, noise, z, t: distribution.velocity(z, t), "noise", 1.0)
        assert fitted(module) == pytest.approx(expected, rel=1e-9)

    def test_the_gradient_runs_along_the_tangent(self) -> None:
        """d loss / d F = -2 w g / values, wherever F stands."""
        module = ConsistencyModel(
            network(), objective=ContinuousConsistency(warmup=0, uncertainty=LogVariance(8)),
            label_dropout=0.0, seed=0,
        )  # fmt: skip
        before = {name: value.clone() for name, value in module.named_parameters()}
        fitted(module, lr=0.01)
        moved = {name for name, value in module.named_parameters() if not value.float().equal(before[name])}
        assert "uncertainty.weight" in moved and "network.final_layer.weight" in moved


class TestTheModule:
    def test_training_learns_the_map_of_a_gaussian(self) -> None:
        """ECT on N(0, .5^2) in one dimension approaches a_t z without a teacher."""
        torch.manual_seed(0)
        net = MLP(1, width=32, depth=2, two_times=False)
        module = ConsistencyModel(
            net,
            objective=DiscreteConsistency(RatioLevels(-0.5, 1.2, q=16.0), SquaredDistance(), "none"),
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
            seed=0,
        )
        rows = torch.arange(256)
        batches = [{"x": 0.5 * rng.normal(9, k, rows, (1,)), "index": rows + 256 * k} for k in range(500)]
        Trainer(max_steps=500, **QUIET).fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        z = torch.linspace(-3, 3, 25)[:, None]
        for s in (0.5, 1.5):
            with torch.no_grad():
                found = module.model.denoise(s * z, torch.full((25,), s))
            gain = 0.5 / math.sqrt(0.25 + s**2)
            # The denoiser, where an untrained average would end, has the gain .25 / (.25 + s^2).
            error, apart = (
                (found - gain * s * z).abs().mean(),
                (0.25 / (0.25 + s**2) - gain) * s * z.abs().mean(),
            )
            assert error < 0.25 * abs(apart.item())

    def test_samples(self) -> None:
        module = ConsistencyModel(network(), sampler=ConsistencySampler(levels=[80.0, 0.7]), seed=0)
        labels, index = torch.tensor([0, 1, 3]), torch.arange(3)
        noise = [rng.normal(4, k, index, (3,), "sample/noise") for k in range(2)]
        with torch.no_grad():
            one = module.model.denoise(80.0 * noise[0], torch.full((3,), 80.0), labels)
            two = module.model.denoise(one + 0.7 * noise[1], torch.full((3,), 0.7), labels)
        torch.testing.assert_close(module.sample(labels, 1, seed=4), one, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module.sample(labels, 2, seed=4), two, rtol=1e-4, atol=1e-5)
        assert bool(module.sample(labels, 7, seed=4).isfinite().all())

    def test_samples_with_a_boundary(self) -> None:
        """ECT's official code trains without a boundary, and samples with one at .003."""
        module = ConsistencyModel(
            network(), sampler=ConsistencySampler(levels=[80.0, 0.7], boundary=0.003), seed=0
        )
        preconditioning, labels, index = (
            EDMPreconditioning(boundary=0.003),
            torch.tensor([0, 1, 3]),
            torch.arange(3),
        )
        model = PreconditionedNetwork(module.network, preconditioning)
        noise = [rng.normal(4, k, index, (3,), "sample/noise") for k in range(2)]
        with torch.no_grad():
            one = model.denoise(80.0 * noise[0], torch.full((3,), 80.0), labels)
            two = model.denoise(one + 0.7 * noise[1], torch.full((3,), 0.7), labels)
        torch.testing.assert_close(module.sample(labels, 2, seed=4), two, rtol=1e-4, atol=1e-5)
        plain = ConsistencyModel(network(), sampler=ConsistencySampler(levels=[80.0, 0.7]), seed=0)
        plain.network.load_state_dict(module.network.state_dict())
        assert not plain.sample(labels, 2, seed=4).allclose(two, rtol=1e-4, atol=1e-5)
        assert fitted(plain) == fitted(module)

    def test_a_test_uses_the_stage_of_training(self, tmp_path: Path) -> None:
        objective = lambda: DiscreteConsistency(RatioLevels(q=2.0, double_every=2), SquaredDistance(), "none")  # noqa: E731
        module = ConsistencyModel(network(), objective=objective(), seed=0)
        module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
        trainer = Trainer(max_steps=6, **QUIET)
        loader = DataLoader(Single(), batch_size=12)  # type: ignore[arg-type]
        trainer.fit(module, loader)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        again = ConsistencyModel(network(), objective=objective(), seed=0)
        [trained] = Trainer(**QUIET).test(
            again, loader, ckpt_path=tmp_path / "run.ckpt", verbose=False, weights_only=True
        )
        [fresh] = Trainer(**QUIET).test(
            again.__class__(network(), objective=objective(), seed=0), loader, verbose=False
        )
        assert trained["test/loss"] < 0.8 * fresh["test/loss"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"preconditioning": DataPrediction()}, "DataPrediction does not keep clean data as they are"),
            (
                {"objective": ContinuousConsistency(), "path": LinearPath()},
                "trains on the trigonometric path",
            ),
            ({"sampler": {"levels": []}}, "sampler: levels must be positive"),
            (
                {"preconditioning": EDMPreconditioning(boundary=0.1), "objective": ContinuousConsistency()},
                "a continuous objective keeps data at the level 0",
            ),
            (
                {"preconditioning": VelocityPrediction(), "sampler": {"boundary": 0.003}},
                "boundary needs EDMPreconditioning, got VelocityPrediction",
            ),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ConsistencyModel(network(), **arguments)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: DiscreteConsistency(weight="t"), "weight must be 'gap', 'edm' or 'none', got 't'"),  # type: ignore[arg-type]
            (lambda: DiscreteConsistency(target_decay=1.0), r"target_decay must be in \[0, 1\)"),
            (
                lambda: DiscreteConsistency(target_decay=0.9, decay_grows=True),
                "decay_grows needs a target_decay, and GridLevels",
            ),
            (lambda: DiscreteConsistency().decay(0), "target_decay is null"),
            (lambda: ContinuousConsistency(warmup=-1), "warmup must be at least 0"),
            (lambda: ContinuousConsistency(eps=0.0), "eps must be positive"),
            (lambda: ContinuousConsistency(weight="gap"), "weight must be 'noise' or 'none'"),  # type: ignore[arg-type]
            (lambda: PseudoHuber(0.0), "c must be positive"),
        ],
    )
    def test_bad_objectives(self, make: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make()


class Single(FlowBatch):
    """The items in float32."""

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        item = super().__getitem__(row)
        return item | {"x": item["x"].float()}


def test_velocity_networks_are_consistency_models_too() -> None:
    """A flow-matching network keeps clean data: f(z, 0) = z."""
    module = ConsistencyModel(network(), preconditioning=VelocityPrediction(), seed=0)
    assert isinstance(module.path, LinearPath) and math.isfinite(fitted(module))


def test_levels_of_the_grid_are_edms() -> None:
    levels = GridLevels(first=17).levels(0)
    torch.testing.assert_close(levels, KarrasGrid()(18, EXPLODING)[:-1])
    assert LogNormalLevels(0.0, 0.0)(0, 0, torch.arange(2)).tolist() == [1.0, 1.0]
