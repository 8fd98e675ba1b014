"""Fixtures of all tests. One thread per process: the suite runs on two cores beside a pool of two workers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("callback_tester", "evaluation_tester", "module_tester")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    """Each test leaves the global seed, the environment and the parsing policy as it found them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def baselines(tmp_path_factory: pytest.TempPathFactory) -> "Baselines":  # noqa: F821
    """Runs without a callback, which those with one are compared with."""
    from callback_tester import Baselines

    return Baselines(tmp_path_factory)


@pytest.fixture(scope="session")
def pool() -> Iterator["Pool"]:  # noqa: F821
    """Two gloo workers that serve every two-process test of the session."""
    from pool import Pool

    workers = Pool()
    yield workers
    workers.close()
