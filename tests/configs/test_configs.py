"""Every bundled config, through the command line: fit, test and predict for a few updates."""

import csv
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from zoo.cli import main

SHORT = str(Path(__file__).parent / "short.yaml")
FOLDER = Path(str(files("zoo.configs")))
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def test_there_are_configs() -> None:
    assert {"quickstart", "flow/eight_gaussians"} <= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_fit_test_predict(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", name, "--config", SHORT]) == 0
    run = Path("runs", name, "version_0")
    with open(run / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    [checkpoint] = run.glob("checkpoints/*.ckpt")
    said = capsys.readouterr()
    assert str(checkpoint) in said.out + said.err  # the last lines say where it is
    saved = ["--config", str(run / "config.yaml"), "--ckpt_path", str(checkpoint)]
    assert main(["test", *saved]) == 0
    assert main(["predict", *saved, "--return_predictions", "false"]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_config_is_the_config(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What --print_config writes parses to itself."""
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", name, "--print_config"])
    first = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(first)
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", str(tmp_path / "printed.yaml"), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(first)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_begins_with_what_it_is_for(name: str) -> None:
    """`zoo list` shows the first comment line."""
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(".") and len(first) > 20
