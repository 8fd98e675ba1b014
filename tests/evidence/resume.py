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
OPTIONS = [
    "--config=quickstart",
    "--trainer.max_steps=120",
    "--trainer.check_val_every_n_epoch=4",
    "--trainer.enable_progress_bar=false",
    "--model.network.init_args.depth=1",
    "--model.network.init_args.dropout=0.1",
]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """Raw and averaged weights of the last checkpoint."""
    path = max(
        run.glob("checkpoints/*.ckpt"), key=lambda item: torch.load(item, weights_only=True)["global_step"]
    )
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 120
    return checkpoint["state_dict"] | {f"raw.{k}": v for k, v in checkpoint["current_model_state"].items()}


def main() -> None:
    """One run left alone, one that is killed again and again."""
    chance = random.Random(0)
    folder = WORK / f"resume-{int(time.time())}"
    folder.mkdir(parents=True)
    zoo("fit", *OPTIONS, cwd=folder)
    whole = folder / "runs/quickstart/version_0"
    steps = (whole / "metrics.csv").read_text().count("\n")

    run = folder / "runs/quickstart/version_1"
    kills = starts = 0
    arguments = ["fit", *OPTIONS]
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "zoo", *arguments], cwd=folder, stderr=subprocess.DEVNULL
        )
        starts += 1
        if kills == KILLS:
            assert process.wait() == 0
            break
        # Not before there is something to go on with; then at any moment of 1.5 seconds.
        while not list(run.glob("checkpoints/*.ckpt")) and process.poll() is None:
            time.sleep(0.05)
        time.sleep((5 if starts > 1 else 0) + 1.5 * chance.random())
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        else:
            break
        process.wait()
        arguments = ["fit", "--resume", str(run)]
    left, right = final_weights(whole), final_weights(run)
    same = left.keys() == right.keys() and all(value.equal(right[name]) for name, value in left.items())
    rows_equal = (whole / "metrics.csv").read_text().count("\n") == (run / "metrics.csv").read_text().count(
        "\n"
    )
    write(
        "resume",
        [
            {
                "claim": "a run killed at random moments and resumed is the uninterrupted run",
                "scale": f"quickstart with dropout and average, 120 updates, {kills} SIGKILLs",
                "paper": "stock Lightning restores no random state and starts an interrupted epoch anew",
                "ours": f"raw and averaged weights bitwise equal: {same}; metrics.csv as long: {rows_equal}",
            }
        ],
        {"kills": kills, "starts": starts, "bitwise": same, "metrics_rows_equal": rows_equal, "rows": steps},
    )


if __name__ == "__main__":
    main()
