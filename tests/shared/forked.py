"""Processes that begin with the imports done.

They are forks of a server that imported torch, Lightning and the command line, and did nothing else. Each has
its own signals, exit code, folder, environment and memory, without the seconds that a new interpreter takes
to import. What a new interpreter alone can show (the installed command, the order of imports) is no matter
for them. What they run must be importable by name, so it lives in this folder.
"""

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
_SECONDS = 600  # of one command, on a machine that does other things too
CONTEXT.set_forkserver_preload(["lightning.pytorch", "zoo._cli.trainer_cli"])


def run_zoo(words: list[str], folder: Path, log: Path) -> int:
    """``zoo WORDS`` in a folder.

    Returns:
        Its exit code; what it writes to stdout and stderr is in ``log``.
    """
    process = CONTEXT.Process(target=_zoo, args=(words, folder, log, dict(os.environ)))
    process.start()
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"zoo {' '.join(words)} took more than {_SECONDS} s: {log.read_text()[-1000:]}")
    return process.exitcode


def _zoo(words: list[str], folder: Path, log: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.argv = ["zoo", *words]
    import torch

    from zoo.cli import main

    torch.set_num_threads(1)
    sys.exit(main())


def save_forever(path: Path, saved: Connection) -> None:
    """Saves checkpoints of ever larger numbers over one another, and tells the number of each."""
    import torch

    from zoo.io import AtomicCheckpointIO

    torch.set_num_threads(1)
    n = 0
    while True:
        n += 1
        weights = {f"w{k}": torch.full((400_000,), float(n)) for k in range(4)}
        AtomicCheckpointIO().save_checkpoint({"state_dict": weights, "n": n}, path)
        saved.send(n)
