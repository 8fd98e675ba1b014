"""A campaign of hostile configs: each ends with status 0 or 2 and inclusive nothing but its own folder."""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from entry import SHARED, write

sys.path.insert(0, str(SHARED))
from fuzz import cases
from fuzz_worker import Worker

COUNT = 1000
# The same configs on the command line as it was before it had these bounds (commit 515db69).
BEFORE = {"traceback": 61, "hang": 19, "died": 7, "fetched": 1}


def main() -> None:
    """Runs ``zoo check`` and ``zoo fit`` on each config, in a process that is killed after 20 s a config."""
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder))
        results = [worker.run(case) for case in cases(COUNT)]
        worker.close()
    verdicts = Counter(result["verdict"] for result in results)
    touched = [(result["number"], problem) for result in results for problem in result.get("problems", [])]
    bad = [result for result in results if result["verdict"] not in ("ok", "refused")]
    kinds = len({result["kind"] for result in results})
    broken = verdicts["hang"] + verdicts["died"]
    write(
        "fuzz_configs",
        [
            {
                "claim": "a hostile config ends with status 0 or 2, and inclusive its own folder only",
                "scale": f"{COUNT} mutated bundled configs, {kinds} kinds; check, fit of 2 updates; 20 s",
                "paper": f"before: {BEFORE['traceback']} tracebacks, "
                f"{BEFORE['hang'] + BEFORE['died']} hung or "
                f"crashed, {BEFORE['fetched']} fetched",
                "ours": f"{verdicts['ok']} ran, {verdicts['refused']} refused in one line, "
                f"{verdicts['traceback']} tracebacks, {broken} hung or crashed, "
                f"{len(touched)} touched more",
            }
        ],
        {
            "verdicts": dict(verdicts),
            "before": BEFORE,
            "touched": touched,
            "bad": [{key: result[key] for key in ("number", "kind", "verdict", "said")} for result in bad],
        },
    )


if __name__ == "__main__":
    main()
