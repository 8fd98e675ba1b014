"""How stable is few-step training on digits at three times its learning rate, with and without mid-training?

Mean flow and easy consistency tuning (ECT) with the networks, objectives and schedules of the bundled
configs, at three times their learning rate, for 300 updates on 20 seeds: from random weights, and from those
that mid-training left in `mid_training_digits` (its first seed). A run is stable if every loss and every
weight stays finite; what it has learned is told by its error over the last 30 updates, against its own first
30, and by the Frechet distance of its one-step samples.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from entry import WORK, interval, write
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from mid_training_digits import CONFIGS, fit, named
from torch import Tensor

from zoo.callbacks import LRSchedule
from zoo.datamodules import Digits
from zoo.flow import (
    ConsistencyModel,
    DiscreteConsistency,
    DiT,
    EDMPreconditioning,
    Guidance,
    MeanFlow,
    RatioLevels,
)
from zoo.metrics import frechet_distance, share_interval
from zoo.schedules import one_cycle

SEEDS, UPDATES, FACTOR = range(20), 300, 3
RATES = {"mean flow": 1e-3, "ECT": 2e-4}
STARTS = ("random", "CMT")


class Watch(Callback):
    """Notes the error of each update, and whether all was finite, without waiting for it."""

    def __init__(self) -> None:
        self.errors: list[Tensor] = []
        self.finite: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        self.errors.append(trainer.callback_metrics["train/mse"].detach().clone())
        self.finite.append(outputs["loss"].isfinite())

    def report(self, module: LightningModule) -> dict[str, Any]:
        """Errors at both ends, and whether losses and weights are finite."""
        errors = torch.stack(self.errors).double()
        weights = torch.stack([weight.isfinite().all() for weight in module.parameters()])
        first, last = float(errors[:30].mean()), float(errors[-30:].mean())
        return {
            "finite": bool(torch.stack(self.finite).all() and weights.all()),
            "first": first,
            "last": last,
        }


def model(method: str, start: Path | None, seed: int) -> LightningModule:
    """The module of the bundled config with three times its learning rate."""
    rate = FACTOR * RATES[method]
    network = DiT(width=64, depth=4, heads=4, two_times=method == "mean flow")
    common: Any = {
        "network": network,
        "preconditioning": EDMPreconditioning(sigma_data=0.75),
        "init_from": None if start is None else str(start),
        "seed": seed,
        "optimizer": partial(
            torch.optim.AdamW,
            lr=rate,
            betas=(0.9, 0.95 if method == "mean flow" else 0.999),
            weight_decay=0.0,
        ),
    }
    if method == "mean flow":
        return MeanFlow(guidance=Guidance(omega=1.5), **common)
    return ConsistencyModel(objective=DiscreteConsistency(RatioLevels(mean=-0.4, std=1.5, q=16)), **common)


def run(method: str, start: Path | None, seed: int) -> dict[str, Any]:
    """One run's report."""
    seed_everything(seed, verbose=False)
    module, data, watch = model(method, start, seed), Digits(batch_size=128, seed=seed), Watch()
    trainer = Trainer(
        accelerator="cpu", max_steps=UPDATES, max_epochs=-1, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        log_every_n_steps=1, callbacks=[LRSchedule(one_cycle(pct_start=0.1)), watch],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    report = watch.report(module)
    data.setup("test")
    real = torch.cat([batch["x"] for batch in data.test_dataloader()])
    labels = torch.arange(len(real)) % 10
    samples = module.sample(labels, 1, seed)  # type: ignore[operator]
    usable = report["finite"] and bool(samples.isfinite().all())
    report["frechet"] = float(frechet_distance(samples.flatten(1), real.flatten(1))) if usable else math.inf
    return report


def main() -> None:
    """Runs or reads everything, then writes the table's row."""
    folder = WORK / "mid_training_digits" / "0"
    folder.mkdir(parents=True, exist_ok=True)
    fit("flow/digits_pretrain", 0, folder)
    kept = WORK / "stability"
    kept.mkdir(exist_ok=True)
    numbers: dict[str, Any] = {}
    for method, (mid, _) in CONFIGS.items():
        middle = fit(mid, 0, folder)
        for start in STARTS:
            found = []
            for seed in SEEDS:
                file = kept / f"{named(method, start, seed)}.json"
                if not file.is_file():
                    file.write_text(json.dumps(run(method, None if start == "random" else middle, seed)))
                found.append(json.loads(file.read_text()))
            stable = sum(report["finite"] for report in found)
            numbers[f"{method} from {start}"] = {
                "finite": stable,
                "finite_interval": share_interval(stable, len(found)),
                "error_ratio": [report["last"] / report["first"] for report in found],
                "frechet": [report["frechet"] for report in found],
            }

    def told(name: str, group: dict[str, Any]) -> str:
        words = f"{name} {group['finite']}/{len(SEEDS)}"
        if group["finite"] < len(SEEDS):
            return words
        return f"{words} (Frechet {interval(group['frechet'])})"

    row = {
        "claim": "share of runs that stay finite at 3x the learning rate, by initial weights",
        "scale": f"8x8 digits, {UPDATES} updates, {len(SEEDS)} seeds; one-step Frechet distance where all do",
        "paper": "RAE latents: mean flow without CMT diverges (not reproduced here)",
        "ours": "; ".join(told(name, group) for name, group in numbers.items()),
    }
    write("stability", [row], numbers)


if __name__ == "__main__":
    main()
