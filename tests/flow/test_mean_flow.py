"""Loss and gradients against the full-batch formulation, which differentiates through one joint pass."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo import rng
from zoo.flow import (
    MLP,
    AdaptiveWeighting,
    DiT,
    FlowBatch,
    Gaussian,
    Guidance,
    MeanFlow,
    MeanFlowTimes,
    adaptive,
    guided_velocity,
    mean_flow_error,
)
from zoo.flow.mean_flow import guide, squared_error

F64 = torch.float64
STEP, SEED = 17, 5
CLASSES = 3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def dit(dropout: float = 0.0) -> nn.Module:
    network = DiT(4, 2, 2, width=16, depth=2, heads=2, num_classes=CLASSES, dropout=dropout).double()
    for number, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    return network


def batch(size: int = 12) -> dict[str, Tensor]:
    index = torch.arange(size) * 7 + 3
    return {"x": draw(size, 2, 4, 4), "label": index % CLASSES, "index": index}


def module(network: nn.Module, **options: Any) -> MeanFlow:
    """A MeanFlow as at update `STEP` of a run, without the run."""
    model = MeanFlow(network, seed=SEED, **options)
    model._trainer = SimpleNamespace(global_step=STEP, world_size=1, global_rank=0)  # type: ignore[assignment]
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return model


def full_batch_loss(model: MeanFlow, items: dict[str, Tensor]) -> Tensor:
    """The algorithm as the paper prints it: one differentiable forward-mode pass over all items in order."""
    x, label, index = items["x"], items["label"], items["index"]
    t, r = model.times(SEED, STEP, index, "train/")
    noise = rng.normal(SEED, STEP, index, x.shape[1:], "train/noise", F64)
    dropped = rng.uniform(SEED, STEP, index, (), "train/label") < model.label_dropout
    label = torch.where(dropped, CLASSES, label)

    def u(z: Tensor, r: Tensor, t: Tensor, label: Tensor = label) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return model.network(z, t, t - r, label)

    column = t[:, None, None, None]
    z, v = (1 - column) * x + column * noise, noise - x
    with torch.no_grad():
        unconditional, conditional = u(z, t, t, torch.full_like(label, CLASSES)), u(z, t, t)
        omega, kappa = model.guidance.omega, model.guidance.kappa
        mixed = omega * v + (1 - omega - kappa) * unconditional + kappa * conditional
        inside = (model.guidance.start <= t) & (t <= model.guidance.end) & ~dropped
        v = torch.where(inside[:, None, None, None], mixed, v)
    prediction, derivative = torch.func.jvp(u, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    target = (v - (t - r)[:, None, None, None] * derivative).detach()
    squares = (prediction - target).square()
    error = squares.sum((1, 2, 3)) if model.weighting.reduction == "sum" else squares.mean((1, 2, 3))
    return (error / (error.detach() + model.weighting.eps) ** model.weighting.power).mean()


GUIDANCE = {
    "unguided": {},
    "omega": {"omega": 2.0},
    "kappa": {"omega": 0.7, "kappa": 0.5},
    "interval": {"omega": 0.2, "kappa": 0.9, "start": 0.3, "end": 0.6},
}


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("fixed_count", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("power", [0.0, 0.75])
def test_loss_and_gradients_are_those_of_the_full_batch(
    guidance: str, fixed_count: bool, reduction: Any, power: float
) -> None:
    times = MeanFlowTimes(prob_r_neq_t=0.5, fixed_count=fixed_count)
    weighting = AdaptiveWeighting(power=power, reduction=reduction)
    options = {"guidance": GUIDANCE[guidance], "weighting": weighting, "label_dropout": 0.3}
    model, items = module(dit(), times=times, **options), batch()
    parameters = list(model.network.parameters())
    expected = full_batch_loss(model, items)
    expected_gradients = torch.autograd.grad(expected, parameters)
    loss = model.training_step(items, 0)
    gradients = torch.autograd.grad(loss, parameters)
    assert torch.allclose(loss, expected, rtol=1e-10, atol=0)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-10 * want.abs().max().item())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_batches_of_one_kind_work_too(share: float) -> None:
    model, items = module(dit(), times=MeanFlowTimes(prob_r_neq_t=share)), batch()
    assert torch.allclose(model.training_step(items, 0), full_batch_loss(model, items), rtol=1e-10)


def test_the_gradient_is_the_slope_of_the_loss_with_the_target_held() -> None:
    """Central differences in single parameters; the target comes from an untouched copy of the network."""
    network, frozen = dit(), dit()
    x, noise, label = draw(6, 2, 4, 4), draw(6, 2, 4, 4, seed=1), torch.tensor([0, 1, 2, 3, 0, 1])
    t = torch.linspace(0.3, 0.9, 6, dtype=F64)
    h = torch.where(torch.arange(6) < 3, t / 2, 0)
    error = mean_flow_error(network, FlowBatch(x=x, noise=noise, t=t, h=h, label=label)).mean()
    parameters = dict(network.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(error, list(parameters.values())), strict=True))

    class Split(nn.Module):
        """The frozen network where the target is made, the living one where the prediction is."""

        def __call__(self, *args: Any) -> Tensor:
            return network(*args)

        def forward(self, *args: Any) -> Tensor:
            return frozen(*args)

    step = 1e-5
    for name in (
        "x_embedder.proj.weight",
        "h_embedder.mlp.2.weight",
        "blocks.1.attn.qkv.weight",
        "final_layer.linear.bias",
    ):
        flat, position = parameters[name].data.view(-1), parameters[name].numel() // 2
        value = flat[position].item()
        values = []
        for shifted in (value + step, value - step):
            flat[position] = shifted
            values.append(
                mean_flow_error(Split(), FlowBatch(x=x, noise=noise, t=t, h=h, label=label)).mean().item()
            )
        flat[position] = value
        slope = (values[0] - values[1]) / (2 * step)
        assert math.isclose(slope, gradients[name].view(-1)[position].item(), rel_tol=1e-6, abs_tol=1e-8)


def test_with_dropout_the_target_is_made_without_it() -> None:
    """The prediction drops features, by the global generator; derivative and guidance do not."""
    items = batch()
    calls: list[tuple[bool, bool]] = []

    class Spy(DiT):
        def forward(self, *args: Any) -> Tensor:
            calls.append((self.blocks[0].mlp.dropout.training, torch.is_grad_enabled()))
            return super().forward(*args)

    network = Spy(4, 2, 2, width=16, depth=1, heads=2, num_classes=CLASSES, dropout=0.5).double()
    module(
        network, guidance=Guidance(omega=0.5, kappa=0.5), times=MeanFlowTimes(prob_r_neq_t=0.5)
    ).training_step(items, 0)
    assert calls == [
        (False, False),
        (False, False),
        (True, True),
    ]  # guidance (joined), derivative, prediction

    # With one and the same mask the loss is that of a prediction with dropout against the target without.
    living, still = dit(dropout=0.5), dit()
    living.load_state_dict(still.state_dict())
    x, noise, label = items["x"], draw(12, 2, 4, 4, seed=1), items["label"]
    t = torch.linspace(0.2, 0.9, 12, dtype=F64)
    h = torch.where(torch.arange(12) < 4, t, 0)
    torch.manual_seed(0)
    error = mean_flow_error(living, FlowBatch(x=x, noise=noise, t=t, h=h, label=label))
    torch.manual_seed(0)
    column = t[:, None, None, None]
    z = (1 - column) * x + column * noise
    prediction = living(z, t, h, label)
    target = torch.empty_like(x)

    def u(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return still(z, t, h, label)

    one = torch.ones_like(t)
    _, derivative = torch.func.jvp(u, (z, t, h), (noise - x, one, one))
    target = noise - x - h[:, None, None, None] * derivative
    assert torch.allclose(error, (prediction - target).square().sum((1, 2, 3)), rtol=1e-10)


def test_the_loss_does_not_depend_on_the_order_of_items_nor_on_how_they_are_split() -> None:
    model, items = module(dit(), guidance=Guidance(omega=2.0), times=MeanFlowTimes(prob_r_neq_t=0.5)), batch()
    whole = model.training_step(items, 0)
    order = torch.tensor([5, 2, 9, 11, 0, 7, 1, 10, 3, 8, 6, 4])
    shuffled = {name: value[order] for name, value in items.items()}
    assert torch.allclose(model.training_step(shuffled, 0), whole, rtol=1e-12)
    halves = [
        model.training_step({name: value[part] for name, value in items.items()}, 0)
        for part in (order[:6], order[6:])
    ]
    assert torch.allclose(sum(halves) / 2, whole, rtol=1e-12)


def test_guidance_formulas() -> None:
    v, v_u, v_c = draw(3, 4), draw(3, 4, seed=1), draw(3, 4, seed=2)
    assert torch.allclose(guide(v, v_u, None, omega=3.0, kappa=0.0), v_u + 3 * (v - v_u))
    assert torch.allclose(guide(v, v_u, v_c, omega=0.2, kappa=0.92), 0.2 * v - 0.12 * v_u + 0.92 * v_c)
    assert torch.allclose(guide(v, v_u, None, omega=1.0, kappa=0.0), v)
    # At a fixed point v_c = E[v_g]: v_c = v_u + omega / (1 - kappa) (E[v] - v_u), the effective scale.
    scale = 0.2 / (1 - 0.92)
    fixed = v_u + scale * (v - v_u)
    assert torch.allclose(guide(v, v_u, fixed, omega=0.2, kappa=0.92), fixed)
    with pytest.raises(ValueError, match=r"kappa=0\.5 mixes the conditional velocity in"):
        guide(v, v_u, None, omega=1.0, kappa=0.5)


def test_guidance_touches_its_rows_only_and_asks_once() -> None:
    network, calls = MLP(2, width=8, depth=1, num_classes=4).double(), []
    network.register_forward_pre_hook(lambda module, args: calls.append(args))
    forward = network.forward
    network.forward = lambda *args: (calls.append(args), forward(*args))[1]  # type: ignore[method-assign]
    z, v, t = draw(5, 2), draw(5, 2, seed=1), torch.rand(5, dtype=F64)
    rows, label = torch.tensor([1, 4]), torch.arange(5) % 4
    for kappa, asked in ((0.0, 2), (0.5, 4)):
        calls.clear()
        guided = guided_velocity(network, z, t, v, label, rows, omega=2.0, kappa=kappa)
        [(states, _, steps, labels)] = calls
        assert len(states) == asked and not steps.any() and labels[:2].tolist() == [4, 4]
        assert guided[[0, 2, 3]].equal(v[[0, 2, 3]]) and not guided[rows].equal(v[rows])
    assert guided_velocity(network, z, t, v, label, rows[:0], omega=2.0, kappa=0.0) is v


def test_squared_errors_and_their_weights() -> None:
    prediction, target = draw(4, 2, 3, 3), draw(4, 2, 3, 3, seed=1)
    total, average = (squared_error(prediction, target, reduction) for reduction in ("sum", "mean"))
    assert torch.allclose(total, 18 * average)
    assert torch.allclose(adaptive(average, 1.0, 0.01), average / (average + 0.01))
    assert adaptive(average, 0.0, 0.01).equal(average)
    # Its gradient is that of a constant weight times the error.
    error = average.clone().requires_grad_()
    adaptive(error, 0.75, 0.1).sum().backward()
    assert torch.allclose(error.grad, (average + 0.1) ** -0.75)


class Exact(nn.Module):
    """The mean velocity of a Gaussian as a network with one parameter, which is 1 at the truth."""

    def __init__(self, distribution: Gaussian) -> None:
        super().__init__()
        self.distribution, self.factor = distribution, nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, z: Tensor, t: Tensor, h: Tensor, label: None) -> Tensor:
        return self.factor * self.distribution.mean_velocity(z, t, t - h)


@pytest.mark.parametrize(("t", "r"), [(1.0, 0.0), (0.7, 0.2), (0.5, 0.4), (0.6, 0.6)])
def test_the_exact_mean_velocity_keeps_the_loss_at_its_floor(t: float, r: float) -> None:
    size = 100_000
    distribution = Gaussian(torch.zeros(1, dtype=F64), torch.tensor([[0.25]], dtype=F64))
    network = Exact(distribution)
    x, noise = 0.5 * draw(size, 1), draw(size, 1, seed=1)
    times, steps = torch.full((size,), t, dtype=F64), torch.full((size,), t - r, dtype=F64)
    error = mean_flow_error(network, FlowBatch(x=x, noise=noise, t=times, h=steps))
    sem = error.std() / math.sqrt(size)
    assert abs(error.mean() - distribution.mean_flow_floor(t, r)) < 4 * sem
    # The residual has mean zero given the state, so at the truth the gradient is noise. (Gradients of single
    # items are 2 residual u; their variance is at most 4 E[residual^2 u^2].)
    [gradient] = torch.autograd.grad(error.mean(), network.factor)
    with torch.no_grad():
        z = (1 - t) * x + t * noise
        spread = 2 * (error.sqrt() * network(z, times, steps, None)[:, 0]).square().mean().sqrt()
    assert abs(gradient) < 4 * spread / math.sqrt(size)
    # Away from the truth it is not.
    network.factor.data += 0.2
    [gradient] = torch.autograd.grad(
        mean_flow_error(network, FlowBatch(x=x, noise=noise, t=times, h=steps)).mean(), network.factor
    )
    assert abs(gradient) > 8 * spread / math.sqrt(size)


def test_the_floor_holds_in_several_dimensions_and_over_drawn_times() -> None:
    size = 100_000
    root = draw(3, 3)
    distribution = Gaussian(torch.zeros(3, dtype=F64), root @ root.mT)
    t, r = MeanFlowTimes(prob_r_neq_t=0.5)(0, 0, torch.arange(size))
    x, noise = draw(size, 3, seed=2) @ root.mT, draw(size, 3, seed=1)
    error = mean_flow_error(Exact(distribution), FlowBatch(x=x, noise=noise, t=t, h=t - r))
    excess = error.detach() - distribution.mean_flow_floor(t, r)
    assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(size)
