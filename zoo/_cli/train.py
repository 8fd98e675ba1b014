"""``zoo fit|validate|test|predict``: LightningCLI in subclass mode, with the zoo's guarantees around it.

Differences from a bare LightningCLI: bundled configs go by name; classes come from the allow-list only; the
config wins over a checkpoint's hyperparameters; every load asks for ``weights_only=True``; an error before the
Trainer starts is one line; a run has a folder ``runs/<config>/version_N`` of its own.
"""

import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse._actions import ActionConfigFile
from jsonargparse._common import denying_import_path_entry
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, _InstantiatorFn
from lightning.pytorch.loggers import CSVLogger

from zoo import events
from zoo._cli import configs
from zoo._cli.components import public_names
from zoo._cli.errors import CommandError, close, complain, say
from zoo._cli.explain import refusal
from zoo._cli.interrupt import Interrupt, Interrupted, checkpoint_path
from zoo._cli.logger import RunLogger
from zoo._cli.noise import quiet
from zoo._cli.parser import OneLineParser
from zoo._cli.policy import import_policy
from zoo._cli.report import command, shown, summary
from zoo._cli.runs import (
    CONFIG_FILE,
    METRICS_FILE,
    Lock,
    Resume,
    open_run,
    split_resume,
    truncate,
)
from zoo._cli.spec import differences, find_class, refuse_words, try_optimizers
from zoo.callbacks import ExactResume
from zoo.io import load_checkpoint

USER_ERRORS = (ValueError, TypeError, ImportError, MisconfigurationException)
_CKPT_WORDS = ("best", "last", "hpc")  # what ckpt_path may say other than a path


def run(verb: str, args: list[str], words: Sequence[str], trusted: Sequence[str]) -> int:
    """Runs a verb of the Trainer.

    Args:
        verb: fit, validate, test or predict.
        args: The words after the verb, without ``--trust``.
        words: The whole line, for advice.
        trusted: Packages that configs may name.

    Returns:
        The exit status.
    """
    resume: Resume | None = None
    if verb == "fit":
        args, folder = split_resume(args)
        if folder is not None:
            named = [word for word in args if word.split("=")[0] == "--ckpt_path"]
            resume = open_run(folder, newest=not named)
            args = ["--config", str(resume.run / CONFIG_FILE), *args]
    with import_policy(trusted), quiet():
        cli = build(lambda: ZooCLI([verb, *args], words, trusted, resume), words)
        return cli.launch()


def build(make: Callable[[], "ZooCLI"], words: Sequence[str]) -> "ZooCLI":
    """Parses and builds everything, up to the call of the Trainer.

    Raises:
        CommandError: anything that the user can put right.
    """
    import_components()
    OneLineParser.retry = command(*words)
    with one_line():
        return make()


def import_components() -> None:
    """Imports every public class, so that configs may use short names."""
    for names in public_names().values():
        for module in names.values():
            importlib.import_module(module)


@contextmanager
def one_line(where: str = "") -> Iterator[None]:
    """Turns the errors that a user can put right into a `CommandError`; others keep their traceback."""
    try:
        yield
    except USER_ERRORS as error:
        text = str(error) or type(error).__name__
        raise CommandError(f"{where}{text}") from error


class ConfigFile(ActionConfigFile):
    """``--config``: a file, or a bundled config's name."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        """Adds the file's keys."""
        if value.lstrip().startswith("{"):  # JSON on the line itself
            ActionConfigFile.apply_config(parser, cfg, dest, value)
            return
        file = str(configs.find(value))
        try:
            ActionConfigFile.apply_config(parser, cfg, dest, file)
        except CommandError as error:
            raise CommandError(f"{file}: {error}") from error


class ZooParser(OneLineParser, LightningArgumentParser):
    """LightningCLI's parser with errors of one line."""


class ZooCLI(LightningCLI):
    """LightningCLI that builds in its constructor and runs in `launch`."""

    def __init__(
        self,
        args: list[str],
        words: Sequence[str] = (),
        trusted: Sequence[str] = (),
        resume: Resume | None = None,
    ) -> None:
        self.words = list(words)
        self.trust = ["--trust", ",".join(trusted)] if trusted else []
        self.resume = resume
        self.interrupt = Interrupt()
        self.launched = False
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=ZooParser,
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """The parser, with `ConfigFile` for ``--config``."""
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c", "--config", action=ConfigFile, help="A YAML file, or a bundled config's name."
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; ``sys.argv`` stays as it is, so that a ddp relaunch repeats the whole line, trust included."""
        self.config = parser.parse_args(args)
        for key, text in refuse_words(self._sub("trainer")):
            path = (
                match[1] if (match := re.search(r"""class_path['"]?\s*:\s*['"]?([\w.]+)""", text)) else text
            )
            raise CommandError(
                f"{key}: {refusal(path, denying_import_path_entry(path) or '*', OneLineParser.retry)}"
            )

    def _sub(self, key: str) -> Any:
        """A value of the subcommand's config."""
        return self.config[self.config.subcommand].get(key)

    def _parse_ckpt_path(self) -> None:
        """Tells where the config differs from the checkpoint; the config is what runs."""
        path = str(self._resume_from(self.resume)) if self.resume else self._sub("ckpt_path")
        if not path or "://" in path or path in _CKPT_WORDS:
            return
        if not Path(path).exists():
            near = [str(file) for file in Path(path).parent.glob("*.ckpt")]
            raise CommandError(f"ckpt_path: there is no file {path}{close(path, near)}")
        if Path(path).is_file():  # a folder is a sharded checkpoint, which its strategy reads
            saved = load_checkpoint(path, lazy=True).get("hyper_parameters", {})
            for line in differences(saved, self._sub("model")):
                complain(f"{path}: {line} (the config is used)")

    def _add_instantiators(self) -> None:
        for key, base in (("model", LightningModule), ("data", LightningDataModule)):
            self.parser.add_instantiator(self._named(_InstantiatorFn(cli=self, key=key)), base)
        self.parser.add_instantiator(self._named(lambda class_type, *a, **k: class_type(*a, **k)), object)

    def _named(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """An instantiator whose errors name the class and its place in the config."""

        def instantiate(class_type: Any, *args: Any, applied_instantiation_links: dict, **kwargs: Any) -> Any:
            if isinstance(make, _InstantiatorFn):
                kwargs["applied_instantiation_links"] = applied_instantiation_links
            if self.launched:
                return make(class_type, *args, **kwargs)
            name = getattr(class_type, "__name__", str(class_type))
            key = find_class(self.config[self.subcommand], name) or name
            with one_line(f"{key} ({name}): "):
                return make(class_type, *args, **kwargs)

        return instantiate

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with the run's own logger where the user asked for none, and what every fit has."""
        config = self._get(self.config_init, "trainer")
        config["logger"] = self._logger(config["logger"])
        if self.subcommand == "fit":
            callbacks = config["callbacks"] or []
            callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
            extra = (
                [] if any(isinstance(callback, ExactResume) for callback in callbacks) else [ExactResume()]
            )
            config["callbacks"] = [*callbacks, *extra]
        with one_line("trainer: "):
            trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand == "fit":
            trainer.callbacks.append(self.interrupt)  # behind the checkpoints: its own holds their state
        return trainer

    def _logger(self, logger: Any) -> Any:
        if self.resume is None:
            return RunLogger(*self._folder()) if logger in (None, True) else logger
        run = Path(os.path.abspath(self.resume.run))
        first, *others = logger if isinstance(logger, list) else [logger]
        if first in (None, True) or isinstance(first, CSVLogger):
            prefix = first._prefix if isinstance(first, CSVLogger) else ""
            return [RunLogger(str(run.parent), "", run.name, prefix), *others]
        raise CommandError(
            f"--resume goes on in the folder of a CSV logger, and {type(first).__name__} has none: go on with "
            + command(
                "fit", "--config", str(self.resume.run / CONFIG_FILE), "--ckpt_path", "FILE", *self.trust
            )
        )

    def _folder(self) -> tuple[str, str]:
        """Where this run goes, as a logger's folder and name: below the run that it evaluates, or under runs/."""
        configs_given = [Path(str(file)) for file in self._sub("config") or [] if file is not None]
        if self.subcommand != "fit":
            checkpoint = Path(self._sub("ckpt_path") or "")
            for run in [checkpoint.parent.parent] * bool(checkpoint.name) + [c.parent for c in configs_given]:
                if (run / CONFIG_FILE).is_file() and (run / METRICS_FILE).is_file():
                    return os.path.abspath(run), str(self.subcommand)
        return os.path.abspath("runs"), configs.run_name(configs_given[0] if configs_given else None)

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet: `launch` runs it, when every error that is the user's has been said."""
        self.prepare()

    def prepare(self) -> None:
        """Refuses unsafe loads, and builds what the Trainer would build late, so that its errors come early."""
        if self._sub("weights_only") is False:
            raise CommandError(
                "weights_only: false is refused: zoo never unpickles a checkpoint, since that can run code. "
                "Leave the setting out, or load the file in Python if you trust it"
            )
        try_optimizers(self.config[self.subcommand].model)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["weights_only"] = True  # Lightning itself leaves http(s) paths unprotected
        if self.resume is not None:
            kwargs["ckpt_path"] = str(self._resume_from(self.resume))
        return kwargs

    def _resume_from(self, resume: Resume) -> Path:
        return resume.checkpoint or Path(self._sub("ckpt_path"))

    def launch(self) -> int:
        """Runs the verb. Errors from here on are the program's: they keep their traceback.

        Returns:
            The exit status: 0, or 128 and the signal's number after an interruption.
        """
        lock = self._take_folder()
        self.launched = True
        try:
            super()._run_subcommand(str(self.subcommand))
        except Interrupted as stop:
            # Lightning kills a run one of whose processes failed: the others have done what they should.
            if not self.trainer.is_global_zero:
                return 0
            self._tell_resume(f"{stop}; saved {shown(checkpoint_path(self.trainer))}")
            return 128 + stop.signum
        except SystemExit as stop:
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            if self.trainer.is_global_zero and self.interrupt.received:
                self._tell_resume("stopped at once, without saving")
            return 128 + (self.interrupt.received or signal.SIGINT)
        finally:
            if lock is not None:
                lock.release()
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            for line in summary(str(self.subcommand), self.trainer, self.model, self.trust):
                say(line)
        return 0

    def _take_folder(self) -> Lock | None:
        """Locks the folder of a fit; a resumed run's is cut back to its checkpoint."""
        trainer = self.trainer
        if self.subcommand != "fit" or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return None
        if self.resume is not None:
            truncate(self.resume.run, load_checkpoint(self._resume_from(self.resume), lazy=True))
            return self.resume.lock
        if not isinstance(trainer.logger, CSVLogger):
            return None
        folder = events.run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        return Lock(folder)

    def _tell_resume(self, text: str) -> None:
        complain(text)
        if isinstance(self.trainer.logger, CSVLogger):
            complain(
                f"go on with: {command('fit', '--resume', shown(events.run_folder(self.trainer)), *self.trust)}"
            )
