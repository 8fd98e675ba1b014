"""Improved mean flow: its regression of velocities, its guidance, its second head, and its samples."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo import rng
from zoo.flow import (
    MLP,
    AdaptiveWeighting,
    DiT,
    EDMPreconditioning,
    FlowBatch,
    Gaussian,
    GuidanceDraws,
    GuidedMeanFlowSampler,
    ImprovedMeanFlow,
    LinearPath,
    MeanFlow,
    MeanFlowTimes,
    PreconditionedNetwork,
    VelocityPrediction,
    hand_over,
    improved_mean_flow_error,
    mean_flow_error,
)
from zoo.flow.improved_mean_flow import own_velocity

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False, "limit_val_batches": 0,
}  # fmt: skip
LAW = Gaussian(torch.zeros(1).double(), 0.25 * torch.eye(1).double())


def awake(network: nn.Module, std: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return network.double()


def dit(**arguments: Any) -> DiT:
    settings = {"width": 16, "depth": 2, "heads": 2, "num_classes": 3} | arguments
    return awake(DiT(8, 1, 4, **settings), 0.15)


def draws(count: int, *shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index = torch.arange(count)
    x, noise = (rng.normal(0, k, index, shape, "test", torch.float64) for k in range(2))
    t = 0.2 + 0.7 * rng.uniform(0, 0, index, (), "t", torch.float64)
    h = t * rng.uniform(0, 0, index, (), "h", torch.float64)
    return x, noise, t, h


class TestDraws:
    @pytest.mark.parametrize("power", [1.0, 0.0, 2.5])
    def test_the_density_of_strengths(self, power: float) -> None:
        """The share below w is that of the integral of s^-power from 1 to w."""
        drawn = GuidanceDraws(8.0, power)(0, 0, torch.arange(40_000))
        omega, start, end = drawn.unbind(1)
        grid = torch.linspace(1, 8, 100_001, dtype=torch.float64)
        mass = (grid**-power).cumsum(0)
        for bound in (1.5, 3.0, 6.0):
            share = float(mass[(grid <= bound).sum() - 1] / mass[-1])
            found = float((omega < bound).double().mean())
            assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 40_000) + 1e-4)
        assert float(start.mean()) == pytest.approx(0.25, abs=0.003) and float(start.max()) < 0.5
        assert float(end.mean()) == pytest.approx(0.75, abs=0.003) and float(end.min()) >= 0.5

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="largest must be a strength above 1, got 1"):
            GuidanceDraws(1.0)


class TestTheLoss:
    def test_without_guidance_or_head_it_is_mean_flow_along_its_own_velocity(self) -> None:
        x, noise, t, h = draws(16, 3)
        network = awake(MLP(3, width=16, depth=1))
        model = PreconditionedNetwork(network, VelocityPrediction())
        found, none = improved_mean_flow_error(model, FlowBatch(x=x, noise=noise, t=t, h=h))
        expected = mean_flow_error(network, FlowBatch(x=x, noise=noise, t=t, h=h), tangent="network")
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        assert none is None
        ours = torch.autograd.grad(found.sum(), list(network.parameters()), allow_unused=True)
        theirs = torch.autograd.grad(expected.sum(), list(network.parameters()), allow_unused=True)
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)

    def test_the_floor_is_the_variance_of_the_data(self) -> None:
        """At the exact u, V is the exact velocity: what is left is the variance of e - x given z, which for
        N(0, s^2) is s^2 / (t^2 + (1 - t)^2 s^2)."""

        class Exact:
            network, num_classes = None, None

            def eager(self, z: Tensor, t: Tensor, h: Tensor, label: None) -> Tensor:
                return LAW.mean_velocity(z, t, t - h)

            __call__ = eager

        count, t, r = 4000, 0.7, 0.2
        x, noise, _, _ = draws(count, 1)
        times = torch.full((count,), t, dtype=torch.float64)
        error, _ = improved_mean_flow_error(Exact(), FlowBatch(x=0.5 * x, noise=noise, t=times, h=times - r))
        floor = 0.25 / (t**2 + (1 - t) ** 2 * 0.25)
        assert float(error.mean()) == pytest.approx(floor, abs=4 * float(error.std()) / count**0.5)
        z = LinearPath().interpolate(0.5 * x, noise, times)
        residual = (LAW.velocity(z, times) - (noise - 0.5 * x)).square().sum(1)
        torch.testing.assert_close(error, residual, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("head", [False, True])
    def test_restated(self, head: bool) -> None:
        """Equations of the paper by plain calls: one at a time, the derivative by differences."""
        network = dit(guidance=True, velocity_depth=1 if head else 0)
        model = PreconditionedNetwork(network, EDMPreconditioning(0.75), LinearPath())
        x, noise, t, h = draws(6, 1, 8, 8)
        h[4:] = 0.0
        label = torch.tensor([0, 1, 3, 2, 1, 3])  # 3 is unconditional
        given = GuidanceDraws()(0, 0, torch.arange(6))
        given[4:, 1], given[4:, 2] = 0.0, 1.0
        given[0, 1:] = torch.tensor([0.0, 1.0])  # guided for sure
        given[1, 1] = 0.95  # after the item's time: not guided
        omega = torch.where((given[:, 1] <= t) & (t <= given[:, 2]), given[:, 0], 1.0)
        guided = ((omega > 1) & (label < 3)).nonzero()[:, 0]
        assert 0 in guided and 1 not in guided
        found, found_velocity = improved_mean_flow_error(
            model,
            FlowBatch(x=x, noise=noise, t=t, h=h, label=label, count=4, dropped=label == 3),
            guidance=given,
        )
        name = "velocity" if head else "mean"
        for i in range(6):
            rows = slice(i, i + 1)
            z = (1 - t[i]) * x[rows] + t[i] * noise[rows]
            always = lambda w: torch.tensor([[w, 0.0, 1.0]], dtype=torch.float64)  # noqa: E731
            zero = torch.zeros(1, dtype=torch.float64)
            with torch.no_grad():
                own = model(z, t[rows], zero, label[rows], guidance=always(float(omega[i])), head=name)
                free = model(z, t[rows], zero, torch.tensor([3]), guidance=always(1.0), head=name)
                target = noise[rows] - x[rows]
                if label[i] < 3:
                    target = target + (1 - 1 / omega[i]) * (own - free)
                step = 1e-5
                ends = [
                    model(z + a * own, t[rows] + a, h[rows] + a, label[rows], guidance=given[rows])
                    for a in (step, -step)
                ]
                slope = (ends[0] - ends[1]) / (2 * step) if h[i] > 0 else torch.zeros_like(z)
                compound = model(z, t[rows], h[rows], label[rows], guidance=given[rows]) + h[i] * slope
                error = (compound - target).square().sum()
                torch.testing.assert_close(found[i].detach(), error, rtol=1e-6, atol=1e-7)
                if head:
                    velocity = model(z, t[rows], h[rows], label[rows], guidance=given[rows], head="velocity")
                    assert found_velocity is not None
                    expected = (velocity - target).square().sum()
                    torch.testing.assert_close(found_velocity[i].detach(), expected, rtol=1e-9, atol=1e-11)
        assert (found_velocity is not None) == head

    def test_its_fixed_point_is_guided_with_the_scale_w(self) -> None:
        """Where v_c(w) = w v_c - (w - 1) v_u, the target v_c + (1 - 1 / w) (v_c(w) - v_u) is v_c(w)."""
        w, v_c, v_u = 3.0, 0.7, -0.2
        guided = w * v_c - (w - 1) * v_u

        class Guided:
            network, num_classes = None, 2

            def eager(self, z: Tensor, t: Tensor, h: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
                omega = guidance[:, :1]
                return torch.where(label[:, None] == 2, v_u, omega * v_c - (omega - 1) * v_u).expand_as(z)

            __call__ = eager

        zero, one = torch.zeros(1, 1).double(), torch.ones(1).double()
        batch = FlowBatch(
            x=zero, noise=v_c * torch.ones(1, 1).double(), t=one / 2, h=one / 4,
            label=torch.tensor([1]), count=1,
        )  # fmt: skip
        given = torch.tensor([[w, 0.0, 1.0]]).double()
        error, _ = improved_mean_flow_error(Guided(), batch, guidance=given)
        assert float(error) == pytest.approx(0.0, abs=1e-20)
        assert guided == pytest.approx(2.5)

    def test_only_guided_items_ask_for_no_class(self) -> None:
        asked: list[Tensor] = []

        class Watched:
            network, num_classes = None, 3

            def eager(self, z: Tensor, t: Tensor, h: Tensor, label: Tensor, guidance: Tensor) -> Tensor:
                asked.extend([label, guidance])
                return z

        z, t = torch.ones(4, 2), torch.full((4,), 0.5)
        own, free = own_velocity(
            Watched(), z, t, torch.tensor([0, 1, 2, 3]), torch.full((4,), 2.0), torch.tensor([1, 2])
        )
        assert asked[0].tolist() == [0, 1, 2, 3, 3, 3] and asked[1][:, 0].tolist() == [2.0] * 4 + [1.0] * 2
        assert len(own) == 4 and len(free) == 2


class TestTheNetwork:
    def test_the_head_has_its_last_blocks_for_itself(self) -> None:
        network = dit(guidance=True, velocity_depth=1)
        z, t, h = torch.randn(2, 1, 8, 8).double(), torch.rand(2).double(), torch.rand(2).double()
        label, given = torch.tensor([0, 3]), torch.tensor([[2.0, 0.1, 0.8], [1.0, 0.0, 1.0]]).double()
        both = network(z, t, h, label, given, "both")
        assert both.shape == (2, 2, 1, 8, 8)
        torch.testing.assert_close(both[0], network(z, t, h, label, given))
        torch.testing.assert_close(both[1], network(z, t, h, label, given, "velocity"))
        network(z, t, h, label, given, "velocity").sum().backward()
        untouched = {
            name.split(".")[0] + name.split(".")[1]
            for name, p in network.named_parameters()
            if p.grad is None
        }
        assert untouched == {"blocks1", "final_layerlinear", "final_layeradaLN_modulation"}

    def test_none_stands_for_no_guidance(self) -> None:
        network = dit(guidance=True)
        z, t = torch.randn(2, 1, 8, 8).double(), torch.rand(2).double()
        none = torch.tensor([[1.0, 0.0, 1.0]]).double().expand(2, -1)
        torch.testing.assert_close(network(z, t), network(z, t, guidance=none))
        assert not network(z, t).allclose(network(z, t, guidance=2 * none))

    @pytest.mark.parametrize("two_times", [False, True])
    def test_hand_over_from_a_plain_network(self, two_times: bool) -> None:
        """Whatever it is asked for, the wider network is the plain one at first; and so is its new head, at
        h = 0."""
        plain, wide = dit(two_times=two_times), dit(guidance=True, velocity_depth=1)
        hand_over(wide, plain.state_dict())
        z, t, h = torch.randn(4, 1, 8, 8).double(), torch.rand(4).double(), torch.rand(4).double()
        label, given = torch.tensor([0, 1, 2, 3]), GuidanceDraws()(0, 0, torch.arange(4))
        expected = plain(z, t, h if two_times else None, label)
        assert wide(z, t, h, label, given).equal(expected)
        at_once = plain(z, t, 0 * h if two_times else None, label)
        assert wide(z, t, 0 * h, label, given, "velocity").equal(at_once)
        hand_over(dit(guidance=True, velocity_depth=1), wide.state_dict())  # and on from there

    def test_what_is_refused(self) -> None:
        z, t = torch.randn(2, 1, 8, 8).double(), torch.rand(2).double()
        with pytest.raises(ValueError, match="this DiT knows no guidance"):
            dit()(z, t, guidance=torch.ones(2, 3).double())
        with pytest.raises(ValueError, match="this DiT has no head for velocities"):
            dit()(z, t, head="both")
        with pytest.raises(ValueError, match=r"velocity_depth must be from 0 to depth \(2\), got 3"):
            dit(velocity_depth=3)
        with pytest.raises(ValueError, match="guidance leads away from unconditional samples"):
            dit(guidance=True, num_classes=None)


def test_samples_are_guided_as_asked() -> None:
    network = dit(guidance=True, velocity_depth=1).float()
    module = ImprovedMeanFlow(network, sampler=GuidedMeanFlowSampler(omega=3.0, start=0.2, end=0.7), seed=0)
    labels, index = torch.tensor([0, 1, 3]), torch.arange(3)
    noise = rng.normal(5, 0, index, (1, 8, 8), "sample/noise")
    one, given = torch.ones(3), torch.tensor([[3.0, 0.2, 0.7]]).expand(3, -1)
    with torch.no_grad():
        middle = noise - 0.5 * network(noise, one, one / 2, labels, given)
        expected = middle - 0.5 * network(middle, one / 2, one / 2, labels, given)
    torch.testing.assert_close(module.sample(labels, 2, seed=5), expected)


def test_training_learns_to_be_guided() -> None:
    """Two classes at -1 and 1 with equal spread: guidance moves a class away from the mean of both.

    The velocities of the distribution are linear in z, and so are the guided ones: w v_c - (w - 1) v_u is not
    the velocity of any class, so samples move outward. Asked for after one run, by the same network.
    """
    torch.manual_seed(0)
    network = MLP(1, width=64, depth=2, num_classes=2, guidance=True)
    module = ImprovedMeanFlow(
        network, times=MeanFlowTimes(0.0, 1.2, prob_r_neq_t=0.5), guidance=GuidanceDraws(4.0),
        weighting=AdaptiveWeighting(power=0.0), label_dropout=0.2,
        optimizer=partial(torch.optim.Adam, lr=3e-3), seed=0,
    )  # fmt: skip
    index = torch.arange(256)
    batches = [
        {
            "x": 0.5 * rng.normal(3, k, index, (1,)) + (2.0 * (index % 2) - 1)[:, None],
            "label": index % 2,
            "index": index,
        }
        for k in range(400)
    ]
    Trainer(max_steps=400, **QUIET).fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    means = []
    for omega in (1.0, 3.0):
        module.sampler = GuidedMeanFlowSampler(omega=omega)
        samples = module.sample(index % 2, 1)[:, 0]
        means.append([float(samples[index % 2 == label].mean()) for label in range(2)])
    assert means[0] == pytest.approx([-1, 1], abs=0.3)  # of 400 updates
    assert means[1][0] < means[0][0] - 0.15 and means[1][1] > means[0][1] + 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": {"omega": 2.0}}, "the network knows no guidance, but sampler.omega=2.0"),
        ({"guidance": GuidanceDraws()}, "the network knows no guidance"),
        ({"weighting": {"power": -1.0}}, "weighting: power must be at least 0"),
        ({"weighting": {"reduction": "max"}}, "reduction must be 'sum' or 'mean'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImprovedMeanFlow(dit(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": {"omega": 0.5}}, "sampler: omega must be at least 1"),
        ({"sampler": {"start": 0.8, "end": 0.2}}, "0 <= start <= end <= 1"),
    ],
)
def test_bad_guidance(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImprovedMeanFlow(dit(guidance=True), **arguments)


def test_a_mean_flow_run_asks_for_no_guidance() -> None:
    """A network that knows guidance trains as a plain mean flow too."""
    module = MeanFlow(dit(guidance=True).float(), seed=0)
    index = torch.arange(8)
    batch = {"x": rng.normal(0, 0, index, (1, 8, 8)), "label": index % 3, "index": index}
    trainer = Trainer(max_steps=1, **QUIET)
    trainer.fit(module, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    assert math.isfinite(trainer.callback_metrics["train/loss"])
