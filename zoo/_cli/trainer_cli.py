"""LightningCLI in subclass mode, with the zoo's guarantees around it.

Differences from a bare LightningCLI: bundled configs go by name; the config wins over a checkpoint's
hyperparameters; every load asks for ``weights_only=True``; whatever is wrong before the Trainer starts is one
line; a run has a folder ``runs/<config>/version_N`` of its own. It builds in its constructor and runs in
`start`.
"""

import importlib
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse._actions import ActionConfigFile
from jsonargparse._common import denying_import_path_entry
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, _InstantiatorFn
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from zoo._cli import configs
from zoo._cli.bounds import few_modules, read_config, refuse_processes
from zoo._cli.components import public_names
from zoo._cli.errors import CommandError, error_text, print_error, suggest
from zoo._cli.offline import connections, fetch, refused
from zoo._cli.parser import OneLineParser
from zoo._cli.refusal import Line, files_on, refusal
from zoo._cli.report import command
from zoo._cli.spec import differences, find_class, refuse_words, try_optimizers
from zoo._cli.summary import CountedSummary
from zoo.base import ZooModule
from zoo.callbacks import ExactResume, GracefulStop, UpdateBar
from zoo.callbacks._run_files import RunFiles
from zoo.io import AtomicCheckpointIO, load_checkpoint
from zoo.run_logger import RunLogger
from zoo.runs import CONFIG_FILE, MultiPartRun, Resume, is_launcher, is_run, saves

CLI = TypeVar("CLI", bound="ZooCLI")
SETUP_ERRORS = (ValueError, ImportError, OSError, MisconfigurationException)
_TRUST = "--trust PKG[,PKG], anywhere on the line, lets configs name classes of PKG."
_UNTRAINED = "Without --ckpt_path it needs --untrained: the weights that the model is built with."
DESCRIPTIONS = {
    "fit": f"Trains a model. With --resume RUN, goes on with the run in that folder instead. {_TRUST}",
    "validate": f"Runs over the validation data. {_UNTRAINED} {_TRUST}",
    "test": f"Evaluates a model on the test data. {_UNTRAINED} {_TRUST}",
    "predict": f"Runs a model over the data. {_UNTRAINED} {_TRUST}",
}
_LOADERS = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
_CKPT_WORDS = ("best", "last", "hpc")  # what ckpt_path may say other than a path


def build(make: Callable[[], CLI], argv: Sequence[str]) -> CLI:
    """Parses and builds everything, up to the call of the Trainer.

    Raises:
        CommandError: anything that the user can put right.
    """
    import_components()
    OneLineParser.retry = command(*argv)
    with one_line():
        return make()


def import_components() -> None:
    """Imports every public class, so that configs may use short names."""
    for names in public_names().values():
        for module in names.values():
            importlib.import_module(module)


@contextmanager
def one_line(where: str = "") -> Iterator[None]:
    """Turns what is raised in parsing and building into a `CommandError`; ZOO_DEBUG=1 shows its traceback."""
    try:
        yield
    except Exception as error:
        raise CommandError(f"{where}{refused(error) or error_text(error)}") from error


def refusing_function(error: BaseException) -> tuple[BaseException, str | None]:
    """The first cause of an error in building, and the function that the config names and that raised it.

    Classes have instantiators (`ZooCLI._add_instantiators`); a function that makes an object has none, and
    what it raises counts as a branch of a union that does not fit.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    callers = [n for n, frame in enumerate(frames) if frame.f_globals["__name__"].startswith("jsonargparse")]
    called = frames[callers[-1] + 1 :] if callers else []
    return error, called[0].f_code.co_name if called else None


class ConfigFile(ActionConfigFile):
    """``--config``: a file, or a bundled config's name."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        """Adds the file's keys."""
        if value.lstrip().startswith("{"):  # JSON on the line itself
            ActionConfigFile.apply_config(parser, cfg, dest, value)
            return
        file = str(configs.find(value))
        read_config(Path(file))  # a file that is too large, or no text, is said before it is read as YAML
        try:
            ActionConfigFile.apply_config(parser, cfg, dest, file)
        except CommandError as error:
            raise CommandError(f"{file}: {error}") from error


class RunProgress(Callback):
    """How far a run got: what is wrong before its first batch is the user's to put right.

    Attributes:
        asked: Whether a batch was asked for.
        passed: Whether one was worked through.
    """

    def __init__(self) -> None:
        self.started = self.finished_batch = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A fit with validation data begins."""
        self.started = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A fit begins."""
        self.started = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation begins."""
        self.started = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test begins."""
        self.started = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predictions begin."""
        self.started = True

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """An update is done."""
        self.finished_batch = True

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A batch is done."""
        self.finished_batch = True

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A batch is done."""
        self.finished_batch = True

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A batch is done."""
        self.finished_batch = True

    def is_user_error(self, error: BaseException, trusted: Sequence[str]) -> bool:
        """Whether an error is one to put right by another config, and needs no traceback.

        From the second batch on none is. Before, every error is, unless code of the user's own packages is on
        the way: then it is one to debug, but for what that code says of the setting up, and for the zoo's own
        word on what it was given.
        """
        if self.finished_batch:
            return False
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        modules = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame in frames]
        if not {package.partition(".")[0] for package in trusted} & set(modules):
            return True
        return isinstance(error, SETUP_ERRORS) and (not self.started or modules[-1] == "zoo")


class ZooParser(OneLineParser, LightningArgumentParser):
    """LightningCLI's parser with errors of one line."""


class ZooCLI(LightningCLI):
    """LightningCLI that builds in its constructor and runs in `start`."""

    fetched: Path | None = None  # the checkpoint, where the config gives its address

    def __init__(
        self,
        args: list[str],
        trusted: Sequence[str] = (),
        resume: Resume | None = None,
        untrained: bool = False,
    ) -> None:
        self.trusted = trusted
        self.downloads = tempfile.TemporaryDirectory(prefix="zoo-")
        self.trust = ["--trust", ",".join(trusted)] if trusted else []
        self.resume = resume
        self.untrained = untrained
        self.progress = RunProgress()
        self.started = False
        super().__init__(
            model_class=LightningModule,
            subclass_mode_model=True,
            # No datamodule class: any will do, and a model with loaders of its own needs none.
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=ZooParser,
            parser_kwargs={verb: {"description": text} for verb, text in DESCRIPTIONS.items()},
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """The parser, with `ConfigFile` for ``--config``."""
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c", "--config", action=ConfigFile, help="A YAML file, or a bundled config's name."
        )
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        """A verb's parser; Lightning's text on ``weights_only`` advises what is refused here."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest == "weights_only":
                action.help = "Checkpoints are always read as tensors and plain values; false is refused."
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses. ``sys.argv`` stays as it is: a ddp relaunch repeats the whole line, trust included."""
        OneLineParser.line = Line(OneLineParser.retry, files_on(args), Path.cwd())
        self.config = parser.parse_args(args)
        refuse_processes(self._sub("trainer"))
        for key, text in refuse_words(self._sub("trainer")):
            match = re.search(r"""class_path['"]?\s*:\s*['"]?([\w.]+)""", text)
            path = match[1] if match else text
            entry = denying_import_path_entry(path)
            if entry is None:
                raise CommandError(f"{key}: {path} does not fit here (zoo fit --{key}.help)")
            raise CommandError(f"{key}: {refusal(path, entry, OneLineParser.line)}")

    def _sub(self, key: str) -> Any:
        """A value of the subcommand's config."""
        return self.config[self.config.subcommand].get(key)

    def _parse_ckpt_path(self) -> None:
        """Tells where the config differs from the checkpoint; the config is what runs."""
        path = str(self.resume_from or self._sub("ckpt_path") or "")
        if self.config.subcommand != "fit" and path in ("best", "last"):
            path = self._checkpoint_of_run(path)
        if not path or path in _CKPT_WORDS:
            return
        if "://" in path:
            self.fetched = fetch("ckpt_path", path, self.downloads)
            path = str(self.fetched)
        if not Path(path).exists():
            near = [str(file) for file in Path(path).parent.glob("*.ckpt")]
            raise CommandError(f"ckpt_path: there is no file {path}{suggest(path, near)}")
        if Path(path).is_file():  # a folder is a sharded checkpoint, which its strategy reads
            checkpoint = load_checkpoint(path, lazy=True)
            self._check_complete(path, checkpoint)
            if self.config.subcommand == "fit":
                self._check_start(path, checkpoint)
            saved = checkpoint.get("hyper_parameters", {})
            for line in differences(saved, self._sub("model")) if is_launcher() else []:
                print_error(f"{path}: {line} (the config is used)")

    def _checkpoint_of_run(self, word: str) -> str:
        """What ``ckpt_path: last`` means to an evaluation: the last of the run whose config is given."""
        given = [Path(str(file)).parent for file in self._sub("config") or [] if file is not None]
        run = next((folder for folder in given if is_run(folder)), None)
        if word == "best" or run is None:
            raise CommandError(
                f"ckpt_path: {word!r} is known inside a fit only; give a file (or --config RUN/config.yaml "
                "--ckpt_path last, for the last checkpoint of RUN)"
            )
        found = saves(run, print_error)
        if not found:
            raise CommandError(f"ckpt_path: {run} holds no checkpoint")
        self.config[self.config.subcommand].ckpt_path = str(found[0].path)
        return str(found[0].path)

    def _check_complete(self, path: str, checkpoint: dict[str, Any]) -> None:
        """Refuses a file that lacks what Lightning reads without looking whether it is there."""
        needed = ["pytorch-lightning_version", "state_dict"]
        if self.config.subcommand == "fit" and "merged" not in checkpoint:
            needed += ["epoch", "global_step", "loops", "optimizer_states", "lr_schedulers"]
        if lacking := [key for key in needed if key not in checkpoint]:
            raise CommandError(
                f"ckpt_path: {path} is not a checkpoint that a Trainer saved to be gone on from: it lacks "
                f"{', '.join(lacking)}. Weights alone can start a run of the zoo's models: --model.init_from"
            )

    def _check_start(self, path: str, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on from what is not a training state, or has made all updates already."""
        if "merged" in checkpoint:
            raise CommandError(
                f"ckpt_path: {path} is a mean of checkpoints and no state to go on from: give one that was "
                "saved in training, or begin a new run from these weights with --model.init_from"
            )
        trainer, made = self._sub("trainer"), checkpoint.get("global_step", 0)
        limit = trainer.max_steps
        over = made > limit if self.resume else made >= limit  # a run that is over may be resumed
        if over and limit >= 0 and not trainer.fast_dev_run:
            raise CommandError(
                f"ckpt_path: {path} has {made} updates already and trainer.max_steps is {limit}, so nothing "
                "is left to train: raise --trainer.max_steps, or give an earlier checkpoint"
            )

    def _add_instantiators(self) -> None:
        for key, base in (("model", LightningModule), ("data", LightningDataModule)):
            self.parser.add_instantiator(self._named(_InstantiatorFn(cli=self, key=key)), base)
        self.parser.add_instantiator(self._named(lambda class_type, *a, **k: class_type(*a, **k)), object)

    def _named(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """An instantiator whose errors name the class and its place in the config."""

        def instantiate(class_type: Any, *args: Any, applied_instantiation_links: dict, **kwargs: Any) -> Any:
            if isinstance(make, _InstantiatorFn):
                kwargs["applied_instantiation_links"] = applied_instantiation_links
            if self.started:
                return make(class_type, *args, **kwargs)
            name = getattr(class_type, "__name__", str(class_type))
            key = find_class(self.config[self.subcommand], name) or name
            with one_line(f"{key} ({name}): "):
                return make(class_type, *args, **kwargs)

        return instantiate

    def instantiate_classes(self) -> None:
        """Builds everything; a function of the config that refuses its arguments is named like a class."""
        try:
            with few_modules():
                super().instantiate_classes()
        except Exception as error:
            cause, name = refusing_function(error)
            if name is None:
                raise
            key = find_class(self.config[self.subcommand], name) or name
            raise CommandError(f"{key} ({name}): {refused(error) or error_text(cause)}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with the run's own logger where the user has none, `ExactResume` and `UpdateBar`."""
        config = self._get(self.config_init, "trainer")
        config["logger"] = self._logger(config["logger"])
        callbacks = config["callbacks"] or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        for needed in (ExactResume, *([GracefulStop] if self.subcommand == "fit" else [])):
            if not any(isinstance(callback, needed) for callback in callbacks):
                callbacks = [*callbacks, needed()]
        bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if self.subcommand == "fit" and not bar and config["enable_progress_bar"] is not False:
            callbacks = [UpdateBar(), *callbacks]  # first, so that it ends before others report
        summary = any(isinstance(callback, ModelSummary) for callback in callbacks)
        if self.subcommand == "fit" and not summary and config["enable_model_summary"] is not False:
            callbacks = [*callbacks, CountedSummary()]
        config["callbacks"] = callbacks
        with one_line("trainer: "):
            trainer = super().instantiate_trainer(**kwargs)
        own = trainer._accelerator_connector.checkpoint_io is not None  # the user's, among the plugins
        if not own and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # nor the strategy's
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if self.subcommand == "fit":
            trainer.callbacks.append(  # type: ignore[attr-defined]
                RunFiles(self.resume.session if self.resume else 0, in_place=self.resume is not None)
            )
        trainer.callbacks.insert(0, self.progress)  # type: ignore[attr-defined]
        return trainer

    def _logger(self, logger: Any) -> Any:
        if self.resume is None:
            return RunLogger(*self._folder()) if logger in (None, True) else logger
        run = Path(os.path.abspath(self.resume.run))
        first, *others = logger if isinstance(logger, list) else [logger]
        if first in (None, True) or isinstance(first, CSVLogger):
            prefix = first._prefix if isinstance(first, CSVLogger) else ""
            return [RunLogger(str(run.parent), "", run.name, prefix), *others]
        config = str(self.resume.run / CONFIG_FILE)
        raise CommandError(
            f"--resume goes on in the folder of a CSV logger, and {type(first).__name__} has none: go on "
            "with " + command("fit", "--config", config, "--ckpt_path", str(self.resume_from), *self.trust)
        )

    def _folder(self) -> tuple[str, str]:
        """Where this run goes, as a logger's folder and name: into the run it evaluates, else under runs/."""
        given = [Path(str(file)) for file in self._sub("config") or [] if file is not None]
        if self.subcommand != "fit":
            checkpoint = self._sub("ckpt_path")
            evaluated = [Path(checkpoint).parent.parent] if checkpoint else []
            for run in (*evaluated, *(file.parent for file in given)):
                if is_run(run):
                    return os.path.abspath(run), str(self.subcommand)
        return os.path.abspath("runs"), configs.run_name(given[0] if given else None)

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet: `start` runs it, when every error that is the user's has been said."""
        self.prepare()

    def prepare(self) -> None:
        """Refuses unsafe loads, and builds early what the Trainer would build late."""
        if self._sub("weights_only") is False:
            raise CommandError(
                "weights_only: false is refused: zoo never unpickles a checkpoint, since that can run code. "
                "Leave the setting out, or load the file in Python if you trust it"
            )
        loader = f"{_LOADERS[str(self.subcommand)]}_dataloader"
        if self.datamodule is None and not is_overridden(loader, self.model):
            raise CommandError(
                f"data: none is given, and {type(self.model).__name__} has no {loader} of its own: give a "
                "datamodule, for example --data Digits (zoo list data)"
            )
        if not (self.subcommand == "fit" or self.untrained or self._sub("ckpt_path")) and getattr(
            self.model, "needs_checkpoint", True
        ):
            raise CommandError(
                f"ckpt_path: none is given, so zoo {self.subcommand} would use the weights that "
                f"{type(self.model).__name__} was built with: give --ckpt_path FILE, or say --untrained"
            )
        # Any other module may step its schedule by epochs.
        updates = self._sub("trainer").max_steps if isinstance(self.model, ZooModule) else None
        try_optimizers(self._sub("model"), updates)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["weights_only"] = True  # Lightning itself leaves http(s) paths unprotected
        if self.fetched is not None:
            kwargs["ckpt_path"] = str(self.fetched)
        if self.resume is not None:
            kwargs["ckpt_path"] = str(self.resume_from)
        return kwargs

    @property
    def resume_from(self) -> Path | None:
        """The checkpoint that ``--resume`` goes on from: the one that the user named, else the newest."""
        if self.resume is None:
            return None
        return self.resume.checkpoint or Path(self._sub("ckpt_path"))

    def _next_sub_runs(self) -> None:
        """Goes on with the further fits of a run of several parts: the branches of a schedule."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for owner in [callback for callback in callbacks if isinstance(callback, MultiPartRun)]:
            while (path := owner.next_sub_run()) is not None:
                kwargs = self._prepare_subcommand_kwargs("fit")
                self.trainer.fit(**(kwargs | {"ckpt_path": path}))

    @property
    def signal_received(self) -> int:
        """The signal that stops the fit; 0 if none came."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return next((callback.received for callback in callbacks if isinstance(callback, GracefulStop)), 0)

    def _logs_elsewhere(self) -> bool:
        """Whether a logger is more than a writer of files here."""
        return not all(isinstance(logger, CSVLogger | TensorBoardLogger) for logger in self.trainer.loggers)

    def start(self) -> None:
        """Runs the verb. Errors of the user's own code keep their traceback, and so do all after a batch.

        Raises:
            CommandError: a part cannot be set up (a file is missing), or a part of the zoo refuses the first
                batch (data that do not fit). The folder that the run had for itself is gone then.
        """
        self.started = True
        try:
            with connections() if self._logs_elsewhere() else nullcontext():
                super()._run_subcommand(str(self.subcommand))
                self._next_sub_runs()
        except Exception as error:
            if not self.progress.is_user_error(error, self.trusted):
                raise
            if self.resume is None and isinstance(self.trainer.logger, RunLogger):
                self.trainer.logger.discard()
            raise CommandError(refused(error) or error_text(error)) from error
