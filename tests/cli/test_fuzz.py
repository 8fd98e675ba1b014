"""Two hundred hostile configs, seeded: no traceback, no hang, nothing touched outside the folder.

`tests/evidence/fuzz_configs.py` is the campaign of a thousand.
"""

from pathlib import Path

import pytest
from fuzz import cases
from fuzz_worker import Worker

COUNT, FITTED = 200, 25  # every 25th is fitted as well


@pytest.mark.slow
def test_hostile_configs(tmp_path: Path) -> None:
    worker = Worker(tmp_path, seconds=60)  # of a machine that runs other tests, too
    try:
        results = [worker.run(case, fit=case.number % FITTED == 0) for case in cases(COUNT, seed=1)]
    finally:
        worker.close()
    bad = [result for result in results if result["verdict"] not in ("ok", "refused") or result["problems"]]
    assert not bad, "\n".join(str(result)[:1500] for result in bad)
    verdicts = [result["verdict"] for result in results]
    assert 10 < verdicts.count("ok") < COUNT / 2, "the mutations are either no longer hostile, or all alike"
