"""The derivative along the flow: each fast rule against PyTorch's, the whole against finite differences."""

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.flow import MLP, DiT, SongUNet, total_derivative
from zoo.flow.dual_rules import RULES, FastRules

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def awake(network: nn.Module) -> nn.Module:
    """A network in float64 all of whose parameters are away from their zeros."""
    network = network.double()
    for number, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    return network


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    return {
        "dit": (awake(DiT(8, 2, 4, width=16, depth=2, heads=2, num_classes=3, dropout=0.5)), (2, 8, 8)),
        "unet": (
            awake(SongUNet(8, 2, 8, [1, 2], 1, [4], num_classes=3, dropout=0.5)),
            (2, 8, 8),
        ),
        "mlp": (awake(MLP(3, width=16, depth=2, num_classes=3, dropout=0.5)), (3,)),
    }


def arguments(shape: tuple[int, ...]) -> dict[str, Tensor]:
    z, velocity = draw(5, *shape), draw(5, *shape, seed=1)
    t = torch.tensor([1.0, 0.8, 0.5, 0.3, 0.1], dtype=F64)
    return {"z": z, "t": t, "h": t * 0.7, "velocity": velocity, "label": torch.tensor([0, 1, 2, 3, 3])}


CASES: dict[str, tuple[Callable, int]] = {
    "add a number": (lambda x: 1 + x, 1),
    "add a constant": (lambda x: draw(1, 8) + x, 1),
    "add to a larger constant": (lambda x: x[:1] + draw(2, 3, 5, 8), 1),
    "add with alpha": (lambda x: torch.add(x, 2, alpha=3), 1),
    "add two": (lambda x, y: x + y, 2),
    "add, then in place": (lambda x: (x + 1).mul_(3) * x, 1),
    "add single precision": (lambda x: x.float() + draw(8), 1),
    "multiply by a number": (lambda x: 2 * x, 1),
    "multiply by a larger constant": (lambda x: x[:1] * draw(2, 3, 5, 8), 1),
    "multiply two": (lambda x, y: x * y, 2),
    "linear": (lambda x: F.linear(x, draw(4, 8), draw(4)), 1),
    "linear without bias": (lambda x: F.linear(x, draw(4, 8)), 1),
    "linear in its weight": (lambda x, y: F.linear(x, y[0, 0]), 2),
    "addcmul": (lambda x, y, z: torch.addcmul(x, y, z), 3),
    "addcmul with value": (lambda x, y, z: torch.addcmul(x, y, z, value=2), 3),
    "gelu": (F.gelu, 1),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), 1),
    "silu": (F.silu, 1),
    "silu in place": (lambda x: F.silu(x * 1, inplace=True), 1),
    "layer_norm": (lambda x: F.layer_norm(x, (8,), eps=1e-6), 1),
    "layer_norm affine": (lambda x: F.layer_norm(x, (8,), draw(8), draw(8)), 1),
    "layer_norm of two": (lambda x: F.layer_norm(x, (5, 8)), 1),
    "group_norm": (lambda x: F.group_norm(x, 3, eps=1e-6), 1),
    "group_norm affine": (lambda x: F.group_norm(x, 1, draw(3), draw(3)), 1),
    "group_norm in its weight": (lambda x, y: F.group_norm(x, 3, y[0, :, 0, 0]), 2),
    "conv2d": (lambda x: F.conv2d(x, draw(4, 3, 3, 3), draw(4), padding=1), 1),
    "conv2d by channel": (lambda x: F.conv2d(x, draw(3, 1, 2, 2), stride=2, groups=3), 1),
    "conv2d in its weight": (lambda x, y: F.conv2d(x, y[:, :, :3, :3]), 2),
    "attention": (F.scaled_dot_product_attention, 3),
    "attention scaled": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.1), 3),
    "attention causal": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), 3),
    "attention to a constant": (
        lambda q: F.scaled_dot_product_attention(q, draw(2, 3, 7, 8), draw(2, 3, 7, 8)),
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_rule_is_pytorchs_own_derivative(name: str) -> None:
    function, count = CASES[name]
    with fwAD.dual_level():
        inputs = [
            fwAD.make_dual(draw(2, 3, 5, 8, seed=i), draw(2, 3, 5, 8, seed=9 + i)) for i in range(count)
        ]
        with sdpa_kernel(SDPBackend.MATH):
            expected = fwAD.unpack_dual(function(*inputs))
            with FastRules():
                got = fwAD.unpack_dual(function(*inputs))
    assert torch.allclose(got.primal, expected.primal, rtol=1e-12, atol=1e-12)
    assert torch.allclose(got.tangent, expected.tangent, rtol=1e-12, atol=1e-12)


def test_group_norm_of_channels_last() -> None:
    """Against other strides, because PyTorch 2.10 has no forward derivative for these."""
    with fwAD.dual_level():
        x = fwAD.make_dual(draw(2, 3, 5, 8, seed=0), draw(2, 3, 5, 8, seed=9))
        expected = fwAD.unpack_dual(F.group_norm(x, 1, draw(3)))
        x = x.contiguous(memory_format=torch.channels_last)
        with FastRules():
            got = fwAD.unpack_dual(F.group_norm(x, 1, draw(3)))
    assert torch.allclose(got.primal, expected.primal, rtol=1e-12, atol=1e-12)
    assert torch.allclose(got.tangent, expected.tangent, rtol=1e-12, atol=1e-12)


def test_a_dit_and_a_unet_meet_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    met, names = set(), {rule.__name__ for rule in RULES.values()}
    for function, rule in list(RULES.items()):

        def spy(*args: object, rule: Callable = rule, **kwargs: object) -> object:
            result = rule(*args, **kwargs)
            if result is not NotImplemented:
                met.add(rule.__name__)
            return result

        monkeypatch.setitem(RULES, function, spy)
    for kind in ("dit", "unet"):
        network, shape = networks()[kind]
        total_derivative(network, **arguments(shape))
    assert met == names


@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_it_is_the_limit_of_central_differences(kind: str) -> None:
    network, shape = networks()[kind]
    inputs = arguments(shape)
    exact = total_derivative(network, **inputs)
    z, t, h, velocity, label = inputs.values()
    network.eval()
    errors = []
    for step in (1e-3, 1e-4):
        after = network(z + step * velocity, t + step, h + step, label)
        before = network(z - step * velocity, t - step, h - step, label)
        errors.append((exact - (after - before) / (2 * step)).abs().max().item() / exact.abs().max().item())
    # The difference is of second order: a tenth of the step, a hundredth of the error.
    assert errors[1] < 1e-5
    assert 80 < errors[0] / errors[1] < 125


@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_it_is_the_same_inside_inference_mode_and_under_autocast(kind: str) -> None:
    network, shape = networks()[kind]
    inputs = arguments(shape)
    exact = total_derivative(network, **inputs)
    with torch.inference_mode():
        copies = {name: value.clone() for name, value in inputs.items()}
        assert copies["z"].is_inference()
        assert total_derivative(network, **copies).equal(exact)
    network.float()
    single = {name: value if name == "label" else value.float() for name, value in inputs.items()}
    plain = total_derivative(network, **single)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert total_derivative(network, **single).equal(plain)


def test_dropout_is_off_in_the_derivative_and_only_there() -> None:
    network, shape = networks()["mlp"]
    network.layers[1].eval()  # someone froze this one: it must stay so
    before = {name: module.training for name, module in network.named_modules()}
    inputs = arguments(shape)
    state = torch.get_rng_state()
    first = total_derivative(network, **inputs)
    assert first.equal(total_derivative(network, **inputs))
    assert torch.get_rng_state().equal(state)  # no draw was made
    assert {name: module.training for name, module in network.named_modules()} == before
    without = copy.deepcopy(network).eval()
    assert first.equal(total_derivative(without, **inputs))


def test_modes_come_back_after_an_error() -> None:
    network, shape = networks()["mlp"]
    inputs = arguments(shape) | {"label": torch.full((5,), 99)}
    with pytest.raises(IndexError):
        total_derivative(network, **inputs)
    assert all(module.training for module in network.modules())
    with pytest.raises(RuntimeError, match="no level exists"):
        fwAD.make_dual(torch.zeros(1), torch.zeros(1))  # the dual level is closed


def test_no_gradient_flows_through_it() -> None:
    network, shape = networks()["dit"]
    inputs = arguments(shape)
    inputs["z"].requires_grad_()
    assert not total_derivative(network, **inputs).requires_grad


def test_replaced_layers_and_hooks_take_part() -> None:
    """The fast rules stand in for functions, not for layers: a changed network has its own derivative."""
    network, shape = networks()["dit"]
    inputs = arguments(shape)
    plain = total_derivative(network, **inputs)

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    layer = network.final_layer.linear
    network.final_layer.linear = Doubled(layer.in_features, layer.out_features).double()
    network.final_layer.linear.load_state_dict(layer.state_dict())
    assert torch.allclose(total_derivative(network, **inputs), 2 * plain)
    network.final_layer.register_forward_hook(lambda module, args, output: 3 * output)
    assert torch.allclose(total_derivative(network, **inputs), 6 * plain)


class Foreign(nn.Module):
    """Someone's network with functions that have no rule here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.out = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, z: Tensor, t: Tensor, h: Tensor, label: Tensor | None) -> Tensor:
        x = self.norm(self.conv(z)).mul_((1 + t * h)[:, None, None, None])
        return self.out(torch.tanh(x)) + F.softplus(z)


def test_a_foreign_network_goes_through_pytorchs_own_rules() -> None:
    network = Foreign().double()
    inputs = arguments((2, 6, 6))
    z, t, h, velocity, _ = inputs.values()
    one = torch.ones_like(t)
    _, expected = torch.func.jvp(lambda z, t, h: network(z, t, h, None), (z, t, h), (velocity, one, one))
    assert torch.allclose(total_derivative(network, **inputs), expected, rtol=1e-10, atol=1e-12)


def test_a_constant_network_has_no_derivative() -> None:
    inputs = arguments((3,))
    assert total_derivative(lambda z, t, h, label: torch.ones_like(z), **inputs).equal(
        torch.zeros(5, 3, dtype=F64)
    )


def test_it_warns_of_nothing() -> None:
    network, shape = networks()["dit"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isfinite(total_derivative(network, **arguments(shape)).sum())
