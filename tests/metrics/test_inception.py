"""FID's network through torchmetrics and torch-fidelity, with fabricated weights; FID of files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.metrics import FrechetDistance, InceptionFeatures, fid, inception
from zoo.metrics.inception import read_images, to_bytes


def pictures(count: int, side: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def save_samples(path: Path, images: Tensor, save: Callable = np.savez) -> str:
    save(path, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=np.zeros(len(images), dtype=np.int64))
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with the names and shapes of the real one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: object, **kwargs: object) -> None:
            """Leaves the network as it is."""

    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({}, path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(Unloaded("inception-v3-compat", ["2048"], str(path)).state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def features(weights: str) -> InceptionFeatures:
    return InceptionFeatures(weights)


def test_features_are_torch_fidelitys(weights: str, features: InceptionFeatures) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], weights)
    images = pictures(2, 32)
    vectors = features(images)
    assert vectors.shape == (2, 2048) and vectors.std() > 0
    torch.testing.assert_close(vectors, theirs(images)[0])
    # Floats in the middle of a byte's range are that byte.
    torch.testing.assert_close(features((images.float() - 127.5) / 127.5), vectors)
    gray = images[:, :1]
    torch.testing.assert_close(features(gray), features(gray.repeat(1, 3, 1, 1)))
    features.train()
    torch.testing.assert_close(features(images), vectors)  # batch norm stays as it was trained


def test_every_byte_comes_back() -> None:
    values = torch.arange(256)
    assert to_bytes((values - 127.5) / 127.5).equal(values.to(torch.uint8))
    assert to_bytes(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


class Small(nn.Module):
    """A stand-in for the network: four features."""

    num_features = 4
    filters: Tensor

    def __init__(self, weights: str = "") -> None:
        super().__init__()
        filters = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
        self.register_buffer("filters", filters)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1) / 255 @ self.filters


def test_distance_is_torchmetrics(tmp_path: Path) -> None:
    """Its states, filled from the reference by hand, give the same value."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, made = Small()(pictures(90)).double(), pictures(70, seed=1)
    mean, covariance, count = real.mean(0), torch.cov(real.T), 90
    np.savez(tmp_path / "ref.npz", mu=mean.numpy(), sigma=covariance.numpy())
    theirs = FrechetInceptionDistance(feature=Small())
    theirs.real_features_sum = count * mean
    theirs.real_features_cov_sum = (count - 1) * covariance + count * torch.outer(mean, mean)
    theirs.real_features_num_samples = torch.tensor(count)
    ours = FrechetDistance(Small(), str(tmp_path / "ref.npz"))
    for batch in made.split(32):
        theirs.update(batch, real=False)
        ours.update(batch, real=False)
    # torchmetrics rounds its result to the features' float32.
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-5)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_fid_of_a_file(save: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "InceptionFeatures", Small)
    real, made = pictures(90), pictures(70, seed=1)
    vectors = Small()(real).double()
    np.savez(tmp_path / "ref.npz", mu=vectors.mean(0).numpy(), sigma=np.cov(vectors.numpy(), rowvar=False))
    samples = save_samples(tmp_path / "samples.npz", made, save)
    whole = FrechetDistance(Small())
    whole.update(real, real=True)
    whole.update(made, real=False)
    found = fid(samples, "", str(tmp_path / "ref.npz"), batch_size=32)
    # The two accumulate in float64 the same float32 features, grouped in another way.
    assert found == pytest.approx(float(whole.compute()), rel=1e-6)
    assert torch.cat(list(read_images(samples, 32))).equal(made)


@pytest.mark.slow
def test_fid_with_its_network(weights: str, features: InceptionFeatures, tmp_path: Path) -> None:
    images = pictures(4, 16)
    vectors = features(images).double().numpy()
    np.savez(tmp_path / "ref.npz", mu=vectors.mean(0) + 0.5, sigma=np.cov(vectors, rowvar=False))
    found = fid(save_samples(tmp_path / "samples.npz", images), weights, str(tmp_path / "ref.npz"))
    # A shift of 0.5 in each feature; 2,045 zero eigenvalues, whose roots are of 1e-8 or less, make the rest.
    assert found == pytest.approx(2048 * 0.25, rel=1e-3)


def test_without_torch_fidelity(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchmetrics.utilities.imports._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-zoo\[fid\]'"):
        InceptionFeatures(weights)


class Trap:
    """Executes when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("trapped", "w"))


def test_bad_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"weights='none.pth': no such file"):
        InceptionFeatures("none.pth")
    torch.save({"fc.weight": torch.zeros(2, 2)}, "other.pth")
    with pytest.raises(ValueError, match=r"weights='other.pth' is not the network of FID: .*Missing key"):
        InceptionFeatures("other.pth")
    torch.save({"fc.weight": Trap()}, "hostile.pth")
    with pytest.raises(ValueError, match="holds Python objects is refused"):
        InceptionFeatures("hostile.pth")
    assert not Path("trapped").exists()


def test_bad_images(features: InceptionFeatures) -> None:
    for x in (torch.zeros(2, 4, 8, 8), torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.int64)):
        with pytest.raises(ValueError, match="images must be"):
            features(x)


def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = save_samples(tmp_path / "samples.npz", pictures(6))
    np.savez("ref.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"samples='none.npz': no such file"):
        fid("none.npz", "", "ref.npz")
    with pytest.raises(ValueError, match="has 4 features, not the 2048"):
        fid(samples, "", "ref.npz")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        fid(samples, "", "ref.npz", batch_size=0)
    np.savez("floats.npz", arr_0=np.zeros((6, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"got \(6, 8, 8, 3\) of float64"):
        fid("floats.npz", "", "ref.npz")
    np.savez("named.npz", images=np.zeros((6, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"not an .npz of images: .*arr_0.npy"):
        fid("named.npz", "", "ref.npz")
    Path("cut.npz").write_bytes(Path(samples).read_bytes()[:900])
    with pytest.raises(ValueError, match=r"'cut.npz' is not an .npz of images"):
        fid("cut.npz", "", "ref.npz")
