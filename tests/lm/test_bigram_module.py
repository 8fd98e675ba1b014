"""The table of logits through the Trainer, against the same recursion in numpy."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from zoo.datamodules import Bigram
from zoo.lm import BigramTable


def trained(data: Bigram, rate: float, updates: int, folder: Path) -> tuple[BigramTable, Trainer]:
    model = BigramTable(data.n, optimizer=partial(torch.optim.SGD, lr=rate))
    trainer = Trainer(
        accelerator="cpu", max_steps=updates, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return model, trainer


def test_the_trainer_makes_the_recursion(tmp_path: Path) -> None:
    data = Bigram(n=8, certain=4, size=64, batch_size=16, seed=3)
    model, _ = trained(data, 2.0, 50, tmp_path)
    loader, z = data.train_dataloader(), np.zeros(8)
    for number in range(50):
        if number % 4 == 0:
            stream = iter(loader)
        batch = next(stream)
        first, second = batch["first"].numpy(), batch["next"].numpy()
        step = np.zeros(8)
        np.add.at(step, first, 1 / (1 + np.exp(-z[first])) - second)
        z = z - 2 * 2.0 / 16 * step
    theta = model.theta.detach().double().numpy()
    np.testing.assert_allclose(theta[:, 1] - theta[:, 0], z, rtol=1e-5, atol=1e-5)  # float32 sums


def test_what_is_logged_is_exact(tmp_path: Path) -> None:
    data = Bigram(n=6, certain=2, p_uncertain=0.25, size=64, batch_size=4, seed=0)  # two uneven batches
    model = BigramTable(6)
    values = torch.linspace(-1, 2, 12).reshape(6, 2)
    model.theta.data.copy_(values)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    [logged] = trainer.validate(model, datamodule=data, verbose=False)
    p = np.array([1.0, 1.0, 0.25, 0.25, 0.25, 0.25])
    z = (values[:, 1] - values[:, 0]).double().numpy()
    loss = p * np.logaddexp(0, -z) + (1 - p) * np.logaddexp(0, z)
    entropy = np.where(p == 1, 0.0, -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
    # float64 but for Lightning's running sums, which are float32
    assert logged["val/loss"] == pytest.approx(loss.mean(), rel=1e-6)
    assert logged["val/excess"] == pytest.approx((loss - entropy).mean(), rel=1e-6)
    assert logged["val/excess_certain"] == pytest.approx((loss - entropy)[:2].mean(), rel=1e-6)
    assert logged["val/excess_uncertain"] == pytest.approx((loss - entropy)[2:].mean(), rel=1e-6)
    assert logged["val/loss"] - logged["val/excess"] == pytest.approx(data.entropy, rel=1e-5)


def test_excess_is_zero_at_the_truth_and_more_elsewhere() -> None:
    data = Bigram(n=5, certain=2, p_uncertain=0.3)
    data.setup("validate")
    [batch] = data.val_dataloader()
    model = BigramTable(5).double()
    model.theta.data.copy_(batch["probabilities"].log().clamp(min=-60))
    assert model.excess(batch).abs().max() < 1e-15
    model.theta.data[:, 0] += 0.1
    assert (model.excess(batch)[2:] > 1e-4).all() and (model.excess(batch) >= 0).all()


def test_rivers_and_hills(tmp_path: Path) -> None:
    """Closed forms through the real Trainer: a large rate learns certain tokens, and no others well."""
    data = Bigram(seed=0)
    rate, updates = 8.0, 2000
    _, trainer = trained(data, rate, updates, tmp_path)
    metrics = trainer.callback_metrics
    assert trainer.global_step == updates and "val/excess_certain" in metrics
    trainer.validate(trainer.lightning_module, datamodule=data, verbose=False)
    end = trainer.callback_metrics
    assert float(end["val/excess_certain"]) == pytest.approx(data.certain_excess([rate] * updates), rel=0.1)
    # 32 tokens at one time: the mean of 32 squares spreads by sqrt(2 / 32) = 25 %
    assert float(end["val/excess_uncertain"]) == pytest.approx(0.0169, rel=0.75)


def test_bad_batches() -> None:
    model = BigramTable(4)
    with pytest.raises(ValueError, match=r"needs batches with 'first'.*this one has \['tokens'\]"):
        model.loss({"tokens": torch.zeros(2)})
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match="the data have n=64 first tokens, but the table has n=4 rows"):
        trainer.fit(model, datamodule=Bigram())
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        BigramTable(0)
