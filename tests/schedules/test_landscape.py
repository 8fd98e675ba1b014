"""The probes on losses that are known: dense Hessians, quadratics, planted tokens."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.schedules import (
    hessian_eigenvalues,
    interpolate,
    loss_by_entropy,
    predictive_entropy,
    update_energy,
)


class Net(nn.Module):
    """Attention, dropout, a shared and a frozen layer: what probes have to cope with."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.mix = nn.Linear(4, 4)
        self.tied = self.mix
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(2, 1)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, 5, 3)
        h = torch.tanh(self.drop(self.norm(self.embed(x))))
        q = self.mix(h)[:, None]
        h = nn.functional.scaled_dot_product_attention(q, q, h[:, None])[:, 0]
        out: Tensor = self.tied(torch.tanh(self.frozen(h))).square().mean((1, 2))
        return out


def net_loss(net: Net, batch: dict[str, Tensor]) -> Tensor:
    return (net(batch["x"]) - batch["y"]).square().mean()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    draw: Callable[..., Tensor] = lambda *shape: torch.randn(*shape, generator=generator).double()  # noqa: E731
    return [{"x": draw(6, 5, 3), "y": draw(6)} for _ in range(2)]


def dense_hessian(net: Net, batches: list[dict[str, Tensor]]) -> Tensor:
    """Row by row, by second derivatives of a function of one vector."""
    names = {name: p for name, p in net.named_parameters() if p.requires_grad}
    shapes = [p.shape for p in names.values()]

    def mean_loss(flat: Tensor) -> Tensor:
        parts = flat.split([math.prod(shape) for shape in shapes])
        values = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        outs = [torch.func.functional_call(net, values, (batch["x"],)) for batch in batches]
        losses = [(out - batch["y"]).square().mean() for out, batch in zip(outs, batches, strict=True)]
        return torch.stack(losses).mean()

    flat = torch.cat([p.detach().flatten() for p in names.values()])
    net.eval()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(mean_loss, flat)  # type: ignore[no-any-return]


def test_eigenvalues_against_the_dense_hessian(net: Net, batches: list[dict[str, Tensor]]) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found = hessian_eigenvalues(net, net_loss, batches, count=4, iterations=60, tolerance=1e-12)
    assert net.training and torch.get_rng_state().equal(state)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())

    hessian = dense_hessian(net, batches)
    values, vectors = torch.linalg.eigh(hessian)
    assert found.values == pytest.approx(values[-4:].flip(0).tolist(), abs=1e-8)
    assert "tied.weight" not in found.vectors[0] and "frozen.weight" not in found.vectors[0]
    assert set(found.vectors[0]) == {name for name, p in net.named_parameters() if p.requires_grad}
    for value, vector, exact in zip(found.values, found.vectors, vectors.T.flip(0), strict=False):
        flat = torch.cat([part.flatten() for part in vector.values()])
        assert abs(float(flat @ exact)) == pytest.approx(1, abs=1e-8)
        assert float((hessian @ flat - value * flat).norm()) < 1e-8
    assert max(found.residuals) <= 1e-12 * abs(values).max()


def test_it_stops_where_the_residual_is_small_enough(net: Net, batches: list[dict[str, Tensor]]) -> None:
    rough = hessian_eigenvalues(net, net_loss, batches, iterations=60, tolerance=1e-2)
    fine = hessian_eigenvalues(net, net_loss, batches, iterations=60, tolerance=1e-8)
    assert rough.iterations < fine.iterations < 60
    assert rough.residuals[0] <= 1e-2 * rough.values[0] and fine.residuals[0] <= 1e-8 * fine.values[0]
    assert abs(rough.values[0] - fine.values[0]) <= rough.residuals[0]
    cut = hessian_eigenvalues(net, net_loss, batches, iterations=2, tolerance=1e-8)
    assert cut.iterations == 2 and cut.residuals[0] > 1e-8 * cut.values[0]  # told, not hidden


class Point(nn.Module):
    """A loss in its parameter alone."""

    def __init__(self, scales: list[float], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.full((len(scales),), 0.7, dtype=dtype))
        self.scales = torch.tensor(scales, dtype=dtype)

    def loss(self, batch: float) -> Tensor:
        return 0.5 * batch * (self.scales * self.x**2).sum()


def test_a_known_quadratic() -> None:
    scales = [5.0, -7.0, 3.0, 0.1, 0.0, 1.0]
    found = hessian_eigenvalues(Point(scales), Point.loss, [1.0, 3.0], count=6, tolerance=0)
    assert found.values == pytest.approx([10.0, 6.0, 2.0, 0.2, 0.0, -14.0], abs=1e-12)
    assert found.iterations == 6
    # Two values, many times each: Krylov spaces close after two products, and it goes on outside of them.
    found = hessian_eigenvalues(Point([4.0, 4.0, 1.0, 1.0]), Point.loss, [1.0], count=4)
    assert found.values == pytest.approx([4.0, 4.0, 1.0, 1.0], abs=1e-12)
    single = hessian_eigenvalues(Point([9.0, 1.0] * 20, torch.float32), Point.loss, [1.0])
    assert single.values == pytest.approx([9.0], rel=1e-5) and single.vectors[0]["x"].dtype == torch.float32


def test_what_probes_refuse(net: Net, batches: list[dict[str, Tensor]]) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        hessian_eigenvalues(net, net_loss, [])
    with pytest.raises(ValueError, match=r"at most iterations \(3\) .* got 4"):
        hessian_eigenvalues(net, net_loss, batches, count=4, iterations=3)
    with pytest.raises(ValueError, match=r"a tensor of shape \(6,\) with one"):
        hessian_eigenvalues(net, lambda module, batch: module(batch["x"]), batches)
    with pytest.raises(ValueError, match=r"a tensor of shape \(\) without one"):
        hessian_eigenvalues(net, lambda module, batch: module(batch["x"]).mean().detach(), batches)
    other = {name: value for name, value in net.state_dict().items() if name != "embed.bias"}
    with pytest.raises(ValueError, match=r"b must be a state dict of Net: for 'embed.bias' .* nothing"):
        interpolate(net, net.state_dict(), other, net_loss, batches)


def test_interpolation(net: Net, batches: list[dict[str, Tensor]]) -> None:
    torch.manual_seed(1)
    other = Net().double()
    with torch.no_grad():
        other.norm.running_mean.add_(0.3)
        other.norm.num_batches_tracked.add_(9)
    a = {name: value.clone() for name, value in net.state_dict().items()}
    b = other.state_dict()
    points = [-0.2, 0.0, 0.37, 1.0, 1.2]
    found = interpolate(net, a, b, net_loss, batches, points)
    assert net.training and all(value.equal(a[name]) for name, value in net.state_dict().items())
    for t, loss in zip(points, found, strict=True):
        third = Net().double().eval()
        mixed = {
            name: (1 - t) * a[name] + t * b[name] if a[name].is_floating_point() else a[name] for name in a
        }
        third.load_state_dict(mixed)
        with torch.no_grad():
            expected = sum(float(net_loss(third, batch)) for batch in batches) / 2
        assert loss == pytest.approx(expected, rel=1e-12)
    assert len(interpolate(net, a, a, net_loss, batches)) == 15  # from -0.2 to 1.2
    assert interpolate(net, net.state_dict(), b, net_loss, batches, points) == found  # no moving end


def test_the_line_down_a_hill_falls_and_the_line_along_a_river_is_flat() -> None:
    """Stable to its decayed child falls all the way; two points of the river differ by little."""
    valley = Point([1.0, 0.001])
    stable = {"x": torch.tensor([0.8, 2.0]).double()}
    decayed, later = ({"x": torch.tensor([0.0, y]).double()} for y in (1.9, 1.0))
    points = [k / 10 for k in range(11)]
    down = interpolate(valley, stable, decayed, Point.loss, [1.0], points)
    river = interpolate(valley, decayed, later, Point.loss, [1.0], points)
    assert down == sorted(down, reverse=True) and river == sorted(river, reverse=True)
    assert down[0] - down[-1] > 100 * (river[0] - river[-1])


@pytest.mark.parametrize("probe", [hessian_eigenvalues, interpolate])
def test_an_error_leaves_the_module_as_it_was(probe: Any, net: Net, batches: list[dict[str, Tensor]]) -> None:
    net.drop.eval()  # modes of its own
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calls = []

    def failing(module: Net, batch: Any) -> Tensor:
        calls.append(module.training)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return net_loss(module, batch)

    states = {name: value * 2 for name, value in before.items()}
    arguments = (before, states, failing, batches) if probe is interpolate else (failing, batches)
    with pytest.raises(RuntimeError, match="out of memory"):
        probe(net, *arguments)
    assert calls == [False] * 3
    assert net.training and net.mix.training and not net.drop.training
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert net_loss(net, batches[0]).requires_grad


def test_update_energy(net: Net, batches: list[dict[str, Tensor]]) -> None:
    found = hessian_eigenvalues(net, net_loss, batches, count=3, iterations=60, tolerance=1e-10)
    first, second, third = found.vectors
    inside = {name: 2 * first[name] - 5 * third[name] for name in first}
    assert update_energy(inside, found.vectors) == pytest.approx(1, abs=1e-12)
    assert update_energy(inside, [third]) == pytest.approx(25 / 29, abs=1e-12)
    assert update_energy(inside, [second]) == pytest.approx(0, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    size = sum(value.numel() for value in first.values())
    shares = []
    for _ in range(200):
        delta = {name: torch.randn(value.shape, generator=generator) for name, value in first.items()}
        shares.append(update_energy({**delta, "buffer": torch.ones(3)}, found.vectors))
    # A chi-square share of mean 3/size; its standard error over 200 draws is 6 %.
    assert sum(shares) / 200 == pytest.approx(3 / size, rel=0.2)
    with pytest.raises(ValueError, match="product of numbers 0 and 1 is 1"):
        update_energy(inside, [first, first])
    with pytest.raises(ValueError, match="delta lacks"):
        update_energy({}, found.vectors)
    with pytest.raises(ValueError, match="delta is zero"):
        update_energy({name: value * 0 for name, value in inside.items()}, found.vectors)


def test_predictive_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 9, generator=generator).double()
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(predictive_entropy(logits), expected, rtol=1e-12, atol=0)
    assert predictive_entropy(logits.bfloat16()).dtype == torch.float32
    assert predictive_entropy(torch.zeros(5)).item() == pytest.approx(math.log(5))


def test_loss_by_entropy_of_planted_tokens() -> None:
    """Losses that are 3 times the entropy: each bucket has a tenth, and 3 times its middle as mean."""
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    entropies = (order / 1000).reshape(10, 100)
    found = loss_by_entropy(3 * entropies, entropies, 10)
    assert found.count == [100] * 10
    assert found.highest == pytest.approx([(100 * k - 1) / 1000 for k in range(1, 11)])
    assert found.loss == pytest.approx([3 * (0.1 * k + 0.0495) for k in range(10)], rel=1e-6)
    seven = loss_by_entropy(entropies, entropies, 7)
    assert sum(seven.count) == 1000 and max(seven.count) - min(seven.count) <= 1


def test_loss_by_entropy_of_the_bigram() -> None:
    """Two entropies, exactly: two buckets whatever was asked for, and a decay's gain is all in the second."""
    p = torch.tensor([1.0] * 32 + [0.5] * 32).double()
    entropies = torch.special.entr(p) + torch.special.entr(1 - p)
    z = torch.where(p == 1, 6.0, 0.5).double()  # a hill: the coins' logits are off
    losses = p * nn.functional.softplus(-z) + (1 - p) * nn.functional.softplus(z)
    decayed = torch.where(p == 1, losses, math.log(2))
    before, after = (loss_by_entropy(values, entropies, 10) for values in (losses, decayed))
    assert before.count == [32, 32] and before.highest == pytest.approx([0, math.log(2)])
    assert before.loss[0] == after.loss[0] == pytest.approx(math.log1p(math.exp(-6)))
    assert before.loss[1] - after.loss[1] == pytest.approx(math.log(math.cosh(0.25)))


def test_losses_that_cannot_be_sorted_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        loss_by_entropy(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="buckets must be at least 1, got 0"):
        loss_by_entropy(torch.zeros(2), torch.zeros(2), 0)
    with pytest.raises(ValueError, match="must be finite: leave padding out"):
        loss_by_entropy(torch.tensor([1.0, math.nan]), torch.zeros(2))
