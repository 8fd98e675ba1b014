"""Frechet distance by batches, from files and over processes; random features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pool import Pool
from ranks import frechet_on_rank
from torch import Tensor, nn

from zoo.flow import RandomFeatureDistance
from zoo.metrics import FrechetDistance, RandomFeatures, frechet_distance


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_batches_add_up_to_the_whole() -> None:
    real, made = images(150), 0.8 * images(120, 1) + 0.1
    metric = FrechetDistance()
    for batch in real.split(40):
        metric.update(batch, real=True)
    for batch in made.split(50):
        metric.update(batch, real=False)
    expected = frechet_distance(made.flatten(1), real.flatten(1))
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-9, atol=1e-9)
    metric.reset()
    with pytest.raises(ValueError, match="two generated items at least, got 0"):
        metric.compute()


def test_large_means_keep_their_digits() -> None:
    """Sums of squares around a mean of 1,000: float32 would lose the covariance altogether."""
    real, made = images(200) + 1000, images(200, 1) + 1000
    metric = FrechetDistance()
    metric.update(real, real=True)
    metric.update(made, real=False)
    expected = frechet_distance(made.flatten(1), real.flatten(1))
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-6, atol=1e-6)


def test_a_reference_of_moments(tmp_path: Path) -> None:
    real, made = images(150).flatten(1).double(), images(120, 1)
    np.savez(tmp_path / "ref.npz", mu=real.mean(0).numpy(), sigma=np.cov(real.numpy(), rowvar=False))
    metric = FrechetDistance(reference=str(tmp_path / "ref.npz"))
    metric.update(made, real=False)
    torch.testing.assert_close(
        metric.compute(), frechet_distance(made.flatten(1), real), rtol=1e-9, atol=1e-9
    )
    with pytest.raises(ValueError, match="the reference was loaded from a file"):
        metric.update(made, real=True)
    other = FrechetDistance(lambda x: x.flatten(1)[:, :5], str(tmp_path / "ref.npz"))
    other.update(made, real=False)
    with pytest.raises(ValueError, match="the features have 5 dimensions, the reference has 64"):
        other.compute()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"nothing", "is not an .npz with 'mu' and 'sigma'"),
        ({"mu": np.zeros(3)}, "is not an .npz with 'mu' and 'sigma'"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"expected mu \(D,\) and sigma \(D, D\)"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.zeros((1, 1))}, "is not an .npz with"),
    ],
)
def test_bad_references(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    with pytest.raises(ValueError, match=message):
        FrechetDistance(reference=str(path))


def test_bad_features() -> None:
    with pytest.raises(ValueError, match=r"one vector per item \(B, D\)"):
        FrechetDistance(nn.Identity()).update(images(4), real=True)


def test_two_processes_see_one_set(pool: Pool) -> None:
    real, made = images(60), images(40, 1)
    left, right = pool.run(frechet_on_rank, real, made)
    expected = frechet_distance(made.flatten(1), real.flatten(1)).item()
    # Forty items leave zero eigenvalues, and the square root turns their rounding of 1e-16 into 1e-8.
    assert left == right == pytest.approx(expected, rel=1e-7)


class TestRandomFeatures:
    def test_are_a_function_of_the_seed(self) -> None:
        x = images(3)
        torch.manual_seed(5)
        one = RandomFeatures(1)
        torch.manual_seed(6)
        assert one(x).equal(RandomFeatures(1)(x)) and not one(x).allclose(RandomFeatures(1, seed=1)(x))
        assert not any(p.requires_grad for p in one.parameters())

    def test_see_blur_that_keeps_the_moments_of_pixels(self) -> None:
        """Shuffling pixels within images keeps all values; features of neighborhoods tell the difference."""
        smooth = nn.functional.avg_pool2d(images(400), 3, 1, 1)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        shuffled = smooth.flatten(1)[:, order].reshape(smooth.shape)
        half = len(smooth) // 2
        features = RandomFeatures(1, width=8, scales=2)
        apart = frechet_distance(features(smooth[:half]), features(shuffled[half:]))
        floor = frechet_distance(features(smooth[:half]), features(smooth[half:]))
        assert apart > 5 * floor

    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64)])
    def test_a_distance_of_pairs(self, shape: tuple[int, ...]) -> None:
        a = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        b = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
        distance = RandomFeatureDistance(shape[0], width=8)
        values = distance(a, b)
        assert values.shape == (4,) and bool((values > 0).all())
        assert distance(b, b).abs().max() < 1e-12
        torch.testing.assert_close(values, distance(b, a))
        [gradient] = torch.autograd.grad(values.sum(), a)
        assert bool(gradient.isfinite().all()) and gradient.abs().max() > 0
        nearer = distance(b + 0.1 * (a - b), b)
        assert bool((nearer < values).all())

    def test_the_distance_restated(self) -> None:
        a, b = images(2), images(2, 1)
        distance = RandomFeatureDistance(1, width=4, scales=2, pixels=0.5)
        total = 0.5 * (a - b).square().flatten(1).mean(1)
        maps = [[], []]  # type: list[list[Tensor]]
        for x, found in zip((a, b), maps, strict=True):
            for number, layer in enumerate(distance.features.layers):
                x = nn.functional.leaky_relu(layer(nn.functional.avg_pool2d(x, 2) if number else x), 0.2)
                found.append(x / x.square().sum(1, keepdim=True).sqrt())
        for one, other in zip(*maps, strict=True):
            total = total + ((one - other) ** 2).sum(1).mean((1, 2))
        torch.testing.assert_close(distance(a, b), total)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="must be at least 1"):
            RandomFeatures(scales=0)
        with pytest.raises(ValueError, match=r"x must be images \(B, 3, S, S\)"):
            RandomFeatures()(images(2))
        with pytest.raises(ValueError, match="too small for 5 scales"):
            RandomFeatures(1, scales=5)(images(2))
        with pytest.raises(ValueError, match="pixels must be at least 0"):
            RandomFeatureDistance(pixels=-1.0)
