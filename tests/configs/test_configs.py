"""The bundled configs through the command line: those of small scale fit, test and predict for a few updates.

Those of full scale are in test_recipes.
"""

import csv
import re
from pathlib import Path

import pytest
import yaml
from bundled import FOLDER, NAMES, OVERLAYS, RECIPES, SMALL

from zoo.cli import main

SHORT = str(Path(__file__).parent / "short.yaml")


def starts_from(name: str) -> list[str]:
    """The configs whose runs a config reads: every ``runs/<config>`` in it, each once."""
    text = (FOLDER / f"{name}.yaml").read_text()
    return sorted(set(re.findall(r"^\s*\w+: runs/([\w/]+)", text, flags=re.M)))


def ordered() -> list[str]:
    """The small configs, each after those it starts from."""
    done: list[str] = []

    def add(name: str) -> None:
        for before in starts_from(name):
            add(before)
        if name not in done:
            done.append(name)

    for name in SMALL:
        add(name)
    return done


def fit(name: str) -> Path:
    """The run of a config, made if this process has none: a stage first makes those that it starts from."""
    run = Path("runs", name, "version_0")
    if not run.is_dir():
        for before in starts_from(name):
            fit(before)
        assert main(["fit", "--config", name, "--config", SHORT]) == 0
    return run


def scored_shortly(run: Path) -> Path:
    """A copy of a run's config that is quicker to evaluate.

    Its report draws two sets of samples, the fewest that have an interval. Its text is a short one, since the
    fit has read the long one, which takes each command ten seconds to tokenize.
    """
    config = yaml.safe_load((run / "config.yaml").read_text())
    for callback in config["trainer"]["callbacks"] or []:
        if callback["class_path"].endswith("SampleReport"):
            callback["init_args"]["replicates"] = 2
    if config["data"]["init_args"].get("source") == "stdlib":
        config["data"]["init_args"]["source"] = "pydoc_topics"
    path = run / "short.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all configs, so that a stage finds the run before it."""
    return tmp_path_factory.mktemp("configs")


def test_there_are_configs() -> None:
    assert {"quickstart", "flow/eight_gaussians", "flow/digits_mean_flow", "lm/bigram"} <= set(SMALL)
    assert {"flow/cifar10/cmt", "flow/imagenet512/ecd"} <= set(RECIPES)
    assert {"flow/strict_official/cmt", "callbacks/wsds"} <= set(OVERLAYS)
    assert sorted(SMALL + RECIPES + OVERLAYS) == NAMES
    # What is small says so: it asks for no GPU.
    assert all(
        re.search(r"^  accelerator: cpu$", (FOLDER / f"{name}.yaml").read_text(), re.M) for name in SMALL
    )


def test_stages_come_in_order() -> None:
    stages = [name for name in ordered() if "digits" in name]
    assert (
        stages.index("flow/digits_pretrain")
        < stages.index("flow/digits_cmt")
        < stages.index("flow/digits_mean_flow")
    )
    assert all(set(starts_from(name)) <= set(NAMES) for name in NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ordered())
def test_fit_test_predict(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if "ClassLabels" in (FOLDER / f"{name}.yaml").read_text():  # no data to fit on: a config of `zoo predict`
        assert main(["predict", "--config", name, "--config", SHORT, "--return_predictions", "false"]) == 0
        return
    run = fit(name)
    with open(run / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    [checkpoint] = run.glob("checkpoints/*.ckpt")
    started = "weights_loaded" in (run / "events.jsonl").read_text()
    assert started == ("init_from:" in (FOLDER / f"{name}.yaml").read_text())
    capsys.readouterr()
    saved = ["--config", str(scored_shortly(run)), "--ckpt_path", str(checkpoint)]
    assert main(["test", *saved]) == 0
    said = capsys.readouterr()
    assert str(run / "test") in said.out + said.err  # the last lines say where things are
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
