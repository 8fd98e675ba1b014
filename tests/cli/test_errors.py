"""Every mistake is one line with its place, the value and the cause; status 2; no traceback."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch

from zoo._cli.errors import CommandError

FIT = ("fit", "--trust", "my_model", "--config", "small.yaml")

# What is typed after `zoo fit --trust my_model --config small.yaml`, and the whole line that comes back.
LINES = [
    (["--model.widht", "3"], "model.init_args.widht: Net takes no argument 'widht'; did you mean width?"),
    (["--model.width", "abc"], "model.init_args.width: expected int, got abc (an argument of Net)"),
    (["--model.depth", "x"], "model.init_args.depth: expected int or null, got x (an argument of Net)"),
    (["--model.optimizer.lr", "x"], "model.init_args.optimizer.init_args.lr: expected float, got x"),
    (["--model.optimizer.lr", "-1"], "model.init_args.optimizer (AdamW): Invalid learning rate: -1.0"),
    (["--model", "torch.nn.Linear"], "model: torch.nn.Linear is not a LightningModule"),
    (
        ["--model.optimizer", "torch.nn.Linear"],
        "model.init_args.optimizer: torch.nn.Linear is not an Optimizer",
    ),
    (["--model", "zoo.flow.MeanFloww"], "model: there is no MeanFloww in zoo.flow; did you mean MeanFlow"),
    (["--model", "MeanFlo"], "model: no class is named 'MeanFlo'; did you mean MeanFlow"),
    (["--data", "MeanFlow"], "data: MeanFlow (zoo.flow.MeanFlow) is of another kind than belongs here"),
    (["--data.batch_size", "0"], "data (Digits): batch_size must be at least 1, got 0"),
    (["--trainer.max_epochs", "x"], "trainer.max_epochs: expected int or null, got x"),
    (["--trainer.max_steps", "1.5"], "trainer.max_steps: expected int, got 1.5"),
    (["--trainer.max_epchs", "3"], "unknown argument --trainer.max_epchs; did you mean --trainer"),
    (
        ["--trainer.callbacks+", "SampleGird"],
        "trainer.callbacks: no class is named 'SampleGird'; did you mean SampleGrid?",
    ),
    (
        ["--trainer.callbacks", '[{"class_path": "SampleGrid", "init_args": {"scale": 0}}]'],
        "trainer.callbacks[0] (SampleGrid): scale must be at least 1, got 0",
    ),
    (
        ["--trainer.callbacks", '[{"class_path": "ModelCheckpoint", "init_args": {"save_top_k": "x"}}]'],
        "trainer.callbacks[0] (ModelCheckpoint).save_top_k: expected int, got x",
    ),
    (["--trainer.precision", "17"], "trainer.precision: expected one of 64, 32, 16, "),
    (["--trainer.strategy", "ddpp"], "trainer: You selected an invalid strategy name"),
    (["--trainer.devices", "0"], "trainer: `Trainer(devices='0')` value is not a valid input"),
    (["--ckpt_path", "none.ckpt"], "ckpt_path: there is no file none.ckpt"),
    (["--weights_only", "false"], "weights_only: false is refused"),
    (
        ["--config", "quickstrat"],
        "--config quickstrat: neither a file here nor a bundled config; did you mean quickstart?",
    ),
    (["--config", "s3://b/x.yaml"], "--config s3://b/x.yaml: configs are read from this machine only"),
    (
        ["--config", "key.yaml"],
        "unknown setting trainer.max_epchs of `zoo fit`; did you mean trainer.max_epochs",
    ),
    (
        ["--config", "deep.yaml"],
        "deep.yaml: model.init_args.optimizer.init_args.lrr: AdamW takes no argument 'lrr'",
    ),
    (["--config", "broken.yaml"], "broken.yaml: Problems parsing config: "),
    (["bogus"], "unknown argument bogus"),
]


@pytest.mark.slow
def test_mistakes_after_fit_are_one_line(zoo, workspace):
    Path("key.yaml").write_text("trainer:\n  max_epchs: 3\n")
    Path("broken.yaml").write_text("trainer: [1\n")
    Path("deep.yaml").write_text(
        "model:\n  class_path: my_model.Net\n  init_args:\n    optimizer:\n"
        "      class_path: torch.optim.AdamW\n      init_args: {lrr: 3}\n"
    )
    for words, line in LINES:
        result = zoo(*FIT, *words)
        assert result.code == 2, words
        last = result.err.splitlines()[-1]
        assert last.startswith(f"error: {line}"), f"{words}: {last}"
        assert "Traceback" not in result.err
    assert not Path("runs").exists(), "a run that never began left a folder"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--config", "small.yaml", "fit"], "the verb comes first: zoo fit --config small.yaml"),
        (["ft"], "unknown verb 'ft'; did you mean fit? (zoo --help)"),
        (["fit"], "missing: model. A config gives them: --config NAME (see `zoo list configs`)"),
        (["fit", "--trust"], "--trust needs the name of a package: --trust my_package"),
        (["show", "MeanFlo"], "nothing is named 'MeanFlo'; did you mean MeanFlow"),
        (["check", "--verbose"], "zoo check takes no --verbose"),
    ],
)
def test_mistakes_before_a_verb_runs(zoo, words, line):
    result = zoo(*words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("name", "budgets", "line"),
    [
        ("wsds", [80, 20], "budgets must increase, got 80 and "),
        ("wsm", [20], "the window of budget 20 has 2 "),
    ],
)
@pytest.mark.parametrize(
    ("config", "key"),
    [
        ("trainer: {callbacks: [{class_path: WSDS, init_args: ARGS}]}", "trainer.callbacks[0]"),
        ("model: {lr_scheduler: {class_path: ScheduleLR, init_args: ARGS}}", "model.init_args.lr_scheduler"),
    ],
)
def test_a_function_that_refuses_is_named_with_its_place(zoo, workspace, config, key, name, budgets, line):
    schedule = f"{{class_path: zoo.schedules.{name}, init_args: {{budgets: {budgets}}}}}"
    Path("mine.yaml").write_text(config.replace("ARGS", f"{{schedule: {schedule}}}"))
    result = zoo("fit", "--config", "lm/bigram", "--trainer.callbacks=null", "--config", "mine.yaml")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith(f"error: {key}.init_args.schedule ({name}): {line}")
    assert not Path("runs").exists()


def test_a_model_may_have_loaders_of_its_own(zoo, workspace):
    demo = "from lightning.pytorch.demos.boring_classes import BoringModel"
    Path("own.py").write_text(f"{demo}\n\nclass Own(BoringModel):\n    pass\n")
    short = ("--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "true")
    result = zoo("fit", "--trust", "own", "--model", "own.Own", *short)
    assert result.code == 0, result.err


def test_a_model_without_data_is_told_so(zoo, workspace):
    result = zoo("fit", "--model", "MeanFlow", "--model.network", "zoo.flow.MLP")
    assert result.code == 2
    assert "data: none is given, and MeanFlow has no train_dataloader of its own" in result.err


def test_debugging_shows_the_traceback(zoo, monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")
    result = zoo(*FIT, "--data.batch_size", "0")
    assert result.code == 2
    assert "Traceback" in result.err
    assert "batch_size must be at least 1" in result.err


def test_what_cannot_be_set_up_is_one_line_and_leaves_no_folder(zoo, workspace):
    """Labels alone are no training data, which `setup` says: after parsing, before the first batch."""
    data = ("--data", "ClassLabels", "--data.count", "4")
    result = zoo(*FIT, *data)
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("error: ClassLabels")
    assert not Path("runs").exists()
    assert zoo(*FIT, "--trainer.max_epochs", "1").code == 0
    run = Path("runs/small/version_0")
    assert run.is_dir()  # the number was free again
    saved = ("test", "--trust", "my_model", "--config", str(run / "config.yaml"))
    assert zoo(*saved, *data).code == 2
    assert (run / "metrics.csv").is_file() and not (run / "test").exists()


@pytest.mark.parametrize("sanity", ["0", "2"])
def test_data_that_do_not_fit_are_one_line(zoo, workspace, sanity):
    """Points for a network of images: said of the first batch, be it of training or of validation."""
    words = ("--config", "quickstart", "--data", "EightGaussians", "--trainer.enable_progress_bar", "false")
    result = zoo("fit", *words, "--trainer.num_sanity_val_steps", sanity)
    assert result.code == 2
    line = "error: the data have items of shape (2,), the network takes (1, 8, 8)"
    assert result.err.splitlines()[-1].startswith(line)
    assert not Path("runs").exists()


def test_errors_of_a_users_own_model_keep_their_traceback(zoo, workspace):
    """A ValueError in its first step is its own business."""
    step = "    def training_step(self, batch, batch_idx):\n        raise ValueError('mine')\n"
    Path("faulty.py").write_text(f"import my_model\n\n\nclass Faulty(my_model.Net):\n{step}")
    with pytest.raises(ValueError, match="mine"):
        zoo("fit", "--trust", "faulty,my_model", "--config", "small.yaml", "--model", "faulty.Faulty")


def test_errors_inside_fit_keep_their_traceback(zoo, workspace):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        zoo(*FIT, "--data", "zoo.datamodules.EightGaussians")


@pytest.mark.parametrize(
    "error", ["OSError('x')", "KeyError('x')", "RuntimeError('x')", "AttributeError('x')"]
)
def test_any_error_of_a_users_class_has_its_class_and_place(zoo, workspace, error):
    module = f"raises_{error.partition('(')[0]}"  # a name of its own: modules stay imported
    Path(f"{module}.py").write_text(
        "import my_model\nfrom torch import nn\n\n\nclass Act(nn.Module):\n"
        f"    def __init__(self):\n        raise {error}\n"
    )
    for words in (["fit", *FIT[1:]], ["check", *FIT[3:]]):
        result = zoo(*words, "--trust", f"{module},my_model", "--model.act", f"{module}.Act")
        assert result.code == 2
        name, _, text = error.partition("(")
        assert f"model.init_args.act (Act): {name}: {text[:-1].strip(chr(39))}" in result.err.replace("'", "")


def test_a_place_names_the_item_of_a_list_and_its_class(zoo, workspace):
    Path("mine.yaml").write_text(
        "trainer: {callbacks: [SampleGrid, {class_path: ModelCheckpoint}, {class_path: ModelCheckpoint, "
        "init_args: {save_top_k: x}}]}"
    )
    result = zoo(*FIT, "--config", "mine.yaml")
    assert "mine.yaml: trainer.callbacks[2] (ModelCheckpoint).save_top_k: expected int, got x" in result.err
    result = zoo(
        *FIT, "--config", "quickstart", "--trainer.callbacks+={class_path: LossCurve, init_args: {x: 1}}"
    )
    assert "trainer.callbacks[7] (LossCurve).x: LossCurve takes no argument 'x'" in result.err


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {callbacks: {[1]: 2}}",
        "trainer: {callbacks: 3}",
        "model: {class_path: {a: 1}}",
        "model: [1, 2]",
        "model: {class_path: my_model.Net, init_args: 3}",
        "model: {class_path: my_model.Net, init_args: {optimizer: 3.0}}",
        "trainer: {callbacks: [[1]]}",
        "trainer: {precision: {a: 1}}",
        'trainer: {logger: "\\e[31m\\uD800"}',
    ],
)
def test_no_message_speaks_of_the_parsers_internals(zoo, workspace, text):
    Path("bad.yaml").write_text(text)
    result = zoo(*FIT, "--config", "bad.yaml")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1, result.err
    assert not re.search(r"unhashable|Union|Namespace|NestedArg|NoneType|<class|not iterable", result.err)
    assert result.err.rstrip("\n").isprintable()


def test_a_bare_config_is_told_how_it_is_given(zoo):
    result = zoo("fit", "quickstart")
    assert result.code == 2
    assert result.err.startswith("error: quickstart is a config: zoo fit --config quickstart")


def test_help_does_not_advise_to_unpickle(zoo, capsys):
    with pytest.raises(SystemExit, match="0"):
        zoo("fit", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "false is refused" in text and "weights_only=False" not in text and "trusted source" not in text


def test_a_checkpoint_that_no_trainer_saved_is_told_what_it_lacks(zoo, workspace):
    assert zoo(*FIT, "--trainer.max_steps", "1").code == 0
    checkpoint = torch.load(next(Path("runs").rglob("*.ckpt")), weights_only=True)
    for key in ("pytorch-lightning_version", "loops", "optimizer_states"):
        torch.save({name: value for name, value in checkpoint.items() if name != key}, "less.ckpt")
        result = zoo(*FIT, "--trainer.max_steps", "2", "--ckpt_path", "less.ckpt")
        assert result.code == 2
        assert (
            "ckpt_path: less.ckpt is not a checkpoint that a Trainer saved to be gone on from: it lacks "
            f"{key}" in (result.err)
        )


@pytest.mark.parametrize(("code", "advice"), [(errno.ENOSPC, "Make room"), (errno.EROFS, "you may write to")])
def test_a_full_disk_and_a_folder_that_may_not_be_written_are_one_line(
    zoo, workspace, monkeypatch, code, advice
):
    """On any file that is made in a run: here the checkpoint's, in the middle of the training."""
    from lightning.pytorch import Trainer

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code), "runs/small/version_0/checkpoints/x.ckpt")

    monkeypatch.setattr(Trainer, "save_checkpoint", refuse)
    result = zoo(*FIT, "--trainer.max_steps", "3")
    assert result.code == 2
    last = result.err.splitlines()[-1]
    assert last.startswith(
        f"error: runs/small/version_0/checkpoints/x.ckpt cannot be written: {os.strerror(code)}"
    )
    assert advice in last


def test_resuming_in_a_folder_that_may_not_be_written_is_one_line(zoo, workspace, monkeypatch):
    """As a user who does not own it sees it; root may write everywhere."""
    assert zoo(*FIT, "--trainer.max_steps", "1").code == 0
    opened = os.open

    def refuse(path, flags, *args, **kwargs):
        if str(path).endswith(".lock") and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    result = zoo("fit", "--trust", "my_model", "--resume", "runs/small/version_0")
    assert result.code == 2
    assert result.err.startswith("error: runs/small/version_0/.lock cannot be written: Permission denied")


def test_what_a_callback_of_lightning_misses_is_one_line(zoo, workspace):
    """The learning-rate finder of a model without ``lr``: an AttributeError inside Lightning."""
    result = zoo("fit", "--config", "quickstart", "--trainer.callbacks+=LearningRateFinder")
    assert result.code == 2
    assert "AttributeError: When using the learning rate finder" in result.err.splitlines()[-1]


def test_a_rate_out_of_range_is_one_line(zoo, workspace):
    words = ("--model.lr_scheduler", "OneCycleLR", "--model.lr_scheduler.max_lr", "1e308")
    result = zoo("fit", "--config", "quickstart", *words, "--model.lr_scheduler.total_steps", "9")
    line = "error: model.init_args.lr_scheduler (OneCycleLR): max_lr is 1e+308, and a float32 ends at 3.4e+38"
    assert (result.code, result.err.splitlines()[-1]) == (2, line)
    assert len(str(CommandError("x" * 5000))) == 2000
