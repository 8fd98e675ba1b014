"""``zoo fit|validate|test|predict``: LightningCLI in subclass mode, with the zoo's guarantees around it.

Differences from a bare LightningCLI: bundled configs go by name; classes come from the allow-list only; the
config wins over a checkpoint's hyperparameters; every load asks for ``weights_only=True``; an error before the
Trainer starts is one line; a run has a folder ``runs/<config>/version_N`` of its own.
"""

import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse._actions import ActionConfigFile
from jsonargparse._common import denying_import_path_entry
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, _InstantiatorFn
from lightning.fabric.utilities.exceptions import MisconfigurationException

from zoo._cli import configs
from zoo._cli.components import public_names
from zoo._cli.errors import CommandError, close, complain
from zoo._cli.explain import refusal
from zoo._cli.logger import RunLogger
from zoo._cli.noise import quiet
from zoo._cli.parser import OneLineParser
from zoo._cli.policy import import_policy
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
    with import_policy(trusted), quiet():
        cli = build([verb, *args], words)
        cli.launch()
    return 0


def build(args: list[str], words: Sequence[str], kind: type["ZooCLI"] | None = None) -> "ZooCLI":
    """Parses and builds everything, up to the call of the Trainer.

    Raises:
        CommandError: anything that the user can put right.
    """
    import_components()
    OneLineParser.retry = command(words)
    with one_line():
        return (kind or ZooCLI)(args)


def import_components() -> None:
    """Imports every public class, so that configs may use short names."""
    for names in public_names().values():
        for module in names.values():
            importlib.import_module(module)


def command(words: Sequence[str]) -> str:
    """The line that the user typed, to be typed again."""
    program = "python -m zoo" if Path(sys.argv[0]).name == "__main__.py" else "zoo"
    return f"{program} {shlex.join(words)}"


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

    def __init__(self, args: list[str]) -> None:
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
        path = self._sub("ckpt_path")
        if path and Path(path).is_file():
            for line in differences(
                load_checkpoint(path, lazy=True).get("hyper_parameters", {}), self._sub("model")
            ):
                complain(f"{path}: {line}")

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
        """The Trainer, with the run's own logger where the user asked for none in particular."""
        trainer = self._get(self.config_init, "trainer")
        if trainer["logger"] in (None, True):
            trainer["logger"] = RunLogger("runs", name=self.run_name)
        if self.subcommand == "fit" and not any(
            isinstance(c, ExactResume) for c in _as_list(trainer["callbacks"])
        ):
            trainer["callbacks"] = [*_as_list(trainer["callbacks"]), ExactResume()]
        with one_line("trainer: "):
            return super().instantiate_trainer(**kwargs)

    @property
    def run_name(self) -> str:
        """The folder of this config's runs, after the first ``--config``."""
        files = [Path(str(file)) for file in self._sub("config") or [] if file is not None]
        return configs.run_name(files[0] if files else None)

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet: `launch` runs it, when every error that is the user's has been said."""
        self.prepare()

    def prepare(self) -> None:
        """Builds what the Trainer would build late, so that its errors come early."""
        try_optimizers(self.config[self.subcommand].model)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is False:
            raise CommandError(
                "weights_only: false is refused: zoo never unpickles a checkpoint, since that can run code; leave the "
                "setting out, or load such a file in Python if you trust it"
            )
        return kwargs | {"weights_only": True}  # Lightning itself leaves http(s) paths unprotected

    def launch(self) -> None:
        """Runs the verb. Errors from here on are the program's: they keep their traceback."""
        self.launched = True
        super()._run_subcommand(self.subcommand)


def _as_list(callbacks: Any) -> list[Any]:
    return callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]
