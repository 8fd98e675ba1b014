"""What a step of every stage costs beside one of flow matching, in time and memory, and what compiling gains.

Time by `tests/benchmarks/test_stage_steps.py`, ratio by ratio within one run; medians with their intervals.
Memory is the most that a step's tensors take at one moment, beside weights, their gradients, the optimizer's
state and the batch: counted from the storages that its operations make, so it is the same on every machine.
Compiled steps run the network of the training pass through PyTorch's default compiler (the derivative and the
teacher stay eager); it needs a C++ compiler.
"""

import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from entry import ROOT, median_interval, write
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.append(str(ROOT / "tests" / "benchmarks"))

import test_stage_steps as stages

from zoo.flow import ConsistencyModel, Diffusion, EDMPreconditioning, MeanFlow, VelocityPrediction

SCALE = "DiT, width 128, depth 4, 16 tokens, batch 128 (CMT: 16 trajectories of 16 steps), float32"
WORDS = {
    "diffusion (EDM)": "diffusion (EDM)",
    "CMT, mean flow": "CMT of mean flow",
    "CMT, consistency": "CMT of consistency",
    "CMT, mean flow, stored": "CMT of mean flow from stored trajectories",
    "CMT, consistency, stored": "CMT of consistency from stored trajectories",
    "mean flow": "mean flow",
    "mean flow, distilled": "MFD",
    "ECT": "ECT",
    "ECD": "ECD",
    "sCT": "sCT",
}
COMPILED: dict[str, Callable[[], Any]] = {
    "flow matching": lambda: Diffusion(stages.network(False), preconditioning=VelocityPrediction(), seed=0),
    "mean flow": lambda: MeanFlow(stages.network(True), seed=0),
    "ECT": lambda: ConsistencyModel(stages.network(False), preconditioning=EDMPreconditioning(0.75), seed=0),
}
ROUNDS, REPEATS = 4, 41


class Storages(TorchDispatchMode):
    """Counts the bytes of the storages that are made under it and alive, and their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.known:
                    self.add(storage)
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        """Counts a new storage until it is gone."""
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        """Counts it no more."""
        self.known.discard(key)
        self.alive -= size


def memory(step: Callable[[], None]) -> int:
    """The most bytes of a step's own tensors at one moment."""
    step()  # gradients and the optimizer's state are there
    with Storages() as storages:
        step()
    return storages.most


def gains() -> dict[str, list[float]]:
    """Time of an eager step over that of a compiled one, repeat by repeat."""
    torch.set_num_threads(2)
    found: dict[str, list[float]] = {}
    for name, make in COMPILED.items():
        eager, compiled = make(), make()
        compiled.network.compile()
        steps = stages.update(eager), stages.update(compiled)
        for step in (*steps, *steps, *steps):
            step()
        ratios = []
        for _ in range(REPEATS):
            seconds = []
            for step in steps:
                start = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[0] / seconds[1])
        found[name] = ratios
    return found


def main() -> None:
    """Measures all three."""
    rounds = [stages.measure() for _ in range(ROUNDS)]
    seconds = {name: [value for part in rounds for value in part[name]] for name in rounds[0]}
    plain = seconds["flow matching"]
    ratios = {
        name: [value / base for value, base in zip(values, plain, strict=True)]
        for name, values in seconds.items()
    }
    shares = {
        name: [value / half for value, half in zip(seconds[name], seconds["both halves"], strict=True)]
        for name in ("CMT, mean flow", "CMT, consistency")
    }
    torch.set_num_threads(1)
    size = {name: memory(step) for name, step in stages.arms().items()}
    compiled = gains()
    rows = [
        {
            "claim": "time of a step over that of a flow-matching step",
            "scale": f"{SCALE}, 2 cores",
            "paper": "not given",
            "ours": "; ".join(f"{WORDS[name]} {median_interval(ratios[name])}" for name in WORDS),
        },
        {
            "claim": "time of a CMT step over its teacher's calls and one plain step of its student",
            "scale": f"{SCALE}, 2 cores",
            "paper": "not given; 1 is the work that must be done",
            "ours": "; ".join(f"{WORDS[name]} {median_interval(shares[name])}" for name in shares),
        },
        {
            "claim": "most memory of a step's own tensors over that of a flow-matching step",
            "scale": SCALE,
            "paper": "not given",
            "ours": f"flow matching {size['flow matching'] / 2**20:.1f} MiB; "
            + "; ".join(f"{WORDS[name]} {size[name] / size['flow matching']:.2f}" for name in WORDS),
        },
        {
            "claim": "time of a step over that of a compiled one (`compile: true`)",
            "scale": f"{SCALE}, 2 cores, PyTorch's default compiler",
            "paper": "not given",
            "ours": "; ".join(f"{name} {median_interval(values)}" for name, values in compiled.items()),
        },
    ]
    numbers = {"seconds": seconds, "ratios": ratios, "shares": shares, "bytes": size, "compiled": compiled}
    write("stage_cost", rows, numbers)


if __name__ == "__main__":
    main()
