"""What a config or a checkpoint may import: a strict allow-list.

jsonargparse imports a ``class_path`` before it looks at its type, so naming a module runs it. The policy is
checked for the path that is written and for the place where the object is defined, so a re-export opens
nothing. More is allowed only by who runs the program, never by a file.
"""

import os
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import zoo

ALLOWED = (
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
VARIABLE = "ZOO_TRUST"  # names more packages, separated by commas


def trusted_packages() -> list[str]:
    """The packages that the environment trusts."""
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def denied_modules() -> list[str]:
    """The parts of the zoo that are commands, not components: they act when they are called."""
    commands = [
        f"zoo.{info.name}.commands"
        for info in pkgutil.iter_modules(zoo.__path__)
        if info.ispkg and any((Path(root) / info.name / "commands.py").is_file() for root in zoo.__path__)
    ]
    return ["zoo.cli", "zoo._cli", "zoo.__main__", *commands]


@contextmanager
def allowed_imports(trusted: Sequence[str], keep: bool = False) -> Iterator[None]:
    """Within the block, jsonargparse imports the allow-list and ``trusted`` only, and reads no remote config.

    Args:
        trusted: Packages, or modules, that may be imported too.
        keep: Leave a policy that is in force as it is.
    """
    import jsonargparse
    from jsonargparse import _common, _optionals

    if keep and _common.parsing_settings.get("import_path_allowlist"):
        yield
        return
    # jsonargparse has setters only; the program around must find its own policy as it was.
    before, mode = dict(_common.parsing_settings), _optionals._config_read_mode
    try:
        jsonargparse.set_parsing_settings(
            import_path_denylist=["*", *denied_modules()],
            import_path_allowlist=[*ALLOWED, *trusted],
            instantiate_subclass_spec_in_any=False,
            config_read_mode_fsspec_enabled=False,
        )
        yield
    finally:
        _common.parsing_settings.clear()
        _common.parsing_settings.update(before)
        _optionals._config_read_mode = mode
