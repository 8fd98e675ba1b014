"""What every evidence script shares: it measures, and leaves one JSON in ``results/``.

A script is named like its result. It calls `write` once, at the end, so that an interrupted experiment leaves
nothing and runs again; parts that took long may keep files of their own under ``runs/evidence`` and take them
up again.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
SHARED = ROOT / "tests" / "shared"  # what the tests have too
WORK = ROOT / "runs" / "evidence"
STARTED = time.monotonic()


def write(name: str, rows: list[dict[str, str]], numbers: dict[str, Any]) -> None:
    """Writes a result.

    Args:
        name: Name of the script and the file.
        rows: Lines of the README's table: ``claim``, ``scale``, ``paper`` (its number and scale, or what it
            lacks), ``ours``.
        numbers: Everything measured, with intervals.
    """
    assert all(row.keys() == {"claim", "scale", "paper", "ours"} for row in rows)
    versions = {package: importlib.metadata.version(package) for package in ("torch", "lightning", "numpy")}
    result = {
        "rows": rows,
        "command": f"python tests/evidence/{name}.py",
        "seconds": round(time.monotonic() - STARTED),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": versions,
        "numbers": numbers,
    }
    RESULTS.mkdir(exist_ok=True)
    temporary = RESULTS / f".{name}.json"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(RESULTS / f"{name}.json")


def zoo(*arguments: str, cwd: Path) -> str:
    """Runs the command line as a user would; raises with its output if it fails."""
    command = [sys.executable, "-m", "zoo", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def median_interval(values: list[float], digits: int = 3) -> str:
    """Median and its 95 % interval by order statistics, for times: a busy moment of the machine is not an
    error
    of the mean."""
    from scipy.stats import binom

    ordered, count = sorted(values), len(values)
    low = int(binom.ppf(0.025, count, 0.5)) - 1  # the value at each end, from 0
    if low < 0:
        raise ValueError(f"{count} values are too few for an interval of their median")
    median = statistics.median(ordered)
    return f"{median:.{digits}g} [{ordered[low]:.{digits}g}, {ordered[count - 1 - low]:.{digits}g}]"


def interval(values: list[float], digits: int = 3) -> str:
    """Mean and 95 % t interval over seeds."""
    from zoo.metrics import mean_interval

    mean, low, high = mean_interval(values)
    return f"{mean:.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"
