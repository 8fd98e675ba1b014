"""What every U-Net owes: its arguments matter, it runs in each mode, and it gains a second time input."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.flow import DhariwalUNet, EDM2UNet, SongUNet, hand_over, total_derivative
from zoo.flow.networks.magnitude import MPConv, mp_cat, mp_silu, mp_sum, normalize
from zoo.flow.networks.unet import decoder_stages, downsample, encoder_stages, filter_kernel, upsample

NCSN = {"embedding": "fourier", "encoder": "residual", "resample_filter": [1, 3, 3, 1], "time_multiplier": 2}
SMALL: dict[str, Any] = {"input_size": 8, "in_channels": 2, "width_multipliers": [1, 2], "blocks": 1,
                         "attention_sizes": [4]}  # fmt: skip
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm++": (SongUNet, {**SMALL, "width": 8}),
    "ncsn++": (SongUNet, {**SMALL, "width": 8, **NCSN}),
    "adm": (DhariwalUNet, {**SMALL, "width": 8, "head_width": 8}),
    "edm2": (EDM2UNet, {**SMALL, "width": 8, "head_width": 8}),
}
every_network = pytest.mark.parametrize("name", CASES)


def build(name: str, seed: int = 0, **changes: Any) -> Any:
    """A network away from the zeros it starts at."""
    kind, arguments = CASES[name]
    network = kind(**({**arguments, "num_classes": 3} | changes))
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    for buffer in network.buffers():  # frequencies up to 50 would make differences of times useless
        if buffer.ndim == 1:
            nn.init.normal_(buffer, generator=generator)
    return network


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(4, 2, 8, 8, generator=generator, dtype=dtype)
    t = torch.tensor([0.9, 0.7, 0.5, 0.3], dtype=dtype)
    h = torch.tensor([0.9, 0.2, 0.5, 0.1], dtype=dtype)
    return {"z": z, "t": t, "h": h, "label": torch.tensor([0, 1, 2, 3])}


@every_network
def test_every_argument_matters_and_items_are_independent(name: str) -> None:
    network, given = build(name).double().eval(), inputs(torch.float64)
    whole = network(**given)
    assert whole.shape == given["z"].shape == (4, *network.shape)
    for i in range(4):
        alone = network(**{key: value[i : i + 1] for key, value in given.items()})
        assert torch.allclose(alone[0], whole[i], atol=1e-10)
    others = (
        given | {"z": given["z"] + 0.1},
        given | {"t": given["t"] - 0.1},
        given | {"h": given["h"] + 0.1},
        given | {"label": (given["label"] + 1) % 4},
    )
    for other in others:
        assert ((network(**other) - whole).flatten(1).abs().amax(1) > 1e-6).all()


@every_network
def test_labels(name: str) -> None:
    network, given = build(name).eval(), inputs()
    none = network(**given | {"label": None})
    assert none.equal(network(**given | {"label": torch.full((4,), 3)}))  # None is unconditional
    with pytest.raises((RuntimeError, IndexError)):
        network(**given | {"label": torch.full((4,), 4)})
    free = build(name, num_classes=None)
    with pytest.raises(ValueError, match="num_classes=null and takes no labels"):
        free(**given)
    assert free(**given | {"label": None}).shape == none.shape


@every_network
def test_one_time_input_refuses_a_second(name: str) -> None:
    network, given = build(name, two_times=False), inputs()
    with pytest.raises(ValueError, match="has one time input"):
        network(**given)
    assert network(**given | {"h": None}).isfinite().all()


@every_network
def test_a_second_time_is_zero_initialized_and_learns(name: str) -> None:
    teacher = build(name, two_times=False).double().eval()
    student = build(name, seed=7).double().eval()
    assert "zero-initialized" in hand_over(student, teacher.state_dict())
    given = inputs(torch.float64)
    expected = teacher(**given | {"h": None})
    for h in (given["h"], torch.zeros(4, dtype=torch.float64), None):
        assert torch.allclose(student(**given | {"h": h}), expected, rtol=0, atol=1e-12)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    student(**given).square().mean().backward()
    optimizer.step()
    still, moved = student(**given | {"h": None}), student(**given)
    assert (still - moved).abs().max() > 1e-6


@every_network
def test_a_second_time_with_augmentations(name: str) -> None:
    if name == "edm2":
        with pytest.raises(TypeError, match="augment_dim"):  # no checkpoint of it has them
            build(name, augment_dim=5)
        return
    teacher = build(name, two_times=False, augment_dim=5).double().eval()
    student = build(name, seed=7, augment_dim=5).double().eval()
    hand_over(student, teacher.state_dict())
    given, augment = inputs(torch.float64), torch.rand(4, 5, dtype=torch.float64)
    expected = teacher(**given | {"h": None}, augment=augment)
    assert torch.allclose(student(**given, augment=augment), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(teacher(**given | {"h": None}), expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"augment must be of shape \(4, 5\)"):
        teacher(**given | {"h": None}, augment=augment[:, :3])
    with pytest.raises(ValueError, match="augment_dim=0"):
        build(name)(**inputs(), augment=augment)


@every_network
@pytest.mark.parametrize("changes", [{}, {"two_times": False, "num_classes": None}], ids=["all", "least"])
def test_every_parameter_takes_part(name: str, changes: dict[str, Any]) -> None:
    """So that DDP waits for no gradient."""
    network = build(name, **changes, **({} if name == "edm2" else {"augment_dim": 5}))
    given = inputs() | ({"h": None, "label": None} if changes else {})
    network(**given).square().mean().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@every_network
@pytest.mark.parametrize("times", [1, 2])
def test_forward_mode_against_central_differences(name: str, times: int) -> None:
    network = build(name, two_times=times == 2, dropout=0.5).double()
    given = inputs(torch.float64) | ({} if times == 2 else {"h": None})
    velocity = torch.randn(given["z"].shape, generator=torch.Generator().manual_seed(2)).double()
    exact = total_derivative(network, velocity=velocity, **given)
    network.eval()
    step = 1e-5

    def moved(by: float) -> Tensor:
        h = None if given["h"] is None else given["h"] + by
        return network(given["z"] + by * velocity, given["t"] + by, h, given["label"])

    difference = (moved(step) - moved(-step)) / (2 * step)
    assert (exact - difference).abs().max() < 1e-6 * exact.abs().max()


@every_network
def test_low_precision(name: str) -> None:
    network, given = build(name).eval(), inputs()
    single = network(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(**given)
    low = network.bfloat16()(**given)
    assert low.dtype == torch.bfloat16
    for other in (mixed, low):
        assert torch.nn.functional.cosine_similarity(other.float().flatten(), single.flatten(), dim=0) > 0.99


@every_network
def test_channels_last_is_the_same_function(name: str) -> None:
    network, given = build(name).double().eval(), inputs(torch.float64)
    plain = network(**given)
    network.to(memory_format=torch.channels_last)
    last = network(**given | {"z": given["z"].contiguous(memory_format=torch.channels_last)})
    assert torch.allclose(last, plain, atol=1e-10)


@every_network
def test_dropout_acts_in_training_only(name: str) -> None:
    network, given = build(name, dropout=0.5), inputs()
    assert not network(**given).equal(network(**given))
    network.eval()
    assert network(**given).equal(network(**given))


@every_network
def test_it_starts_near_zero_and_the_same_from_the_same_seed(name: str) -> None:
    kind, arguments = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        one = kind(**arguments)
        torch.manual_seed(5)
        two = kind(**arguments)
    for key, value in one.state_dict().items():
        assert value.equal(two.state_dict()[key])
    assert one(**inputs() | {"label": None}).abs().max() < 1e-3


@every_network
@pytest.mark.slow
def test_compiled_it_is_the_same(name: str) -> None:
    network, given = build(name), inputs()
    plain = network(**given)
    plain.square().mean().backward()
    gradients = {key: parameter.grad.clone() for key, parameter in network.named_parameters()}
    network.zero_grad()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(**given)
    compiled.square().mean().backward()
    assert torch.allclose(compiled, plain, atol=1e-4)
    for key, parameter in network.named_parameters():
        assert torch.allclose(parameter.grad, gradients[key], rtol=1e-3, atol=1e-4), key


@every_network
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 9}, r"input_size \(9\) must be a multiple of 2"),
        ({"width_multipliers": []}, "width_multipliers is empty"),
        ({"attention_sizes": [16]}, r"attention_sizes holds \[16\], and this network has the sizes \[8, 4\]"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ddpm++", {"embedding": "both"}, "embedding must be"),
        ("ddpm++", {"encoder": "skip"}, "encoder must be"),
        ("ddpm++", {"width": 34}, "width must give every layer"),
        ("ddpm++", {"resample_filter": [1, 2, 1]}, "resample_filter must hold an even number"),
        ("adm", {"head_width": 3}, r"head_width \(3\) must divide the 16 features"),
        ("edm2", {"head_width": 3}, r"head_width \(3\) must divide the 16 features"),
    ],
)
def test_other_bad_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)


def test_stages_are_those_of_the_cifar_checkpoint() -> None:
    down = encoder_stages(32, 3, [256, 256, 256], 4, first=128)
    assert [stage.name for stage in down][:6] == [
        "32x32_conv",
        *(f"32x32_block{i}" for i in range(4)),
        "16x16_down",
    ]
    up = decoder_stages(32, [256, 256, 256], 4, down)
    assert [stage.name for stage in up][:3] == ["8x8_in0", "8x8_in1", "8x8_block0"]
    assert up[-1].inputs == 256 + 128  # the first convolution comes last
    assert sum(stage.joined for stage in up) == sum(stage.outputs for stage in down)


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_resampling_keeps_constants_and_is_adjoint(taps: list[int]) -> None:
    kernel = filter_kernel(taps).double()
    x, y = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert torch.allclose(
        upsample(torch.ones(1, 1, 8, 8, dtype=torch.float64), kernel)[inner], torch.ones(()).double()
    )
    assert torch.allclose((downsample(x, kernel) * y).sum() * 4, (x * upsample(y, kernel)).sum())
    if taps == [1, 1]:  # the short cut
        assert torch.allclose(downsample(x), downsample(x, kernel))
        assert torch.allclose(upsample(x), upsample(x, kernel))


class TestMagnitudes:
    """Each part keeps the magnitude of normal numbers."""

    def magnitude(self, x: Tensor) -> float:
        return x.square().mean().sqrt().item()

    def normal(self, *shape: int, seed: int = 0) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def test_parts(self) -> None:
        a, b = self.normal(64, 32, 16, 16), self.normal(64, 96, 16, 16, seed=1)
        assert self.magnitude(mp_silu(a)) == pytest.approx(1, abs=2e-3)
        for t in (0.0, 0.3, 0.5, 1.0):
            assert self.magnitude(mp_sum(a, b[:, :32], t)) == pytest.approx(1, abs=5e-3)
            joined = mp_cat(a, b, t)
            assert self.magnitude(joined) == pytest.approx(1, abs=5e-3)
            share = joined[:, 32:].square().sum() / joined.square().sum()
            assert share.item() == pytest.approx(t**2 / (t**2 + (1 - t) ** 2), abs=5e-3)
        layer = MPConv(32, 64, 3).double()
        assert self.magnitude(layer(a)[:, :, 1:-1, 1:-1]) == pytest.approx(1, abs=2e-2)
        assert self.magnitude(normalize(5 * a, dim=1)) == pytest.approx(1, abs=1e-3)

    def test_weights_are_forced_where_a_gradient_is_taken(self) -> None:
        network, given = build("edm2"), inputs()
        before = {key: value.clone() for key, value in network.state_dict().items()}

        def changed() -> set[bool]:
            return {
                not value.equal(before[key])
                for key, value in network.state_dict().items()
                if key.endswith("weight")
            }

        with torch.no_grad():
            network(**given)
        assert changed() == {False}  # a self-teacher's pass
        network.eval()
        network(**given)
        assert changed() == {False}
        network.train()
        output = network(**given)
        assert changed() == {True}
        for key, value in network.state_dict().items():
            if key.endswith("weight"):
                assert value.flatten(1).square().mean(1).sqrt().sub(1).abs().max() < 3e-3  # eps .0001 over .2
        # The output did not change: weights are normalized before use in any case (up to the eps of .0001).
        free = build("edm2", force_weights=False)
        assert torch.allclose(output, free(**given), rtol=1e-2, atol=1e-3)
        assert all(value.equal(before[key]) for key, value in free.state_dict().items())

    def test_dropout_by_size(self) -> None:
        network = build("edm2", dropout=0.4, dropout_size=4)
        rates = {key: layer.p for key, layer in network.named_modules() if isinstance(layer, nn.Dropout)}
        assert {rate for key, rate in rates.items() if "8x8" in key} == {0.0}
        assert {rate for key, rate in rates.items() if "4x4" in key} == {0.4}
