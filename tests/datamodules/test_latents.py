"""Archives of latents: forms, scale, draws, what is refused."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo.datamodules import Latents
from zoo.datamodules._archives import Rows, read_archive

COUNT = 12


def latents(seed: int = 0, channels: int = 4, count: int = COUNT) -> Tensor:
    return torch.randn(count, channels, 2, 3, generator=torch.Generator().manual_seed(seed))


def write(path: Path, arrays: dict[str, Tensor]) -> str:
    if path.suffix == ".safetensors":
        save_file(arrays, path)
    else:
        save = np.savez_compressed if "compressed" in path.name else np.savez
        plain: Any = {name: array.numpy() for name, array in arrays.items()}
        save(path, **plain)
    return str(path)


def items(data: Latents) -> dict[str, Tensor]:
    data.setup("fit")
    batches = list(data.reference_dataloader())
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def training(data: Latents, passes: int) -> Tensor:
    """What each of a number of passes shows, in the order of the index: (passes, N, ...)."""
    data.setup("fit")
    loader, found = data.train_dataloader(), []
    for _ in range(passes):
        batches = list(loader)
        index = torch.cat([batch["index"] for batch in batches])
        found.append(torch.cat([batch["x"] for batch in batches])[index.argsort()])
    return torch.stack(found)


@pytest.mark.parametrize("name", ["a.npz", "compressed.npz", "a.safetensors"])
@pytest.mark.parametrize("workers", [0, 1])
def test_all_forms_hold_the_same(name: str, workers: int, tmp_path: Path) -> None:
    labels = torch.arange(COUNT) % 5
    path = write(tmp_path / name, {"latents": latents(), "labels": labels})
    found = items(Latents(path, batch_size=5, num_workers=workers))
    assert found["x"].equal(latents()) and found["label"].equal(labels)
    assert found["index"].equal(torch.arange(COUNT)) and found["label"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_other_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"latents": latents().to(dtype)})
    found = items(Latents(path, batch_size=4))
    assert set(found) == {"x", "index"} and found["x"].equal(latents().to(dtype).float())


def test_arrays_in_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", latents=np.asfortranarray(latents().numpy()))
    assert items(Latents(str(tmp_path / "a.npz")))["x"].equal(latents())


def test_shards_follow_their_names(tmp_path: Path) -> None:
    parts = [latents(k, count=k + 2) for k in range(3)]
    for k, part in enumerate(parts):
        name = f"shard{k}.{'safetensors' if k == 1 else 'npz'}"
        write(tmp_path / name, {"latents": part, "labels": torch.full((len(part),), k)})
    (tmp_path / "notes.txt").write_text("not an archive")
    data = Latents(str(tmp_path), batch_size=4)
    found = items(data)
    assert found["x"].equal(torch.cat(parts)) and found["label"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    where = torch.tensor([8, 0, 3, 3, 2])
    assert Rows(parts)[where].equal(torch.cat(parts)[where])
    write(tmp_path / "shard3.npz", {"latents": latents(channels=3), "labels": torch.arange(COUNT)})
    data = Latents(str(tmp_path))
    with pytest.raises(ValueError, match=r"shard3.npz holds latents \(N, 3, 2, 3\).* but .*shard0.npz"):
        data.setup("fit")


def test_scale_of_edm2(tmp_path: Path) -> None:
    mean, std = [5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28]
    raw = latents() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    path = write(tmp_path / "a.npz", {"latents": raw})
    found = items(Latents(path, scale=0.5, mean=mean, std=std))["x"]
    torch.testing.assert_close(found, 0.5 * latents())


@pytest.mark.parametrize("moments", ["std", "logvar"])
def test_draws_have_their_moments(moments: str, tmp_path: Path) -> None:
    """Over 400 passes each value has its mean and deviation; then comes the scale."""
    mean, std = latents(1), latents(2).abs() + 0.1
    spread = std if moments == "std" else 2 * std.log()
    path = write(tmp_path / "a.npz", {"latents": torch.cat([mean, spread], dim=1)})
    data = Latents(path, scale=2.0, mean=[1.0] * 4, moments=moments, batch_size=6)
    drawn = training(data, 400) / 2 + 1
    assert drawn.shape == (400, COUNT, 4, 2, 3)
    error = (drawn.mean(0) - mean) / std * 400**0.5
    # 288 standard normal values: none beyond 5, and their variance is 1 to a few times sqrt(2 / 288).
    assert error.abs().max() < 5 and abs(float(error.var()) - 1) < 0.35
    assert ((drawn.std(0) / std - 1).abs() < 5 / 800**0.5).all()
    assert items(data)["x"].equal(items(data)["x"])  # in evaluation the same each time,
    assert not torch.isclose(items(data)["x"], training(data, 1)[0]).any()  # and no draw of training
    other = Latents(path, scale=2.0, mean=[1.0] * 4, moments=moments, batch_size=4)
    torch.testing.assert_close(training(other, 3), training(data, 3))  # for any batch size


def test_logvar_is_clamped(tmp_path: Path) -> None:
    extreme = torch.full((COUNT, 4, 2, 3), 1000.0)
    path = write(tmp_path / "a.npz", {"latents": torch.cat([latents(), extreme], dim=1)})
    assert items(Latents(path, moments="logvar"))["x"].isfinite().all()


def test_flipped_copies(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {"latents": latents(), "latents_flipped": -latents()})
    data = Latents(path, flip=True, batch_size=6)
    found = training(data, 20)
    same, other = ((found == x).flatten(2).all(2) for x in (latents(), -latents()))
    assert (same ^ other).all() and same.any(0).all() and other.any(0).all()
    assert abs(float(other.double().mean()) - 0.5) < 5 * 0.5 / 240**0.5  # five standard deviations
    assert items(data)["x"].equal(latents())
    assert training(Latents(path, batch_size=6), 2)[1].equal(latents())  # only if asked for


def test_test_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {"latents": latents()})
    other = write(tmp_path / "b.npz", {"latents": latents(1)})
    data = Latents(path, test_path=other, batch_size=COUNT)
    data.setup("test")
    [batch] = list(data.test_dataloader())
    assert batch["x"].equal(latents(1)) and len(list(data.val_dataloader())) == 1
    data = Latents(path)
    data.setup("fit")
    assert data.val_dataloader() == []


def test_large_files_are_mapped(tmp_path: Path) -> None:
    """What is changed in the file behind an archive's back is seen: nothing was copied."""
    path = Path(write(tmp_path / "a.npz", {"latents": torch.zeros(4, 1, 64, 64)}))
    array = read_archive(path)["latents"]
    at = path.read_bytes().index(bytes(4096))
    with open(path, "rb+") as file:
        file.seek(at + 4096)
        file.write(np.float32(7).tobytes())
    assert (array == 7).sum() == 1


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"images": latents()}, {}, r"lacks \['latents'\]: it holds \['images'\]"),
        ({"latents": latents()}, {"flip": True}, r"lacks \['latents_flipped'\]"),
        (
            {"latents": latents().long()},
            {},
            r"must be floats \(N, C, H, W\), got \(12, 4, 2, 3\) of torch.int64",
        ),
        ({"latents": latents().flatten(1)}, {}, r"must be floats \(N, C, H, W\), got \(12, 24\)"),
        (
            {"latents": latents()},
            {"mean": [0.0]},
            "mean has 1 entries, but the latents of .* have 4 channels",
        ),
        ({"latents": latents(channels=5)}, {"moments": "std"}, "needs an even number of channels, got 5"),
        ({"latents": latents(), "labels": torch.zeros(3)}, {}, r"labels must be \(12,\), whole numbers"),
        ({"latents": latents(), "labels": torch.full((COUNT,), -1)}, {}, "whole numbers from 0 up"),
        (
            {"latents": latents(), "latents_flipped": latents(count=3)},
            {"flip": True},
            r"latents_flipped must be \(12, 4, 2, 3\) as latents are, got \(3, 4, 2, 3\)",
        ),
    ],
)
def test_archives_that_do_not_fit(
    arrays: dict[str, Tensor], options: dict, message: str, tmp_path: Path
) -> None:
    data = Latents(write(tmp_path / "a.npz", arrays), **options)
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


@pytest.mark.parametrize("name", ["a.npz", "compressed.npz", "a.safetensors"])
def test_damaged_archives(name: str, tmp_path: Path) -> None:
    path = Path(write(tmp_path / name, {"latents": latents()}))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        Latents(str(path)).setup("fit")


def damage_of(path: Path) -> str | None:
    """What is said of a file that cannot be read."""
    try:
        read_archive(path)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("compressed", [False, True])
def test_every_damaged_byte(compressed: bool, tmp_path: Path) -> None:
    """Whatever single byte is wrong: the file is read, or a ValueError names it."""
    path, refused = tmp_path / "a.npz", 0
    (np.savez_compressed if compressed else np.savez)(path, latents=np.zeros((2, 1, 1, 1), np.float32))
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bits in (0x01, 0x80, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
            message = damage_of(path)
            assert message is None or "a.npz cannot be read" in message
            refused += message is not None
    assert refused > len(whole) / 2


def test_an_array_larger_than_any_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1, 1, 1)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latents.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"a\.npz cannot be read: Unable to allocate"):
        read_archive(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npz", "compressed.npz"])
def test_objects_are_not_unpickled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, ("trapped", "w"))

    monkeypatch.chdir(tmp_path)
    save = np.savez_compressed if "compressed" in name else np.savez
    save(name, latents=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match=rf"{name} cannot be read: .*[Oo]bject"):
        Latents(name).setup("fit")
    assert not Path("trapped").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "none.npz"}, "path='none.npz' is not an .npz or .safetensors file"),
        ({"path": "."}, "path='.' is not an .npz"),
        ({"path": "a.npz", "test_path": "none.npz"}, "test_path='none.npz' is no"),
        ({"path": "a.npz", "scale": 0}, "scale and every std must be positive"),
        ({"path": "a.npz", "std": [1.0, 0.0]}, "scale and every std must be positive"),
        ({"path": "a.npz", "moments": "variance"}, "moments must be 'none', 'std' or 'logvar'"),
    ],
)
def test_bad_arguments(options: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.npz", {"latents": latents()})
    monkeypatch.chdir(tmp_path / "empty" if options["path"] == "." else tmp_path)
    with pytest.raises(ValueError, match=message):
        Latents(**options)
