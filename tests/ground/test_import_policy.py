"""What rebuilding a module from a checkpoint in Python may import."""

import sys
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
from jsonargparse import _common

from zoo.flow import MeanFlow
from zoo.import_policy import allowed_imports

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass go: pass\n"


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file behind when it is imported."""
    (tmp_path / "evilmod.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evilmod", raising=False)
    return tmp_path / "ran"


def checkpoint(path: Path, **arguments: Any) -> Path:
    """As the command line's runs save one: the config of the module, and who builds it."""
    network = {"class_path": "zoo.flow.DiT", "init_args": {"width": 8, "depth": 1, "heads": 1}}
    hyperparameters = {
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "_class_path": "zoo.flow.MeanFlow",
        "network": network,
        **arguments,
    }
    saved = {"state_dict": {}, "hyper_parameters": hyperparameters, "pytorch-lightning_version": "2.6.6"}
    torch.save(saved, path)
    return path


@pytest.mark.parametrize("spec", [{"class_path": "evilmod.go"}, "evilmod.go"], ids=["class", "word"])
@pytest.mark.parametrize("argument", ["network", "optimizer", "lr_scheduler"])
def test_a_checkpoint_imports_nothing_of_its_own_choice(
    evil: Path, tmp_path: Path, argument: str, spec: Any
) -> None:
    path = checkpoint(tmp_path / "x.ckpt", **{argument: spec})
    with pytest.raises(ValueError, match=r"does not rebuild MeanFlow: it names evilmod.go, .* ZOO_TRUST$"):
        MeanFlow.load_from_checkpoint(path)
    assert not evil.exists()
    assert "evilmod" not in sys.modules


def test_who_runs_the_program_may_trust_a_package(
    evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_TRUST", "evilmod")
    with pytest.raises(
        ValueError, match="does not rebuild"
    ):  # it is not a network, which is seen once it is there
        MeanFlow.load_from_checkpoint(checkpoint(tmp_path / "x.ckpt", network={"class_path": "evilmod.go"}))
    assert evil.exists()


def test_the_policy_around_is_kept_or_restored() -> None:
    before = dict(_common.parsing_settings)
    with allowed_imports(["mine"]):
        inside = dict(_common.parsing_settings)
        assert inside != before
        with allowed_imports([], keep=True):
            assert dict(_common.parsing_settings) == inside
    assert dict(_common.parsing_settings) == before
    assert jsonargparse.__version__
