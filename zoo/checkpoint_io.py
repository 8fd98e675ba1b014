"""Checkpoints of any Trainer that are whole or absent, and checked when they are loaded.

Lightning 2.6 holds the serialized checkpoint in memory, writes it to the folder for temporary files and moves
it, which copies where that folder is on another file system: a kill then leaves a truncated file under the
final name. Here it is streamed to a temporary name beside the final one, flushed, and renamed.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from zoo.io import atomic_path, check_archive, load_checkpoint


class _FlushedWhileWritten:
    """A file whose bytes go to the disk while more are written, so that the flush at the end is short."""

    EVERY = 1 << 25  # bytes

    def __init__(self, file: Any) -> None:
        self._file = file
        self._unflushed = 0
        self._pool = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None

    def write(self, data: Any) -> int:
        """Writes, and begins to flush if no flush runs."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):  # an unbuffered file may take a part
            written += self._file.write(view[written:])
        self._unflushed += written
        if self._unflushed >= self.EVERY and (self._flushing is None or self._flushing.done()):
            self.flush()
            self._unflushed = 0
            self._flushing = self._pool.submit(os.fdatasync, self._file.fileno())
        return written

    def flush(self) -> None:
        """Waits for the last flush and raises its error; the system reports one only once."""
        if self._flushing is not None:
            self._flushing.result()

    def close(self) -> None:
        """Ends the thread; the file stays open."""
        self._pool.shutdown()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves each checkpoint whole or not at all, and refuses to load a damaged one.

    For any Trainer: ``Trainer(plugins=[AtomicCheckpointIO()])``; ``zoo fit`` uses it unless a config names
    another. The folder is flushed too, so a checkpoint that was saved survives a power cut. A process that is
    killed while it saves leaves a file whose name begins with ``.tmp-``, which may be deleted. Loads compare
    every record with its checksum and take tensors and plain values only, whatever ``weights_only`` says.

    Not for strategies that write sharded folders or bring their own CheckpointIO (FSDP, DeepSpeed, XLA). A
    path with a protocol (``s3://``) is written as Lightning does.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the file.

        Raises:
            OSError: the disk is full, or the folder cannot be written; the old file, if any, is as it was.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_path(path) as temporary, open(temporary, "wb", buffering=0) as file:
            writer: Any = _FlushedWhileWritten(file)
            try:
                torch.save(checkpoint, writer)
                writer.flush()
            except RuntimeError as error:
                cause = error.__context__
                if not isinstance(cause, OSError):
                    raise
                # torch's writer hides the system's error behind one about its own position in the file.
                text = f"cannot save a checkpoint: {cause.strerror}"
                raise OSError(cause.errno, text, str(path)) from error
            finally:
                writer.close()

    def load_checkpoint(
        self, path: Any, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads the file, onto the CPU unless ``map_location`` says otherwise.

        Raises:
            ValueError: the file is damaged, or holds more than tensors and plain values.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        if map_location is None:
            return load_checkpoint(path)
        check_archive(path)
        return super().load_checkpoint(Path(path), map_location, weights_only=True)
