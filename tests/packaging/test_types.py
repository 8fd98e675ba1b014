"""mypy over every file of the package, in the layout it is installed in."""

import subprocess
import sys
from pathlib import Path

from layout import FOLDERS


def test_types(root: Path, tmp_path: Path) -> None:
    """An editable install hides the mapped folders from mypy; a farm of links shows them in their places."""
    package = tmp_path / "zoo"
    package.mkdir()
    for path in (root / "zoo").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for folder in FOLDERS.keys() - {"zoo"}:
        (package / folder).symlink_to(root / folder)
    settings = ["--config-file", root / "pyproject.toml", "--cache-dir", root / ".mypy_cache"]
    command = [sys.executable, "-m", "mypy", *settings, "-p", "zoo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
