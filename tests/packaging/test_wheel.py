"""The wheel: it holds what the repository tracks, and works from outside the checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from layout import FOLDERS

pytestmark = pytest.mark.slow


def git_files(root: Path, *options: str) -> list[str]:
    command = ["git", "ls-files", *options]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that a stale build folder cannot leak in and none is left behind."""
    source = tmp_path_factory.mktemp("source")
    for name in git_files(root, "-co", "--exclude-standard"):
        if (root / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((root / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    build = ["wheel", ".", "--no-build-isolation", "--no-deps", "--quiet", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", *build], cwd=source, check=True, capture_output=True)
    [path] = out.glob("*.whl")
    return path


def tracked(root: Path) -> set[str]:
    """What an install should hold of the files that git tracks (or will), by the names it has there."""
    found = set()
    for name in git_files(root, "-co", "--exclude-standard"):
        folder, _, rest = name.partition("/")
        if folder in {*FOLDERS, "configs"} and not name.endswith("README.md"):  # pages are for readers here
            found.add(f"zoo/{rest}" if folder == "zoo" else f"zoo/{folder}/{rest}")
    return found


def test_wheel_holds_what_is_tracked(root: Path, wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == tracked(root)
    assert {"zoo/py.typed", "zoo/configs/quickstart.yaml"} <= names


def test_every_package_is_listed(root: Path) -> None:
    """setuptools takes the packages that pyproject.toml lists, and no others."""
    listed = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {
        ".".join((package, *path.parent.relative_to(root / folder).parts))
        for folder, package in {**FOLDERS, "configs": "zoo.configs"}.items()
        for path in (root / folder).rglob("__init__.py")
    }
    assert listed == present


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in an environment of its own, which borrows the other packages of this one."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    # Our own editable install has a .pth there too, which a plain path entry does not run.
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    install = ["install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    return folder


def run(installed: Path, *command: str, cwd: Path) -> str:
    environment = {**os.environ, "PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_installed_wheel_is_ours(installed: Path, tmp_path: Path) -> None:
    code = "import zoo, zoo.callbacks as c, zoo.configs as d; print(zoo.__file__, c.__file__, d.__file__)"
    for path in run(installed, "python", "-c", code, cwd=tmp_path).split():
        assert path.startswith(str(installed))


def test_commands_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert "quickstart" in run(installed, "zoo", "list", "configs", cwd=tmp_path)
    assert re.search(r"\d+\.\d+\.\d+", run(installed, "zoo", "--version", cwd=tmp_path))
    fit = ["fit", "--config", "quickstart", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    run(installed, "zoo", *fit, cwd=tmp_path)
    assert (tmp_path / "runs/quickstart/version_0/samples.png").is_file()


def test_a_user_folder_named_callbacks_does_not_collide(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/__init__.py").write_text("mine = True")
    code = "import callbacks; from zoo.callbacks import LossCurve as c; print(callbacks.mine, c.__module__)"
    assert run(installed, "python", "-c", code, cwd=tmp_path).strip() == "True zoo.callbacks.loss_curve"


@pytest.mark.parametrize("folder", ["callbacks", "datamodules", "configs"])
def test_the_folders_refuse_another_name(root: Path, folder: str) -> None:
    command = [sys.executable, "-c", f"import {folder}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"import zoo.{folder}, not {folder}" in done.stderr


def test_wheel_ships_types(installed: Path, tmp_path: Path) -> None:
    """mypy on a user's project sees the wheel's types."""
    (tmp_path / "user.py").write_text("from zoo.rng import permutation\nreveal_type(permutation(0, 0, 5))\n")
    command = [sys.executable, "-m", "mypy", "--python-executable", str(installed / "bin/python"), "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "torch._tensor.Tensor" in done.stdout, done.stdout
