"""A small language model on real text under every way to serve three budgets, each at its own best peak.

A LLaMA of 234,048 parameters on the sources of Python's standard library, 16 x 128 tokens an update,
budgets of 400, 800 and 1,600 updates (1:2:4, as 50, 100 and 200 billion tokens in the paper), AdamW as
in the authors' configs. Roads that agree are branched, not run again: WSD and WSM from one run at the
constant rate, WSD-S from WSD's first model. Peaks are tried on the first seed; the two best of each way
run on all seeds, because one seed may do well or badly at a high peak by chance. A way takes the one with
the least mean loss over seeds and budgets, the cosine's runs the best for each budget.

Results of finished runs stay under ``runs/evidence``, so an interrupted experiment goes on.
"""

import json
import logging
import shutil
import statistics
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from entry import WORK, interval, write
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from zoo.callbacks import WSDS, ExactResume
from zoo.datamodules import Text
from zoo.io import load_checkpoint
from zoo.lm import CausalLM
from zoo.schedules import (
    Decay,
    Schedule,
    cosine,
    cyclic_cosine,
    loss_by_entropy,
    predictive_entropy,
    wsd,
    wsds,
    wsm,
)

SEEDS = (0, 1, 2)
PEAKS = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
BUDGETS = [400, 800, 1600]
WARMUP = 40
FOLDER = WORK / "schedules_lm"
NETWORK: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 176,
    "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}  # fmt: skip
WAYS = ("WSD", "WSM", "WSD-S", "WSD-S, WSD's compute", "WSD-S inv", "cyclic cosine", "cosine, a run each")
UPDATES = {
    "WSD": wsd(BUDGETS, WARMUP).total_updates,
    "WSD-S, WSD's compute": wsds(BUDGETS, WARMUP, compute_matched=True).total_updates,
    "cosine, a run each": sum(BUDGETS),
}


def text(seed: int) -> Text:
    """The data, in a seed's order; the tokenizer is trained once."""
    return Text("stdlib", "bpe", 512, val_fraction=0.03, test_fraction=0.01, cache=str(FOLDER), seed=seed)


def model(peak: float, seed: int) -> CausalLM:
    """The network with a seed's first weights."""
    optimizer = partial(torch.optim.AdamW, lr=peak, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    return CausalLM(NETWORK, optimizer=optimizer, seed=seed)


def fit(name: str, plan: Schedule, peak: float, seed: int, start: Path | None = None, every: int = 0) -> Path:
    """The folder of a run's checkpoints; one that is finished is not run again.

    Args:
        name: Its name.
        plan: Its schedule.
        peak: Its peak learning rate.
        seed: Of weights and data.
        start: A checkpoint to branch from.
        every: Save the state after this many updates, too; 0 for not.
    """
    folder = FOLDER / str(seed) / f"{peak:g}" / name
    if (folder / "done").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    states = [ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)] if every else []
    trainer = Trainer(
        accelerator="cpu", max_steps=plan.end, gradient_clip_val=1.0, limit_val_batches=0, logger=False,
        enable_checkpointing=bool(states), enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[WSDS(plan, dirpath=str(folder)), ExactResume(), *states],
    )  # fmt: skip
    trainer.fit(model(peak, seed), datamodule=text(seed), ckpt_path=start, weights_only=True)
    (folder / "done").touch()
    return folder


def model_of(folder: Path, budget: int) -> Path:
    """The checkpoint of a budget's model in a run's folder."""
    [path] = [
        path for kind in ("post", "merged") for path in folder.glob(f"wsds-budget{budget}-{kind}-*.ckpt")
    ]
    return path


def models(way: str, peak: float, seed: int) -> list[Path]:
    """The checkpoints of the three budgets' models."""
    run = partial(fit, peak=peak, seed=seed)
    if way == "cosine, a run each":
        runs = [run(f"cosine {total}", cosine(total, WARMUP)) for total in BUDGETS]
        return [model_of(each, total) for each, total in zip(runs, BUDGETS, strict=True)]
    if way == "cyclic cosine":
        folder = run(way, cyclic_cosine(BUDGETS, WARMUP))
        return [model_of(folder, total) for total in BUDGETS]
    # The decays begin after 360, 720 and 1,440 updates, whose states this run leaves.
    stable = run("WSM", wsm(BUDGETS, WARMUP, snapshots=9), every=360)
    if way == "WSM":
        return [model_of(stable, total) for total in BUDGETS]
    if way == "WSD-S inv":
        folder = run(way, wsds(BUDGETS, WARMUP, decay=Decay(shape="inv")), start=stable / "step=360.ckpt")
        return [model_of(folder, total) for total in BUDGETS]
    branches = [
        model_of(
            run(f"WSD {total}", wsd([total], WARMUP), start=stable / f"step={round(total * 0.9)}.ckpt"), total
        )
        for total in BUDGETS
    ]
    if way == "WSD":
        return branches
    exact = run("WSD-S", wsds(BUDGETS, WARMUP), start=branches[0])
    if way == "WSD-S":
        return [branches[0], *(model_of(exact, total) for total in BUDGETS[1:])]
    matched = run(way, wsds(BUDGETS, WARMUP, compute_matched=True), start=next(exact.glob("*800-pre*.ckpt")))
    return [branches[0], *(model_of(matched, total) for total in BUDGETS[1:])]


@torch.no_grad()
def token_losses(path: Path, entropy: bool = False) -> torch.Tensor:
    """Losses (N,) of all validation tokens under a checkpoint, or the entropies of its predictions."""
    module = model(1.0, 0).eval()
    module.load_state_dict(load_checkpoint(path)["state_dict"])
    data = text(0)
    data.setup("validate")
    rows = []
    for batch in data.val_dataloader():
        logits = module.logits(batch["tokens"][:, :-1]).float()
        targets = batch["tokens"][:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        rows.append((predictive_entropy(logits) if entropy else loss).flatten())
    return torch.cat(rows)


def losses(way: str, peak: float, seed: int) -> list[float]:
    """The validation loss of each budget's model, kept in a file."""
    path = FOLDER / str(seed) / f"{peak:g}" / f"{way}.json"
    if not path.is_file():
        found = [float(token_losses(checkpoint).double().mean()) for checkpoint in models(way, peak, seed)]
        path.write_text(json.dumps(found))
    found = json.loads(path.read_text())
    print(f"seed {seed}, peak {peak:g}, {way}: {', '.join(f'{loss:.4f}' for loss in found)}", flush=True)
    return found


def best_peak(way: str, tried: dict[float, list[float]], budgets: list[int]) -> float:
    """Of the first seed's two best peaks, the one with the least loss at these budgets over all."""
    two = sorted(tried, key=lambda peak: sum(tried[peak][n] for n in budgets))[:2]
    return min(two, key=lambda peak: sum(losses(way, peak, seed)[n] for seed in SEEDS for n in budgets))


def main() -> None:
    """Runs or reads everything, then writes the rows."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    FOLDER.mkdir(parents=True, exist_ok=True)
    tried = {way: {peak: losses(way, peak, SEEDS[0]) for peak in PEAKS} for way in WAYS}
    found: dict[str, list[list[float]]] = {}
    best: dict[str, list[float]] = {}
    for way in WAYS:
        together = way != "cosine, a run each"
        best[way] = [best_peak(way, tried[way], [0, 1, 2] if together else [n]) for n in range(3)]
        found[way] = [[losses(way, peak, seed)[n] for seed in SEEDS] for n, peak in enumerate(best[way])]
    buckets = [entropy_buckets(best["WSD"][2], best["cosine, a run each"][2], seed) for seed in SEEDS]
    kept = {
        str(path.relative_to(FOLDER).with_suffix("")): json.loads(path.read_text())
        for path in sorted(FOLDER.glob("*/*/*.json"))
        if path.stem in WAYS
    }
    numbers = {"all": kept, "best": best, "losses": found, "buckets": buckets}

    def ours(way: str) -> str:
        shown = best[way] if len(set(best[way])) > 1 else best[way][:1]
        peaks = " / ".join(f"{peak:g}" for peak in shown)
        at = " / ".join(interval(group, 4) for group in found[way])
        return f"{way} ({UPDATES.get(way, 1600):,} updates, peak {peaks}) {at}"

    def paired(one: str, other: str) -> str:
        pairs = [
            [a - b for a, b in zip(*pair, strict=True)] for pair in zip(found[one], found[other], strict=True)
        ]
        return f"{one} less {other}: " + " / ".join(interval(each, 2) for each in pairs)

    gain = [[b - a for b, a in zip(each["before"], each["after"], strict=True)] for each in buckets]
    share = [sum(each[5:]) / sum(each) for each in gain]
    scale = (
        "LLaMA of 234,048 parameters, standard library's sources, 2,048 tokens an update, budgets 400 / "
        "800 / 1,600 "
        "updates, 3 seeds; peaks of 1.5e-3, 3e-3, 6e-3, 1.2e-2 tried on the first, the two best on all"
    )
    paper = (
        "WSD-S beats WSD and cyclic cosine, and is near the cosine's oracle (0.1B-1.2B; table not at hand)"
    )
    rows = [
        {
            "claim": "Several budgets: validation loss (nats a token) at each, every way at its best peak",
            "scale": scale, "paper": paper, "ours": "; ".join(map(ours, WAYS)),
        },
        {
            "claim": "The same, paired by seed",
            "scale": "as above", "paper": "as above",
            "ours": "; ".join(
                paired("WSD-S, WSD's compute" if one == "m" else one, other)
                for one, other in (
                    ("WSD-S", "WSD"), ("m", "WSD"), ("WSD-S", "cyclic cosine"),
                    ("WSD-S", "cosine, a run each"),
                    ("WSM", "WSD"), ("WSD-S inv", "WSD-S"),
                )
            ),
        },
        {
            "claim": "At twice the peak, 0.006: loss after 1,600 updates, seed by seed",
            "scale": "as above", "paper": "as above",
            "ours": "; ".join(
                f"{way} " + ", ".join(f"{losses(way, 6e-3, seed)[2]:.3f}" for seed in SEEDS) for way in WAYS
            ),
        },
        {
            "claim": "A decay gains on uncertain tokens: share of the gain of WSD's last decay in the "
            "half of tokens with the larger predicted entropy (of the cosine's model)",
            "scale": "as above; gains by tenth of the tokens, least entropy first: "
            + ", ".join(f"{statistics.mean(column):.3f}" for column in zip(*gain, strict=True)),
            "paper": "entropy varies the valley (section 4; figure)", "ours": interval(share),
        },
    ]  # fmt: skip
    write("schedules_lm", rows, numbers)


def entropy_buckets(peak: float, reference_peak: float, seed: int) -> dict[str, list[float]]:
    """Loss by tenth of the tokens, before and after WSD's last decay; entropies are the cosine model's."""
    folder = FOLDER / str(seed) / f"{peak:g}"
    reference = model_of(FOLDER / str(seed) / f"{reference_peak:g}" / "cosine 1600", 1600)
    entropies = token_losses(reference, entropy=True)
    stages = {"before": folder / "WSM" / "step=1440.ckpt", "after": model_of(folder / "WSD 1600", 1600)}
    found = {name: loss_by_entropy(token_losses(path), entropies) for name, path in stages.items()}
    return {name: [float(loss) for loss in each.loss] for name, each in found.items()}


if __name__ == "__main__":
    main()
