"""A crash campaign: a run killed at random moments and resumed equals the run left alone, bitwise."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from entry import WORK, write, zoo

KILLS = 20
UPDATES = 600
OPTIONS = [
    "--config=quickstart",
    "--config=often.yaml",
    f"--trainer.max_steps={UPDATES}",
    "--trainer.val_check_interval=40",
    "--trainer.enable_progress_bar=false",
    "--model.network.init_args.depth=1",
    "--model.network.init_args.dropout=0.1",
]
OFTEN = """
trainer:
  callbacks:
    - class_path: EMAWeightAveraging
      init_args: {decay: 0.99}
    - class_path: ModelCheckpoint
      init_args: {every_n_train_steps: 3, save_top_k: 1}
"""


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """Raw and averaged weights of the last checkpoint."""
    path = max(
        run.glob("checkpoints/*.ckpt"), key=lambda item: torch.load(item, weights_only=True)["global_step"]
    )
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == UPDATES
    return checkpoint["state_dict"] | {f"raw.{k}": v for k, v in checkpoint["current_model_state"].items()}


def newest_write(run: Path) -> float:
    """When the last checkpoint was written, in seconds of the clock; 0 before the first."""
    return max((path.stat().st_mtime for path in run.glob("checkpoints/*.ckpt")), default=0.0)


def main() -> None:
    """One run left alone, one that is killed again and again."""
    chance = random.Random(0)
    folder = WORK / f"resume-{int(time.time())}"
    folder.mkdir(parents=True)
    (folder / "often.yaml").write_text(OFTEN)
    zoo("fit", *OPTIONS, cwd=folder)
    whole = folder / "runs/quickstart/version_0"

    run = folder / "runs/quickstart/version_1"
    kills = 0
    arguments = ["fit", *OPTIONS]
    while True:
        started = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "zoo", *arguments], cwd=folder, stderr=subprocess.DEVNULL
        )
        if kills == KILLS:
            break
        # Once it has got further, at any moment of the next half second: in a step, in a save, in a
        # validation.
        while newest_write(run) < started and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.5 * chance.random())
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        arguments = ["fit", "--resume", str(run)]
    if process.wait():
        raise RuntimeError(f"the last run ended with status {process.returncode}")
    left, right = final_weights(whole), final_weights(run)
    same = left.keys() == right.keys() and all(value.equal(right[name]) for name, value in left.items())
    lengths = [len((path / "metrics.csv").read_text().splitlines()) for path in (whole, run)]
    rows_equal = lengths[0] == lengths[1]
    write(
        "resume",
        [
            {
                "claim": "a run killed at random moments and resumed is the uninterrupted run",
                "scale": f"quickstart with dropout and average, {UPDATES} updates, {kills} SIGKILLs",
                "paper": "stock Lightning restores no random state and starts an interrupted epoch again",
                "ours": f"raw and averaged weights bitwise equal: {same}; metrics.csv as long: {rows_equal}",
            }
        ],
        {"kills": kills, "bitwise": same, "lines of metrics.csv": lengths},
    )


if __name__ == "__main__":
    main()
