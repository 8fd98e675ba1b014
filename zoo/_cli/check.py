"""``zoo check CONFIG...``: parses configs and builds their parts, without data or memory for weights."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator, XLAAccelerator
from lightning.pytorch.utilities.model_helpers import is_overridden

from zoo._cli.bounds import few_modules
from zoo._cli.errors import CommandError, print_error, print_out
from zoo._cli.noise import MACHINE, quiet
from zoo._cli.policy import import_policy
from zoo._cli.trainer_cli import ZooCLI, build

USAGE = """usage: zoo check CONFIG... [--trust PKG]          each config by itself
       zoo check --config A --config B [--KEY VALUE]  one run of a stack of configs, as `zoo fit` takes them
A config is a file, or the name of a bundled one."""


def run(verb: str, args: list[str], argv: Sequence[str], trusted: Sequence[str]) -> int:
    """Checks each config by itself, or a stack of configs as one run, and prints a line about each check.

    Args:
        verb: check.
        args: Files or names of bundled configs; or the words that `zoo fit` takes.
        argv: The whole line, for advice.
        trusted: Packages that configs may name.

    Returns:
        0 if all are sound, else 2.
    """
    if not args or args[0] in ("-h", "--help"):
        print_out(USAGE)
        return 0 if args else 2
    code = 0
    with import_policy(trusted), quiet(MACHINE):
        for name, line in lines(args):
            try:
                cli = build(partial(CheckCLI, ["fit", *line]), argv)
            except CommandError as error:
                print_error(f"{name}: {str(error).removeprefix(f'{name}: ')}")
                code = 2
            else:
                print_out(f"{name}: ok, {cli.found}")
    return code


def lines(args: Sequence[str]) -> list[tuple[str, list[str]]]:
    """What is checked: a name for each, and the words that `zoo fit` would take.

    Raises:
        CommandError: bare names and ``--config`` are mixed, or there are settings without ``--config``.

    >>> lines(["a", "b"])
    [('a', ['--config', 'a']), ('b', ['--config', 'b'])]
    >>> lines(["--config", "a", "--config=b", "--model.lr", "1"])
    [('a + b', ['--config', 'a', '--config=b', '--model.lr', '1'])]
    """
    flags = [word for word in args if word.startswith("-")]
    if not flags:
        return [(config, ["--config", config]) for config in args]
    named = [word.partition("=")[0] in ("--config", "-c") for word in args]
    if not any(named):
        raise CommandError(f"zoo check takes no {flags[0]} without --config. {USAGE}")
    if not args[0].startswith("-"):
        raise CommandError(
            f"zoo check takes either bare configs or --config, and got both: {args[0]}, --config"
        )
    stack = [
        word.partition("=")[2] or args[number + 1 : number + 2][0]
        for number, word in enumerate(args)
        if named[number] and ("=" in word or number + 1 < len(args))
    ]
    return [(" + ".join(stack), list(args))]


class CheckCLI(ZooCLI):
    """Builds model, data and Trainer as a fit does, the model without memory, and runs nothing."""

    found = ""

    def _set_seed(self) -> None:
        """Nothing: a check draws nothing, and leaves this process's generators alone."""

    def instantiate_classes(self) -> None:
        """Builds everything on the meta device."""
        with torch.device("meta"):
            super().instantiate_classes()
            self.model.trainer = self.trainer
            if is_overridden("configure_model", self.model):
                with few_modules():
                    self.model.configure_model()
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        data = f" on {type(self.datamodule).__name__}" if self.datamodule is not None else ""
        self.found = f"{type(self.model).__name__}{data}, {parameters:,} parameters{self.found}"

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The config's Trainer; for one CPU where the config asks for devices that this machine lacks."""
        config = self._get(self.config_init, "trainer")
        wanted = str(config["accelerator"])
        available = {"cuda": CUDAAccelerator, "mps": MPSAccelerator, "tpu": XLAAccelerator}
        kinds = ("cuda", "mps") if wanted == "gpu" else (wanted,)
        if all(kind in available and not available[kind].is_available() for kind in kinds):
            one_cpu = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
            for key, value in (one_cpu | {"precision": None, "plugins": None}).items():
                config[key] = value
            self.found = f" (its Trainer for a CPU: this machine has no {wanted})"
        return super().instantiate_trainer(**kwargs)
