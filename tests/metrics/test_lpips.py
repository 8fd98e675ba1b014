"""LPIPS with fabricated weights: against its equation, against torchmetrics, its gradient, its files."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from zoo.flow.distances import distance_to_targets
from zoo.io import save_tensors
from zoo.metrics import LPIPS
from zoo.metrics.lpips import packaged_heads


def images(count: int, seed: int, side: int = 32, channels: int = 3) -> Tensor:
    return 2 * torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture(scope="module")
def trunk() -> dict[str, Tensor]:
    """Weights of torchvision's VGG16, from its own code and a seed; the classifier's names without theirs."""
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.device("meta"):
            shapes = torchvision.models.vgg16(weights=None).state_dict()
        state = {
            name: torch.randn(tensor.shape)
            * (0.1 if name.endswith("bias") else (2 / tensor[0].numel()) ** 0.5)
            for name, tensor in shapes.items()
            if name.startswith("features.")
        }
    return state | {"classifier.6.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def weights(trunk: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(trunk, path)
    return str(path)


@pytest.fixture(scope="module")
def lpips(weights: str) -> LPIPS:
    return LPIPS(weights)


def restated(trunk: dict[str, Tensor], heads: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """The sum over depths of mean over positions of |w * (y_a - y_b)|^2, written out, in float64."""
    per_scale = [[0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]]
    mean = torch.tensor([-0.030, -0.088, -0.188]).double().reshape(3, 1, 1)
    std = torch.tensor([0.458, 0.448, 0.450]).double().reshape(3, 1, 1)
    x = (torch.stack([a, b]).double() - mean) / std  # (2, B, 3, H, W)
    pair = x.flatten(0, 1)
    total = torch.zeros(len(a), dtype=torch.float64)
    for scale, numbers in enumerate(per_scale):
        if scale:
            pair = pair.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        for number in numbers:
            kernel, bias = (trunk[f"features.{number}.{kind}"].double() for kind in ("weight", "bias"))
            pair = nn.functional.conv2d(pair, kernel, bias, padding=1).clamp(min=0)
        unit = pair / pair.square().sum(1, keepdim=True).sqrt().clamp(min=1e-10)
        one, other = unit.chunk(2)
        weight = heads[f"lin{scale}.model.1.weight"].double().reshape(1, -1, 1, 1)
        total += (weight * (one - other) ** 2).sum(1).mean((1, 2))
    return total


def test_against_the_equation(lpips: LPIPS, trunk: dict[str, Tensor]) -> None:
    a, b = images(3, 0), 1.5 * images(3, 1)  # beyond [-1, 1], which is not clamped
    heads = torch.load(packaged_heads(), map_location="cpu", weights_only=True)
    torch.testing.assert_close(lpips(a, b).double(), restated(trunk, heads, a, b), rtol=1e-5, atol=1e-7)
    clamped = LPIPS.__new__(LPIPS)
    clamped.__dict__.update(lpips.__dict__ | {"clamp": True})
    expected = restated(trunk, heads, a.clamp(-1, 1), b.clamp(-1, 1))
    torch.testing.assert_close(clamped(a, b).double(), expected, rtol=1e-5, atol=1e-7)


def test_against_torchmetrics(
    lpips: LPIPS, trunk: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its normalization has its epsilon under the root, which is another 1e-4 where features are small."""
    import torchvision
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models import vgg

    # Without the classifier, whose 120 million random numbers take seconds.
    layers = vgg.make_layers(vgg.cfgs["D"])
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights: SimpleNamespace(features=layers))
    theirs = _LPIPS(pretrained=False, pnet_rand=True, net="vgg", use_dropout=True)
    numbered = {name.removeprefix("features."): tensor for name, tensor in trunk.items()}
    state = {
        name: numbered[name.split(".", 2)[2]] for name in theirs.state_dict() if name.startswith("net.slice")
    }
    heads = torch.load(packaged_heads(), map_location="cpu", weights_only=True)
    result = theirs.load_state_dict(state | heads, strict=False)
    assert not result.unexpected_keys and all(name.startswith("lins.") for name in result.missing_keys)
    a, b = images(2, 2), images(2, 3)
    torch.testing.assert_close(lpips(a, b), theirs(a, b).flatten(), rtol=1e-3, atol=0)


def test_is_a_distance_of_pairs(lpips: LPIPS) -> None:
    a, b = images(3, 4, 16), images(3, 5, 16)
    distance = lpips(a, b)
    assert distance.shape == (3,) and distance.min() > 0 and lpips(a, a).eq(0).all()
    torch.testing.assert_close(distance, lpips(b, a))
    torch.testing.assert_close(distance[1:2], lpips(a[1:2], b[1:2]))
    near = lpips(a, a + 0.01 * images(3, 6, 16))
    assert (near < 0.1 * distance).all()
    gray = images(2, 7, 16, channels=1)
    torch.testing.assert_close(lpips(gray, -gray), lpips(gray.repeat(1, 3, 1, 1), -gray.repeat(1, 3, 1, 1)))
    assert not any(p.requires_grad for p in lpips.parameters()) and not lpips.training


def test_resize(weights: str, lpips: LPIPS) -> None:
    large = LPIPS(weights, resize=48)
    a, b = images(2, 8, 24), images(2, 9, 24)
    assert large(a, b).shape == (2,)
    up = [nn.functional.interpolate(x, (48, 48), mode="bilinear", align_corners=False) for x in (a, b)]
    torch.testing.assert_close(large(a, b), lpips(*up), rtol=1e-4, atol=1e-6)


def test_gradient_against_differences(lpips: LPIPS) -> None:
    a, b = images(1, 10, 16), images(1, 11, 16)
    variable = a.clone().requires_grad_()
    [gradient] = torch.autograd.grad(lpips(variable, b).sum(), variable)
    direction = images(1, 12, 16)
    step = 1e-3
    slope = (lpips(a + step * direction, b) - lpips(a - step * direction, b)) / (2 * step)
    # A central difference in float32 across kinks of the activations: a few per cent.
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=0.05)


def test_other_heads(weights: str, lpips: LPIPS, tmp_path: Path) -> None:
    heads = torch.load(packaged_heads(), map_location="cpu", weights_only=True)
    save_tensors(tmp_path / "heads.safetensors", {name: 2 * tensor for name, tensor in heads.items()})
    a, b = images(1, 15, 16), images(1, 16, 16)
    torch.testing.assert_close(LPIPS(weights, str(tmp_path / "heads.safetensors"))(a, b), 2 * lpips(a, b))


def test_bad_images(lpips: LPIPS) -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(1, 3, 16, 16\) and \(2, 3, 16, 16\)"):
        lpips(images(1, 0, 16), images(2, 0, 16))
    for shape in ((1, 3, 15, 16), (1, 4, 16, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match="LPIPS takes images"):
            lpips(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match="resize must be at least 16"):
        LPIPS("x", resize=8)


def test_files_are_read_late(weights: str, lpips: LPIPS, tmp_path: Path) -> None:
    """A config is checked where the files are not; whoever uses them is told."""
    late = LPIPS(str(tmp_path / "vgg.pth"))
    x = images(2, 17, 16)
    with pytest.raises(ValueError, match=r"weights='.*vgg.pth': no such file"):
        late(x, x)
    (tmp_path / "vgg.pth").write_bytes(Path(weights).read_bytes())
    torch.testing.assert_close(late(x, -x), lpips(x, -x))
    (tmp_path / "vgg.pth").unlink()  # read once
    assert late.load() is late and late(x, x).eq(0).all()


def test_building_draws_nothing(weights: str) -> None:
    """Random values that a file then replaces would shift every later draw of a run."""
    state = torch.random.get_rng_state()
    LPIPS(weights).load()
    assert torch.random.get_rng_state().equal(state)


def test_on_the_meta_device() -> None:
    """Shapes without values: no file is read, and none can be."""
    with torch.device("meta"):
        shapes = LPIPS("none.pth")
    x = torch.zeros(2, 3, 32, 32, device="meta", requires_grad=True)
    distance = shapes(x, x.detach())
    [gradient] = torch.autograd.grad(distance.sum(), x)
    assert distance.is_meta and distance.shape == (2,) and gradient.shape == x.shape
    with pytest.raises(ValueError, match="on the meta device, which holds no values"):
        shapes.load()


def test_targets_are_embedded_once(lpips: LPIPS) -> None:
    """The pairs of a trajectory share a target: values and gradients are those of its copies."""
    a, b = images(6, 18, 16), images(2, 19, 16)
    found, seen = [], []
    hook = lpips.features[0].register_forward_pre_hook(lambda layer, args: seen.append(len(args[0])))
    for once in (False, True):
        x = a.clone().requires_grad_()
        distance = distance_to_targets(lpips, x, b) if once else lpips(x, b.repeat_interleave(3, 0))
        found.append((distance.detach(), *torch.autograd.grad(distance.sum(), x)))
    hook.remove()
    torch.testing.assert_close(found[0], found[1])
    assert seen == [6, 6, 2, 6]  # images through the network


class Trap:
    """Executes when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("trapped", "w"))


def test_bad_files(
    weights: str, trunk: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"weights='none.pth': no such file"):
        LPIPS("none.pth").load()
    with pytest.raises(ValueError, match=r"heads='none.pth': no such file"):
        LPIPS(weights, "none.pth").load()
    torch.save({"features.0.weight": Trap()}, "hostile.pth")
    with pytest.raises(ValueError, match="holds Python objects is refused"):
        LPIPS("hostile.pth").load()
    assert not Path("trapped").exists()
    Path("cut.pth").write_bytes(Path(weights).read_bytes()[:5000])
    with pytest.raises(ValueError, match="A file cut short is damaged"):
        LPIPS("cut.pth").load()
    torch.save([torch.zeros(2)], "list.pth")
    with pytest.raises(ValueError, match="must hold a state dict"):
        LPIPS("list.pth").load()
    torch.save({name: tensor for name, tensor in trunk.items() if "28" not in name}, "less.pth")
    with pytest.raises(ValueError, match=r"2 missing \(28.weight, 28.bias\)"):
        LPIPS("less.pth").load()
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, "few.pth")
    with pytest.raises(ValueError, match=r"heads='few.pth' .* 4 missing"):
        LPIPS(weights, "few.pth").load()
    torch.save(trunk | {"features.0.bias": torch.zeros(3)}, "shape.pth")
    with pytest.raises(ValueError, match=r"0.bias is \(3,\) instead of \(64,\)"):
        LPIPS("shape.pth").load()
