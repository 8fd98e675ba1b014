"""Runs of every combination of length, loader, checkpoint, scheduler and processes, crashed and resumed."""

import logging
import sys
import tempfile
from pathlib import Path

import torch
from entry import SHARED, write

sys.path.insert(0, str(SHARED))
from pool import Pool
from resume_matrix import Cell, cells, outcome, outcome_on_rank


def main() -> None:
    """Runs all cells; a cell that is neither exact nor warned of is named in the result."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pool = Pool()
    exact: list[Cell] = []
    warned: list[Cell] = []
    wrong: dict[str, list[str]] = {}
    for cell in cells():
        with tempfile.TemporaryDirectory() as folder:
            if cell.processes == 1:
                differences, said = outcome(cell, Path(folder))
            else:
                differences, said = pool.run(outcome_on_rank, cell, folder)[0]
        if said:
            warned.append(cell)
        elif not differences:
            exact.append(cell)
        if said != cell.warns or (differences and not said):
            wrong[str(cell)] = differences[:5]
    pool.close()
    write(
        "resume_matrix",
        [
            {
                "claim": "a run that crashed after a checkpoint and was resumed is the uninterrupted run, "
                "or warns",
                "scale": "max_steps, max_epochs x our, stock, torchdata's loader x four places of the "
                "checkpoint x scheduler per step, per epoch x 1, 2 processes; weights, optimizer, rates, "
                "data, loop counters, metrics.csv, names of checkpoints",
                "paper": "restoring random states alone, 32 of the 48 cells of one process differed in "
                "silence",
                "ours": f"{len(exact)} of {len(exact) + len(warned)} bitwise equal, {len(warned)} warn, "
                f"{len(wrong)} neither",
            }
        ],
        {"exact": len(exact), "warned": [str(cell) for cell in warned], "wrong": wrong},
    )


if __name__ == "__main__":
    main()
