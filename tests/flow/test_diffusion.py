"""The diffusion stage: its losses restated, its minimum, its labels and its samples."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo import rng
from zoo.flow import (
    MLP,
    DataPrediction,
    Diffusion,
    EDMPreconditioning,
    Euler,
    EvenGrid,
    Gaussian,
    LinearPath,
    LogNormalLevels,
    LogVariance,
    ODESampler,
    UniformLevels,
    VarianceExplodingPath,
    VelocityPrediction,
)

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False, "limit_val_batches": 0,
}  # fmt: skip


def network(num_classes: int | None = 3, dim: int = 3) -> nn.Module:
    made = MLP(dim, width=16, depth=1, num_classes=num_classes, two_times=False)
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


def first_loss(module: Any) -> float:
    """The loss of the first update on twelve items in float64."""
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    trainer = Trainer(max_steps=1, precision="64-true", **QUIET)
    trainer.fit(module, DataLoader(FlowBatch(), batch_size=12))  # type: ignore[arg-type]
    return float(trainer.callback_metrics["train/loss"])


def drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Data, noise, normal draws of the levels, and labels after dropping: what the module draws at step 0."""
    index = torch.arange(12)
    x = torch.stack([FlowBatch()[row]["x"] for row in range(12)])
    noise = rng.normal(0, 0, index, (3,), "train/noise", torch.float64)
    normal = rng.normal(0, 0, index, (), "train/level", torch.float64)
    dropped = rng.uniform(0, 0, index, (), "train/label") < 0.3
    assert 0 < dropped.sum() < 12
    return x, noise, normal, torch.where(dropped, 3, index % 3)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
class TestLosses:
    def test_edm(self) -> None:
        """lambda(s) |D - x|^2 with c_skip, c_out, c_in, c_noise as in the paper's table."""
        net, sd = network().double(), 0.75
        x, noise, normal, label = drawn()
        s = (-1.2 + 1.2 * normal).exp()[:, None]
        f = net((x + s * noise) / (s**2 + sd**2).sqrt(), s[:, 0].log() / 4, None, label)
        denoised = sd**2 / (s**2 + sd**2) * (x + s * noise) + s * sd / (s**2 + sd**2).sqrt() * f
        weight = (s**2 + sd**2) / (s * sd) ** 2
        expected = (weight * (denoised - x) ** 2).mean().item()
        found = first_loss(
            Diffusion(network(), preconditioning=EDMPreconditioning(sd), label_dropout=0.3, seed=0)
        )
        assert found == pytest.approx(expected, rel=1e-10)

    def test_edm_with_a_learned_variance(self) -> None:
        net, sd = network().double(), 0.5
        x, noise, normal, label = drawn()
        s = (-0.8 + 1.6 * normal).exp()[:, None]
        f = net((x + s * noise) / (s**2 + sd**2).sqrt(), s[:, 0].log() / 4, None, label)
        target = (s / sd * x - sd * noise) / (s**2 + sd**2).sqrt()
        uncertainty = LogVariance(features=8)
        nn.init.normal_(uncertainty.weight, generator=torch.Generator().manual_seed(1))
        u = uncertainty.double()(s[:, 0])
        expected = (((f - target) ** 2).mean(1) / u.exp() + u).mean().item()
        twin = LogVariance(features=8)
        twin.load_state_dict(uncertainty.state_dict())
        module = Diffusion(
            network(), preconditioning=EDMPreconditioning(sd), levels=LogNormalLevels(-0.8, 1.6),
            uncertainty=twin, label_dropout=0.3, seed=0,
        )  # fmt: skip
        assert first_loss(module) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("space", ["output", "velocity", "data"])
    @pytest.mark.parametrize("predicts", ["velocity", "data"])
    def test_flow_matching(self, space: str, predicts: str) -> None:
        net = network().double()
        x, noise, normal, label = drawn()
        t = (0.3 + 0.8 * normal).sigmoid()[:, None]  # a log-normal level is a logit-normal time
        z = (1 - t) * x + t * noise
        f = net(z, t[:, 0], None, label)
        data = f if predicts == "data" else z - t * f
        velocity = (z - data) / t
        errors = {"data": data - x, "velocity": velocity - (noise - x)}
        error = errors[space if space != "output" else predicts]
        preconditioning = VelocityPrediction() if predicts == "velocity" else DataPrediction()
        module = Diffusion(
            network(), preconditioning=preconditioning, levels=LogNormalLevels(0.3, 0.8),
            loss=space,  # type: ignore[arg-type]
            label_dropout=0.3, seed=0,
        )  # fmt: skip
        assert first_loss(module) == pytest.approx((error**2).mean().item(), rel=1e-8)


def test_a_learned_variance_settles_at_the_expected_error() -> None:
    """The minimum of e / exp(u) + u over u is u = ln E[e], at each noise level for itself."""
    uncertainty = LogVariance(features=64)
    s = torch.tensor([0.01, 0.3, 8.0]).repeat(40)
    errors = torch.tensor([0.2, 1.0, 5.0]).repeat(40)
    optimizer = torch.optim.Adam(uncertainty.parameters(), lr=0.3)
    for _ in range(300):
        u = uncertainty(s)
        loss = (errors / u.exp() + u).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(uncertainty(s[:3]).exp(), errors[:3], rtol=1e-3, atol=0)


class Exact(nn.Module):
    """The exact output of a Gaussian distribution under a preconditioning, plus a constant."""

    def __init__(self, distribution: Gaussian, preconditioning: Any, bias: float = 0.0) -> None:
        super().__init__()
        self.distribution, self.preconditioning = distribution, preconditioning
        self.bias = nn.Parameter(torch.tensor(bias))
        self.shape, self.num_classes, self.two_times = (2,), None, False

    def forward(self, z: Tensor, t: Tensor, h: Tensor | None, label: Tensor | None) -> Tensor:
        path = self.distribution.path
        if isinstance(path, VarianceExplodingPath):
            s = (4 * t).exp()
            z = z / self.preconditioning.inputs(path, s)[0][:, None]
            skip, out = self.preconditioning.denoiser(path, s)
            return (self.distribution.denoise(z, s) - skip[:, None] * z) / out[:, None] + self.bias
        return self.distribution.velocity(z, t) + self.bias


@pytest.mark.parametrize("preconditioning", [EDMPreconditioning(0.6), VelocityPrediction()], ids=repr)
def test_the_exact_model_minimizes_the_loss(preconditioning: Any) -> None:
    """On a Gaussian distribution, any constant added to the exact output costs its square."""
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]])
    distribution = Gaussian(torch.tensor([0.4, -0.2]), covariance, preconditioning.path)
    factor = torch.linalg.cholesky(covariance)
    rows = torch.arange(20_000)
    x = distribution.mean + rng.normal(0, 0, rows, (2,), "data") @ factor.T
    losses = {}
    for bias in (0.0, 0.1, -0.1):
        module = Diffusion(
            Exact(distribution, preconditioning, bias), preconditioning=preconditioning, seed=0
        )
        trainer = Trainer(**QUIET)
        batch = [{"x": x, "index": rows}]
        module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
        [result] = trainer.test(module, DataLoader(batch, batch_size=None), verbose=False)  # type: ignore[arg-type]
        losses[bias] = result["test/loss"]
    # The errors' standard deviation is about 1 and there are 40,000: 5 standard errors of the cross term.
    for bias in (0.1, -0.1):
        assert losses[bias] - losses[0.0] == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize("preconditioning", [EDMPreconditioning(0.6), VelocityPrediction()], ids=repr)
def test_samples_of_the_exact_model_follow_the_distribution(preconditioning: Any) -> None:
    """From the prior to the data in 40 steps of the default solver; the exact flow map of the same noise."""
    distribution = Gaussian(
        torch.tensor([0.4, -0.2]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]), preconditioning.path
    )
    module = Diffusion(
        Exact(distribution, preconditioning),
        preconditioning=preconditioning,
        sampler=ODESampler(grid=None if preconditioning.path.end > 2 else EvenGrid()),
    )
    samples = module.sample(torch.zeros(64), steps=40, seed=3)
    noise = rng.normal(3, 0, torch.arange(64), (2,), "sample/noise")
    start, end = (80.0, 0.002) if preconditioning.path.end > 2 else (1.0, 0.0)
    exact = distribution.flow_map(start * noise, start, end)
    torch.testing.assert_close(samples, exact, rtol=0, atol=0.02)


def test_samples_depend_on_their_own_number_alone() -> None:
    module = Diffusion(network(), seed=0)
    labels = torch.tensor([0, 1, 2, 3])
    whole = module.sample(labels, steps=5, seed=1)
    torch.testing.assert_close(module.sample(labels[2:], 5, 1, torch.tensor([2, 3])), whole[2:])
    assert not module.sample(labels, 5, seed=2).equal(whole)


def test_solver_and_grid_of_the_samples_are_injected() -> None:
    module = Diffusion(
        network(),
        preconditioning=VelocityPrediction(),
        sampler=ODESampler(solver=Euler(), grid=EvenGrid(0.9, 0.1, 2.0)),
        seed=0,
    )
    labels = torch.tensor([0, 1])
    times = EvenGrid(0.9, 0.1, 2.0)(2, LinearPath()).float()
    z = times[0] * rng.normal(0, 0, torch.arange(2), (3,), "sample/noise")
    for t, r in ((times[0], times[1]), (times[1], times[2])):
        with torch.no_grad():
            z = z + (r - t) * module.network(z, t.expand(2), None, labels)
    torch.testing.assert_close(module.sample(labels, steps=2), z)


def test_predict_needs_no_data() -> None:
    module = Diffusion(network(), sampler=ODESampler(steps=3), seed=0)
    requests = [{"label": torch.tensor([0, 3]), "index": torch.tensor([5, 9])}]
    [found] = Trainer(**QUIET).predict(module, DataLoader(requests, batch_size=None))  # type: ignore[misc, arg-type]
    assert found["index"].tolist() == [5, 9]  # type: ignore[index, call-overload]
    expected = module.sample(torch.tensor([0, 3]), 3, 0, torch.tensor([5, 9]))
    assert found["samples"].equal(expected)  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"label": torch.zeros(2, dtype=torch.long)}, "Diffusion needs data: the batch has .* but no 'x'"),
        ({"x": torch.zeros(2, 3)}, "has 3 classes, but the batch has no 'label'"),
        (
            {"x": torch.zeros(2, 4), "label": torch.zeros(2, dtype=torch.long)},
            r"shape \(4,\), the network takes \(3,\)",
        ),
    ],
)
def test_batches_that_do_not_fit(batch: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(max_steps=1, **QUIET).fit(Diffusion(network()), DataLoader([batch], batch_size=None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "noise"}, "loss must be 'output', 'data' or 'velocity', got 'noise'"),
        ({"label_dropout": 1.5}, r"label_dropout must be a probability in \[0, 1\], got 1.5"),
        ({"sampler": {"steps": 0}}, "sampler: steps must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Diffusion(network(), **arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormalLevels(std=-1.0), "std must be at least 0"),
        (lambda: UniformLevels(0.5, 0.5), "0 <= low < high <= 1"),
    ],
)
def test_bad_levels(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
