"""Checkpoints that attack whoever reads them are refused cheaply, and without bad advice."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from zoo.io import load_checkpoint

LIMIT = 1 << 30  # bytes of the process that reads; PyTorch alone takes a third
SIZE = 1_200_000_000  # above the limit: what unpacks it is seen


@pytest.mark.slow
def test_an_inflating_checkpoint_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            for _ in range(SIZE // 10_000_000):
                file.write(bytes(10_000_000))
        archive.writestr("archive/version", "3\n")
    assert path.stat().st_size < 4_000_000
    code = (
        "import re, sys; from zoo.io import load_checkpoint\n"
        "for lazy in False, True:\n"
        "    try: load_checkpoint(sys.argv[1], lazy)\n"
        "    except ValueError as error: print(error)\n"
        # not getrusage, whose peak a process inherits from the one that started it
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    *messages, peak = done.stdout.splitlines()
    assert len(messages) == 2 and all("bomb.ckpt" in message for message in messages)
    assert int(peak) * 1024 < LIMIT


@pytest.mark.parametrize("objects", [False, True])
def test_pytorchs_advice_to_unpickle_is_not_quoted(tmp_path: Path, objects: bool) -> None:
    path = tmp_path / "x.ckpt"
    if objects:
        torch.save({"state_dict": {}, "path": Path()}, path)
    else:
        path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"x\.ckpt") as error:
        load_checkpoint(path)
    for advice in ("weights_only", "can still be loaded", "trust the source", "trusted source"):
        assert advice not in str(error.value)
