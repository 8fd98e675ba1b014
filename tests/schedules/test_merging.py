"""Merging instead of decaying: weights and levels, files, and the bi-gram's numbers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from toys import ToyClassifier

from zoo.base import load_weights
from zoo.datamodules import Digits
from zoo.io import load_checkpoint, load_tensors, save_tensors
from zoo.schedules import (
    Merge,
    constant,
    decay_of_weights,
    ema_weights,
    level,
    merge_checkpoints,
    merge_weights,
    uniform_weights,
    weights_of,
    weights_of_shape,
    wsm,
)
from zoo.schedules.shapes import SHAPES, Shape

PARAMETERS: dict[str, float] = {"power": 2.0, "lowered_linear": 0.7}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_levels_and_weights_are_one_thing(levels: list[float]) -> None:
    levels = sorted(levels, reverse=True)
    weights = merge_weights(levels)
    assert len(weights) == len(levels) + 1 and min(weights) >= 0
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    assert decay_of_weights(weights) == pytest.approx(levels, abs=1e-12)
    assert merge_weights(decay_of_weights(weights)) == pytest.approx(weights, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_of_every_shape(shape: Shape) -> None:
    ratio, parameter = 0.1, PARAMETERS.get(shape)
    weights = weights_of_shape(shape, 5, ratio, parameter)
    levels = [level(shape, p, 1.0, ratio, parameter) for p in (0.2, 0.4, 0.6, 0.8)]
    assert decay_of_weights(weights) == pytest.approx(levels, rel=1e-12)
    assert weights_of(Merge(60, 100, 10, shape, ratio, parameter)) == weights


def test_a_linear_decay_to_zero_is_the_uniform_mean() -> None:
    for count in (2, 3, 11):
        assert weights_of_shape("linear", count) == pytest.approx(uniform_weights(count), abs=1e-15)
    [budget] = wsm([1000], snapshots=6).budgets
    assert budget.merge is not None
    assert weights_of(budget.merge) == pytest.approx([1 / 6] * 6, abs=1e-15)


def test_ema_weights_are_an_average_begun_at_the_first() -> None:
    """With all weights equal to the last one's share, the recursion m = b m + (1 - b) theta, debiased."""
    decay, values = 0.8, np.array([3.0, -1.0, 2.0, 7.0])
    average, mass = 0.0, 0.0
    for value in values:
        average, mass = decay * average + (1 - decay) * value, decay * mass + (1 - decay)
    assert np.dot(ema_weights(4, decay), values) == pytest.approx(average / mass, rel=1e-12)
    assert ema_weights(4, 1.0) == uniform_weights(4)


def test_bad_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"level 2 is 0.7 after 0.5.*from the last rise on"):
        merge_weights([0.5, 0.7])
    with pytest.raises(ValueError, match=r"level 1 is 1.5 after 1.0"):
        merge_weights([1.5])
    with pytest.raises(ValueError, match=r"-0.5 < 0"):
        merge_weights([0.5, -0.5])
    with pytest.raises(ValueError, match=r"the sum 1, got 0.9: divide each by 0.9"):
        decay_of_weights([0.5, 0.4])
    with pytest.raises(ValueError, match=r"the sum 1, got nan$"):
        decay_of_weights([float("nan"), 1.0])
    with pytest.raises(ValueError, match="at least 2 snapshots"):
        decay_of_weights([1.0])
    with pytest.raises(ValueError, match="decay must be above 0 and at most 1"):
        ema_weights(3, 1.5)
    with pytest.raises(ValueError, match=r"min_ratio must lie in \[0, 1\], got 2"):
        weights_of_shape("linear", 3, 2.0)


@pytest.mark.parametrize("shape", ["linear", "1-sqrt", "cosine"])
def test_merged_is_decayed_where_gradients_do_not_depend_on_the_weights(shape: Shape, tmp_path: Path) -> None:
    """The emulation of a decay is exact for constant gradients: SGD at a constant rate, its files merged."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 7, generator=generator, dtype=torch.float64)
    begin = torch.randn(7, generator=generator, dtype=torch.float64)

    def averages(levels: list[float]) -> list[torch.Tensor]:
        weight = torch.nn.Parameter(begin.clone())
        optimizer, points = torch.optim.SGD([weight], lr=0.3), [begin.clone()]
        for factor, gradient in zip(levels, gradients, strict=True):
            optimizer.param_groups[0]["lr"] = 0.3 * factor
            weight.grad = gradient
            optimizer.step()
            points.append(weight.detach().clone())
        return points

    weights = weights_of_shape(shape, 7, 0.05)
    paths = [tmp_path / f"{k}.safetensors" for k in range(7)]
    for path, point in zip(paths, averages([1.0] * 6), strict=True):
        save_tensors(path, {"weight": point})
    merge_checkpoints(paths, weights, tmp_path / "merged.safetensors")
    merged, _ = load_tensors(tmp_path / "merged.safetensors")
    torch.testing.assert_close(merged["weight"], averages(decay_of_weights(weights))[-1], rtol=0, atol=1e-12)


def states(count: int, **changes: Any) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "weight": torch.randn(4, 3, generator=generator),
            "half": torch.randn(5, generator=generator).bfloat16(),
            "turn": torch.randn(2, 3, generator=generator, dtype=torch.complex64),
            "count": torch.tensor(number),
        }
        | changes
        for number in range(count)
    ]


def write(folder: Path, found: list[dict[str, torch.Tensor]], suffix: str) -> list[Path]:
    paths = [folder / f"{number}{suffix}" for number in range(len(found))]
    for path, state in zip(paths, found, strict=True):
        if suffix == ".ckpt":
            raw = {name: value + 1 for name, value in state.items()}
            torch.save({"state_dict": state, "current_model_state": raw, "epoch": 3}, path)
        else:
            save_tensors(path, state)
    return paths


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_files(suffix: str, tmp_path: Path) -> None:
    found, weights = states(3), [0.5, 0.2, 0.3]
    paths = write(tmp_path, found, suffix)
    target = tmp_path / "new" / "merged.safetensors"
    merge_checkpoints(paths, weights, target, take="ema")
    merged, metadata = load_tensors(target)
    assert merged.keys() == found[0].keys() and merged["count"] == 2
    for name in ("weight", "half", "turn"):
        wide = torch.complex128 if name == "turn" else torch.float64
        exact = sum(w * state[name].to(wide) for w, state in zip(weights, found, strict=True))
        assert merged[name].equal(torch.as_tensor(exact).to(found[0][name].dtype))
    facts = json.loads(metadata["merged"])
    assert facts == {"sources": [str(path) for path in paths], "weights": weights, "take": "ema"}
    if suffix == ".ckpt":
        merge_checkpoints(paths, weights, target, take="raw")
        assert load_tensors(target)[0]["count"] == 3
        torch.testing.assert_close(load_tensors(target)[0]["weight"], merged["weight"] + 1)


def test_what_cannot_be_merged_leaves_no_file(tmp_path: Path) -> None:
    target = tmp_path / "merged.safetensors"
    good = write(tmp_path, states(2), ".safetensors")
    other = tmp_path / "other.safetensors"

    def refused(message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            merge_checkpoints(*arguments, **options)
        assert not target.exists() and not list(tmp_path.glob(".*"))

    half = [0.5, 0.5]
    save_tensors(other, states(1, weight=torch.zeros(4, 4))[0])
    refused(
        r"'weight' is \(4, 3\).*0.safetensors and \(4, 4\).*other.safetensors", [good[0], other], half, target
    )
    save_tensors(other, states(1, weight=torch.zeros(4, 3).double())[0])
    refused(r"of torch.float32 in .* of torch.float64 in .*other", [good[0], other], half, target)
    save_tensors(other, states(1, extra=torch.zeros(1))[0])
    refused(r"'extra' is in .*other.safetensors and not in .*0.safetensors", [good[0], other], half, target)
    refused(r"'extra' is in .*other.safetensors and not in .*1.safetensors", [other, good[1]], half, target)
    refused("the sum 1, got 2: divide each by 2", good, [1.0, 1.0], target)
    refused("2 files and 1 weights", good, [1.0], target)
    refused("0 files and 0 weights", [], [], target)
    refused("take must be 'raw' or 'ema', got 'best'", good, half, target, take="best")
    refused("must end in .safetensors or .ckpt, got", good, half, tmp_path / "merged.pt")
    refused("let dest end in .safetensors", good, half, tmp_path / "merged.ckpt")
    other.write_bytes(good[0].read_bytes()[:-5])
    refused("not a whole safetensors file", [good[0], other], half, target)
    with pytest.raises(FileNotFoundError, match=r"missing.safetensors"):
        merge_checkpoints([good[0], tmp_path / "missing.safetensors"], half, target)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of four updates of a toy, which also keeps an average."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    saves = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(max_steps=4, callbacks=[EMAWeightAveraging(decay=0.5), saves], enable_checkpointing=True).fit(
        ToyClassifier(), datamodule=Digits(batch_size=100, seed=0)
    )
    return folder


def trainer(**options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"accelerator": "cpu", "logger": False, **quiet, **options})


def test_a_merged_checkpoint_is_tested_and_started_from_but_not_resumed(run: Path, tmp_path: Path) -> None:
    paths = [run / f"step={step}.ckpt" for step in (2, 3, 4)]
    target = tmp_path / "merged.ckpt"
    merge_checkpoints(paths, uniform_weights(3), target)
    found = load_checkpoint(target)
    assert found["merged"]["weights"] == uniform_weights(3) and found["global_step"] == 4
    assert found.keys().isdisjoint({"optimizer_states", "callbacks", "loops", "current_model_state"})

    started = ToyClassifier()
    assert len(load_weights(started, target).matched) == 4
    expected = {
        name: sum(load_checkpoint(path)["current_model_state"][name].double() for path in paths) / 3
        for name in started.state_dict()
    }
    for name, value in started.state_dict().items():
        torch.testing.assert_close(value, torch.as_tensor(expected[name]).float(), rtol=0, atol=1e-7)

    data = Digits(batch_size=100, seed=0)
    [tested] = trainer().test(ToyClassifier(), data, ckpt_path=target, verbose=False, weights_only=True)
    [direct] = trainer().test(started, data, verbose=False)
    assert tested == direct
    with pytest.raises(KeyError, match="checkpoint contains only the model"):
        trainer(max_steps=9).fit(ToyClassifier(), data, ckpt_path=target, weights_only=True)


PEAK = """
import resource, sys
from pathlib import Path
import torch
from zoo.schedules import merged_file
from zoo.schedules.merged_file import merge_checkpoints
merged_file._MINIMUM = 1 << 20
folder, dest = Path(sys.argv[1]), sys.argv[2]
paths = sorted(folder.glob("*.ckpt"))
torch.save({"state_dict": {"x": torch.zeros(9)}}, folder / "small")
merge_checkpoints([folder / "small"], [1.0], dest)  # code is read, pools are made
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
def status(key):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024
before = status("VmRSS")
merge_checkpoints(paths, [1 / len(paths)] * len(paths), dest)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_memory_is_that_of_two_models(suffix: str, tmp_path: Path) -> None:
    """Eight checkpoints, each with a model and twice as much of optimizer's state."""
    model = 24 * 2**20
    for number in range(8):
        state = {f"{part:02d}": torch.full((2**18,), float(number)) for part in range(24)}  # 1 MB each
        moments = {name: value.clone() for name, value in state.items()}
        torch.save({"state_dict": state, "optimizer_states": [moments, moments]}, tmp_path / f"{number}.ckpt")
    target = tmp_path / f"merged{suffix}"
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), str(target)], capture_output=True, text=True, check=True
    )
    # Measured: 1.46 models for .ckpt, 2.01 for .safetensors; all files together would be 8.
    assert int(done.stdout) < 2.2 * model
    merged = load_tensors(target)[0] if suffix == ".safetensors" else load_checkpoint(target)["state_dict"]
    assert all(value.eq(3.5).all() for value in merged.values())


def bigram(rates: list[float], generator: np.random.Generator, runs: int = 4) -> np.ndarray:
    """SGD on logits z of 64 first tokens, half with a certain next token and half with a coin's; the mean
    cross-entropy of batches of 64. Returns all iterates (T + 1, runs, 64)."""
    p = np.where(np.arange(64) < 32, 1.0, 0.5)
    z, rows = np.zeros((runs, 64)), np.arange(runs)[:, None].repeat(64, 1)
    iterates = [z.copy()]
    for rate in rates:
        token = generator.integers(0, 64, (runs, 64))
        error = 1 / (1 + np.exp(-z[rows, token])) - (generator.random((runs, 64)) < p[token])
        np.add.at(z, (rows, token), -2 * rate / 64 * error)
        iterates.append(z.copy())
    return np.array(iterates)


def excess(z: np.ndarray) -> float:
    """Cross-entropy above the entropy, exactly, as a mean over first tokens and runs."""
    sure = np.logaddexp(0, -z[:, :32])
    coin = (np.logaddexp(0, -z[:, 32:]) + np.logaddexp(0, z[:, 32:])) / 2 - np.log(2)
    return float((sure.mean() + coin.mean()) / 2)


def test_merging_the_bigram_stands_in_for_its_decay() -> None:
    """Printed numbers are of other draws: 4 runs of a stationary process spread by 10 % (one, by 23 %)."""
    points = bigram([8 * factor for factor in constant(2000, 50).factors()], np.random.default_rng(1))

    def merged(steps: range, weights: list[float]) -> float:
        return excess(np.tensordot(weights, points[list(steps)], axes=1))

    found = {
        "last": excess(points[-1]),
        "last 200": merged(range(1801, 2001), uniform_weights(200)),
        "10 every 20": merged(range(1820, 2001, 20), uniform_weights(10)),
        "last 400": merged(range(1601, 2001), uniform_weights(400)),
        "WSM 200": merged(range(1800, 2001), weights_of_shape("linear", 201)),
    }
    printed = {"last": 0.0099, "last 200": 0.0023, "10 every 20": 0.0024, "last 400": 0.00175}
    assert found == pytest.approx(printed | {"WSM 200": 0.0023}, rel=0.15)
    # The longer window is better still, and few snapshots do nearly as well as all.
    assert found["last 400"] < found["last 200"] < found["10 every 20"] < found["last"] / 3
