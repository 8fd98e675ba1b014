"""What configs, flags and checkpoints may import: the allow-list, and what the user trusts."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import _common, _optionals

from zoo._cli.errors import CommandError
from zoo._cli.policy import import_policy, split_trust
from zoo.import_policy import ALLOWED, denied_modules

FIT = ("fit", "--trust", "my_model", "--config", "small.yaml")


@pytest.fixture
def hostile(workspace: Path) -> Path:
    """A module that leaves a mark when it is imported."""
    (workspace / "hostile.py").write_text("open('mark', 'w').close()\nclass Net: pass\n")
    return workspace / "mark"


def test_the_list_is_the_one_that_was_decided():
    assert ALLOWED == (
        "zoo",
        "torch.optim",
        "torch.nn",
        "torchmetrics",
        "lightning.pytorch.callbacks",
        "lightning.pytorch.loggers",
        "lightning.pytorch.strategies",
        "lightning.pytorch.profilers",
        "lightning.pytorch.plugins",
        "lightning.fabric.plugins",
        "lightning.pytorch.cli.ReduceLROnPlateau",
    )


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("zoo.flow.MeanFlow", True),
        ("torch.optim.AdamW", True),
        ("lightning.pytorch.cli.ReduceLROnPlateau", True),
        ("lightning.pytorch.cli.LightningCLI", False),
        ("zoo.cli.main", False),
        ("zoo._cli.train.run", False),
        ("zoo.__main__.main", False),
        ("zoology.Net", False),
        ("transformers.AutoModel", False),
        ("timm.create_model", False),
        ("torch.hub.load", False),
        ("os.system", False),
        ("subprocess.Popen", False),
        ("jsonargparse.set_parsing_settings", False),
    ],
)
def test_verdicts(path, allowed):
    with import_policy([]):
        assert (_common.denying_import_path_entry(path) is None) == allowed


def test_every_commands_module_is_denied(monkeypatch, tmp_path):
    (tmp_path / "room").mkdir()
    for name in ("__init__.py", "commands.py"):
        (tmp_path / "room" / name).touch()
    import zoo

    monkeypatch.setattr(zoo, "__path__", [*zoo.__path__, str(tmp_path)])
    assert "zoo.room.commands" in denied_modules()


def test_a_foreign_class_is_refused_unimported_with_the_command_to_retry(zoo, hostile):
    for key in ("--model", "--data", "--model.optimizer", "--trainer.callbacks+", "--model.act"):
        result = zoo(*FIT, key, "hostile.Net")
        assert result.code == 2
        assert result.err.rstrip().endswith(f"run: zoo {' '.join(FIT)} {key} hostile.Net --trust hostile"), (
            key
        )
    assert not hostile.exists()
    assert "hostile" not in sys.modules


@pytest.mark.parametrize("key", ["strategy", "logger", "profiler", "plugins", "accelerator"])
def test_a_refused_class_of_the_trainer_never_becomes_a_word(zoo, hostile, key):
    for value in ("hostile.Net", '{"class_path": "hostile.Net"}', '[{"class_path": "hostile.Net"}]'):
        result = zoo(*FIT, f"--trainer.{key}", value)
        assert result.code == 2
        assert "error: trainer." + key in result.err, result.err
        assert "hostile" in result.err
    assert not hostile.exists()


def test_an_argument_of_any_type_builds_nothing(zoo, workspace):
    Path("loose.py").write_text(
        "from typing import Any\nfrom lightning.pytorch import Callback\n"
        "class Loose(Callback):\n    def __init__(self, x: Any = None) -> None:\n        self.x = x\n"
        "    def setup(self, trainer, pl_module, stage):\n        assert isinstance(self.x, dict), self.x\n"
    )
    Path("hostile.py").write_text("open('mark', 'w').close()\n")
    shell = {"class_path": "subprocess.Popen", "init_args": {"args": "touch mark", "shell": True}}
    for spec, code in ((shell, 2), ({"class_path": "hostile.Net"}, 0)):  # refused; an inert dict
        callbacks = json.dumps([{"class_path": "loose.Loose", "init_args": {"x": spec}}])
        result = zoo(
            *FIT, "--trust", "loose", "--trainer.fast_dev_run", "1", "--trainer.callbacks", callbacks
        )
        assert result.code == code, result.err
        assert not Path("mark").exists()
    sys.modules.pop("loose", None)


def test_a_reexport_opens_nothing(zoo, workspace):
    """``zoo.io.os.system`` is ``os.system``, by whatever path."""
    callback = '[{"class_path": "LambdaCallback", "init_args": {"on_fit_start": "zoo.io.os.system"}}]'
    result = zoo(*FIT, "--trainer.callbacks", callback)
    assert result.code == 2
    assert "is refused: configs and checkpoints never import" in result.err


def test_a_config_cannot_trust(zoo, hostile):
    Path("evil.yaml").write_text("trust: hostile\nmodel: hostile.Net\n")
    result = zoo("fit", "--config", "evil.yaml")
    assert result.code == 2
    assert not hostile.exists()


def test_a_checkpoint_cannot_import(zoo, hostile):
    """A hostile ``_class_path`` in the hyperparameters is read as text, and told."""
    assert zoo(*FIT, "--trainer.max_steps", "1").code == 0
    path = next(Path("runs").rglob("*.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"] |= {"_class_path": "hostile.Net", "_instantiator": "hostile.Net"}
    torch.save(checkpoint, "evil.ckpt")
    result = zoo("test", *FIT[1:], "--ckpt_path", "evil.ckpt")
    assert result.code == 0, result.err
    assert "evil.ckpt: model was hostile.Net and is now my_model.Net (the config is used)" in result.err
    assert not hostile.exists()


def test_the_config_wins_over_a_checkpoint_and_says_where(zoo, workspace):
    assert zoo(*FIT, "--trainer.max_steps", "1").code == 0
    path = next(Path("runs").rglob("*.ckpt"))
    result = zoo(*FIT, "--trainer.max_steps", "2", "--model.optimizer.lr", "0.5", "--ckpt_path", str(path))
    assert result.code == 0, result.err
    assert f"{path}: model.optimizer.lr was 0.01 and is now 0.5 (the config is used)" in result.err
    saved = yaml.safe_load(Path("runs/small/version_1/config.yaml").read_text())
    assert saved["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5
    assert zoo("test", *FIT[1:], "--ckpt_path", str(path)).err.count("was") == 0


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_every_load_asks_for_tensors_only(zoo, workspace, monkeypatch, verb):
    from lightning.pytorch import Trainer

    asked = {}
    # `wraps` keeps the signature, from which the command line takes its arguments.
    spy = functools.wraps(getattr(Trainer, verb))(lambda self, **kwargs: asked.update(kwargs))
    monkeypatch.setattr(Trainer, verb, spy)
    keys = ("state_dict", "loops", "optimizer_states", "lr_schedulers")
    whole = {key: {} for key in keys} | {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0}
    torch.save(whole, "local.ckpt")
    assert zoo(verb, *FIT[1:], "--ckpt_path", "local.ckpt").code == 0
    assert (asked["weights_only"], asked["ckpt_path"]) == (True, "local.ckpt")


def test_trust_anywhere_on_the_line_and_from_the_environment(monkeypatch):
    monkeypatch.setenv("ZOO_TRUST", "a, b.c")
    words = ["fit", "--trust", "d,e", "--config", "x", "--trust=a"]
    assert split_trust(words) == (["fit", "--config", "x"], ["a", "b.c", "d", "e"])
    for wrong in (["--trust"], ["--trust", "--config"], ["--trust", "../x"], ["--trust", "jsonargparse"]):
        with pytest.raises(CommandError, match="--trust"):
            split_trust(wrong)


def test_trust_by_environment_runs(zoo, workspace, monkeypatch):
    monkeypatch.setenv("ZOO_TRUST", "my_model")
    result = zoo("fit", "--config", "small.yaml", "--trainer.fast_dev_run", "1")
    assert result.code == 0, result.err


def test_the_current_folder_comes_last_and_only_with_trust(workspace):
    with import_policy([]):
        assert str(workspace) not in sys.path
    with import_policy(["mine"]):
        assert sys.path[-1] == str(workspace)


def test_the_settings_of_the_program_around_come_back():
    settings, mode = dict(_common.parsing_settings), _optionals._config_read_mode
    with import_policy(["mine"]):
        assert _common.parsing_settings != settings
        assert _common.parsing_settings["instantiate_subclass_spec_in_any"] is False
        assert "s" not in _optionals._config_read_mode  # no fsspec: nothing is fetched
    assert _common.parsing_settings == settings
    assert _optionals._config_read_mode == mode


def test_python_dash_m_zoo_is_the_command(workspace):
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "fit", "--config", "small.yaml", "--trust"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --trust needs the name of a package: --trust my_package\n"


@pytest.fixture
def project(workspace: Path) -> Path:
    """A user's project in a folder of its own: a config that names two packages, both of them beside it."""
    folder = workspace / "project"
    (folder / "own_callbacks").mkdir(parents=True)
    (folder / "own_callbacks" / "__init__.py").write_text("from lightning.pytorch import Callback as Mine\n")
    (workspace / "my_model.py").rename(folder / "own_model.py")  # no other test imports it
    text = (workspace / "small.yaml").read_text().replace("my_model", "own_model")
    (folder / "mine.yaml").write_text(
        text.replace("trainer:\n", "trainer:\n  callbacks: [{class_path: own_callbacks.Mine}]\n")
    )
    return folder


def test_all_packages_that_need_trust_are_named_at_once(zoo, project, monkeypatch):
    monkeypatch.chdir(project)
    for words in (["fit", "--config", "mine.yaml"], ["check", "mine.yaml"]):
        result = zoo(*words)
        assert result.code == 2
        assert "If you trust " in result.err
        trusted = result.err.rstrip().rpartition(" --trust ")[2]
        assert set(trusted.split(",")) == {"own_callbacks", "own_model"}
        assert (
            zoo(*words, "--trust", trusted, *["--trainer.fast_dev_run", "1"] * (words[0] == "fit")).code == 0
        )


def test_a_package_beside_a_config_elsewhere_is_found_and_where_to_go_is_said(zoo, project, monkeypatch):
    monkeypatch.delitem(sys.modules, "own_model", raising=False)  # of another test: a user's process is fresh
    result = zoo("fit", "--config", "project/mine.yaml")
    assert result.code == 2
    assert (
        f"modules are sought in the current folder, {project.parent}, and among what is installed"
        in result.err
    )
    assert f"it lies in {project}, so cd there" in result.err
    assert "there is no module named" in result.err


def test_a_config_in_another_folder_does_not_change_where_packages_are_sought(zoo, workspace, monkeypatch):
    """The parser works in the folder of the config that it reads; the user is where the command was typed."""
    monkeypatch.delitem(sys.modules, "my_model", raising=False)  # of another test: a user's process is fresh
    Path("configs").mkdir()
    Path("small.yaml").rename("configs/small.yaml")
    result = zoo("fit", "--config", "configs/small.yaml")
    assert result.err.rstrip().endswith("run: zoo fit --config configs/small.yaml --trust my_model")
    assert (
        zoo("fit", "--config", "configs/small.yaml", "--trust", "my_model", "--trainer.max_steps", "1").code
        == 0
    )
    monkeypatch.delitem(sys.modules, "my_model")
    result = zoo("fit", "--resume", "runs/small/version_0")
    assert result.err.rstrip().endswith("run: zoo fit --resume runs/small/version_0 --trust my_model")
