"""One pool of two gloo workers for the whole session: `pool.run(function, *args)` runs it on both ranks at
once.

Functions must be importable by name (they live in this folder), arguments and results picklable. Each worker
poses as one rank of a torchrun launch, so a Trainer inside picks its rank up and launches nothing.
"""

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from forked import CONTEXT

WORLD_SIZE = 2


def _worker(rank: int, port: int, connection: Connection) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD_SIZE),
        "LOCAL_WORLD_SIZE": str(WORLD_SIZE),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD_SIZE)
    while (task := connection.recv()) is not None:
        function, args = task
        try:
            connection.send((function(*args), None))
        except BaseException:
            connection.send((None, traceback.format_exc()))
    torch.distributed.destroy_process_group()


class Pool:
    """Two processes that form one gloo group."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._connections = []
        self._processes = []
        for rank in range(WORLD_SIZE):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_worker, args=(rank, port, theirs), daemon=True)
            process.start()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
        """Results of ``function(*args)`` on rank 0 and rank 1; an error on either is raised here with its
        traceback."""
        for connection in self._connections:
            connection.send((function, args))
        results = []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(timeout):
                raise TimeoutError(f"rank {rank} did not finish {function.__name__} within {timeout} s")
            results.append(connection.recv())
        if errors := [f"rank {rank}:\n{error}" for rank, (_, error) in enumerate(results) if error]:
            raise RuntimeError("\n".join(errors))
        return [result for result, _ in results]

    def close(self) -> None:
        for connection in self._connections:
            connection.send(None)
        for process in self._processes:
            process.join(10)
            process.kill()
