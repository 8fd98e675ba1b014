"""CIFAR-10's two forms, with fabricated files of the same layout."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.datamodules import CIFAR10

FILES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
COUNT = 4  # images in a file


def content(number: int) -> tuple[np.ndarray, list[int]]:
    """The images (COUNT, 3072) and labels of file ``number``."""
    generator = np.random.default_rng(number)
    return generator.integers(0, 256, (COUNT, 3072), dtype=np.uint8), generator.integers(
        0, 10, COUNT
    ).tolist()


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A file as Python 2 wrote it: protocol 2, with text as bytes."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    made = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + b"cnumpy\nndarray\n"
        + b"K\x00\x85"
        + text(b"b")
        + b"\x87R"
    )
    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(" + b"K\x03" + text(b"|") + b"NNN" + number(-1) * 2 + b"K\x00tb"
    shape = number(data.shape[0]) + number(data.shape[1]) + b"\x86"
    raw = b"T" + struct.pack("<i", data.size) + data.tobytes()
    array = made + b"(K\x01" + shape + kind + b"\x89" + raw + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    pairs = text(b"batch_label") + text(b"a batch") + text(b"labels") + listed + text(b"data") + array
    return b"\x80\x02}(" + pairs + b"u."


def write(folder: Path, form: str) -> Path:
    """All six files; returns the folder around them."""
    inner = folder / f"cifar-10-batches-{'bin' if form == 'bin' else 'py'}"
    inner.mkdir(parents=True)
    for number, name in enumerate(FILES):
        data, labels = content(number)
        if form == "bin":
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
            (inner / f"{name}.bin").write_bytes(rows.tobytes())
        elif form == "python 2":
            (inner / name).write_bytes(python2_pickle(data, labels))
        else:
            (inner / name).write_bytes(pickle.dumps({b"data": data, b"labels": labels}, protocol=int(form)))
    return folder


def test_the_fabricated_files_are_pickles() -> None:
    data, labels = content(0)
    value = pickle.loads(python2_pickle(data, labels), encoding="bytes")
    assert value[b"labels"] == labels and np.array_equal(value[b"data"], data)


@pytest.mark.parametrize("form", ["python 2", "bin", "2", "4"])
def test_all_forms_hold_the_same(form: str, tmp_path: Path) -> None:
    data = CIFAR10(str(write(tmp_path, form)), batch_size=5)
    data.setup("fit")
    [*train, test] = [content(number) for number in range(6)]
    batches = list(data.reference_dataloader())
    x = torch.cat([batch["x"] for batch in batches])
    assert x.shape == (20, 3, 32, 32) and x.dtype == torch.float32
    expected = np.concatenate([images for images, _ in train]).reshape(-1, 3, 32, 32)
    np.testing.assert_allclose(x.numpy(), expected / 127.5 - 1, atol=1e-6)
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [k for _, part in train for k in part]
    [held_out] = list(data.test_dataloader())
    assert held_out["label"].tolist() == test[1] and len(list(data.val_dataloader())) == 1
    inner = next(tmp_path.iterdir())
    assert CIFAR10(str(inner)).folder == inner  # the folder itself will do


@pytest.mark.parametrize("workers", [0, 1])
def test_flips_come_back(workers: int, tmp_path: Path) -> None:
    """Half of the images, drawn again in each pass, the same for any batch size; none in evaluation."""
    root = str(write(tmp_path, "bin"))

    def passes(batch_size: int, flip: bool) -> torch.Tensor:
        data = CIFAR10(root, batch_size, flip=flip, num_workers=workers, seed=3)
        data.setup("fit")
        loader, found = data.train_dataloader(), []
        for _ in range(8):
            batches = list(loader)
            index = torch.cat([batch["index"] for batch in batches])
            found.append(torch.cat([batch["x"] for batch in batches])[index.argsort()])
        return torch.stack(found)  # (8, 20, 3, 32, 32)

    plain, turned = passes(10, flip=False), passes(10, flip=True)
    same, mirrored = ((turned == image).flatten(2).all(2) for image in (plain, plain.flip(-1)))
    assert (same ^ mirrored).all()
    # 160 draws of one half: five standard deviations are 0.2.
    assert abs(float(mirrored.double().mean()) - 0.5) < 0.2 and mirrored.any(0).all() and same.any(0).all()
    assert passes(5, flip=True).equal(turned)
    data = CIFAR10(root, 10, flip=True)
    data.setup("fit")
    assert torch.cat([batch["x"] for batch in data.reference_dataloader()]).equal(plain[0])


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no CIFAR-10: expected test_batch or test_batch.bin"):
        CIFAR10(str(tmp_path))

    def refused(message: str, root: Path) -> None:
        data = CIFAR10(str(root))
        with pytest.raises(ValueError, match=message):
            data.setup("fit")

    root = write(tmp_path / "missing", "python 2")
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(ValueError, match="data_batch_3 is missing"):
        CIFAR10(str(root))
    root = write(tmp_path / "cut", "python 2")
    path = root / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-100])
    refused("data_batch_2 is damaged, or no file of CIFAR-10: it is cut short", root)
    root = write(tmp_path / "short", "bin")
    path = root / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    refused("test_batch.bin is damaged.*no whole number of records", root)
    path.write_bytes(bytes([10]) + bytes(3072))
    refused("its labels are not 0 to 9", root)
    path.write_bytes(b"")
    refused("test_batch.bin is damaged", root)


class Trap:
    """Executes when unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("trapped", "w"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({b"data": Trap(), b"labels": [0]}, "no array 'data'"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": Trap()}, "no list of 'labels'"),
        (Trap(), "not a dict"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [Trap()]}, "no list of 'labels'"),
        ({b"data": np.zeros((1, 3072), np.int16), b"labels": [0]}, "not an array of bytes"),
        ({b"data": np.zeros((1, 3071), np.uint8), b"labels": [0]}, r"should have shape \(N, 3072\)"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "2 images and 1 labels"),
        ({b"labels": [0]}, "no array 'data'"),
    ],
)
def test_hostile_files_execute_nothing(
    value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path, "python 2")
    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(value, protocol=2))
    data = CIFAR10(str(root))
    with pytest.raises(ValueError, match=f"data_batch_1 is damaged.*{message}"):
        data.setup("fit")
    assert not (tmp_path / "trapped").exists()
