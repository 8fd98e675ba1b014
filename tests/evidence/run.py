"""Runs the experiments that have no result yet, then writes their page."""

import subprocess
import sys
from pathlib import Path

from entry import RESULTS
from table import update_page

HERE = Path(__file__).resolve().parent
SHARED = {"entry", "run", "table"}


def main() -> int:
    """Each experiment is a script of its own; one that fails is told and does not stop the others."""
    failed = []
    for script in sorted(HERE.glob("*.py")):
        name = script.stem
        if name in SHARED or (RESULTS / f"{name}.json").is_file():
            continue
        print(f"{name} ...", flush=True)
        if subprocess.run([sys.executable, str(script)], cwd=HERE.parents[1]).returncode:
            failed.append(name)
    update_page()
    print(f"failed: {', '.join(failed)}" if failed else "tests/evidence/README.md holds the results")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
