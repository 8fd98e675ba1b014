"""Nothing is fetched for a config: connections are refused unless ``--allow-download`` stands on the line.

A config may name an address as a checkpoint, a model of a hub, or a metric that loads its weights; each
library has its own way to fetch. What they share is Python's `socket`, so that is where they are refused. The
Hugging Face libraries are told to be offline as well, since they then look into their cache and do not try.
Processes of one run speak to each other through PyTorch, and are not concerned.
"""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo._cli.errors import CommandError, chain
from zoo._cli.flags import take_flag

FLAG = "--allow-download"
VARIABLE = "ZOO_ALLOW_DOWNLOAD"
_allowed = False


class NotFetched(ConnectionError):
    """A connection that was refused."""


def split_download(args: Sequence[str]) -> tuple[list[str], bool]:
    """Takes ``--allow-download`` out of a command line, wherever it stands.

    ZOO_ALLOW_DOWNLOAD=1 in the environment says the same.

    >>> split_download(["fit", "--allow-download", "--config", "x"])
    (['fit', '--config', 'x'], True)
    """
    rest, given = take_flag(args, FLAG)
    return rest, given or os.environ.get(VARIABLE, "") not in ("", "0")


@contextmanager
def downloads(allowed: bool) -> Iterator[None]:
    """Within the block, connections to other machines are left alone or refused."""
    global _allowed
    before, _allowed = _allowed, allowed
    try:
        if allowed:
            yield
        else:
            with _hub_offline(), _sockets_refused():
                yield
    finally:
        _allowed = before


@contextmanager
def connections() -> Iterator[None]:
    """Within the block, connections are left alone: a logger that the config names sends what it logs."""
    global _allowed
    before, _allowed = _allowed, True
    try:
        yield
    finally:
        _allowed = before


def refuse_remote(key: str, address: str) -> None:
    """Refuses a setting whose value is on another machine.

    Raises:
        CommandError: it is, and nothing may be fetched.
    """
    if "://" in address and not _allowed:
        raise CommandError(
            f"{key}: {address} is on another machine, and nothing is fetched without {FLAG}: add it to the "
            "line, or download the file and give its path"
        )


def fetch(key: str, address: str, folder: tempfile.TemporaryDirectory) -> Path:
    """Fetches a file that the user allowed to be fetched.

    Args:
        key: The setting that names it.
        address: Where it is, ``http://...`` or what fsspec knows.
        folder: Where it is put.

    Raises:
        CommandError: it may not, or cannot, be fetched.
    """
    refuse_remote(key, address)
    path = Path(folder.name) / (Path(address.partition("?")[0]).name or "file")
    try:
        if address.startswith(("http://", "https://")):
            from torch.hub import download_url_to_file

            download_url_to_file(address, str(path), progress=False)
        else:
            import fsspec

            with fsspec.open(address, "rb") as source, open(path, "wb") as file:
                while block := source.read(1 << 20):
                    file.write(block)
    except (OSError, ValueError, ImportError) as error:
        raise CommandError(f"{key}: {address} cannot be fetched: {error}") from error
    return path


def refused(error: BaseException) -> str | None:
    """What an error says if a refused connection is its cause."""
    for cause in chain(error):
        if isinstance(cause, NotFetched):
            return str(cause)
        if not _allowed and type(cause).__name__ in ("OfflineModeIsEnabled", "LocalEntryNotFoundError"):
            text = f"a file of the Hugging Face hub is not here, and nothing is fetched without {FLAG}"
            return f"{error} ({text})" if isinstance(error, ValueError) else text
    return None


@contextmanager
def _hub_offline() -> Iterator[None]:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= dict.fromkeys(names, "1")
    constants: Any = sys.modules.get("huggingface_hub.constants")  # reads the variables when it is imported
    was_offline = (
        constants.HF_HUB_OFFLINE if constants else any(v not in (None, "", "0") for v in before.values())
    )
    if constants:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        constants = sys.modules.get("huggingface_hub.constants")
        if constants is not None:
            constants.HF_HUB_OFFLINE = was_offline


@contextmanager
def _sockets_refused() -> Iterator[None]:
    connect, connect_ex, resolve = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse(address: Any) -> NotFetched:
        place = (
            ":".join(str(part) for part in address[:2] if part)
            if isinstance(address, tuple)
            else str(address)
        )
        return NotFetched(f"{place} was asked for something, and nothing is fetched without {FLAG}")

    def guarded(method: Any) -> Any:
        def call(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _allowed:
                raise refuse(address)
            return method(self, address)

        return call

    def guarded_resolve(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if _allowed or host in (None, "", socket.gethostname()):  # this machine asks for its own address
            return resolve(host, port, *args, **kwargs)
        raise refuse((os.fsdecode(host), port))

    patched: Any = socket.socket
    patched.connect, patched.connect_ex = guarded(connect), guarded(connect_ex)
    socket.getaddrinfo = guarded_resolve
    try:
        yield
    finally:
        patched.connect, patched.connect_ex = connect, connect_ex
        socket.getaddrinfo = resolve
