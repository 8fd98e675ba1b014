"""Errors of the command line: one line on stderr that says where, what, why and what to do, and exit status 2.

jsonargparse reports a wrong value as a tree: every branch of every union on the way, a dozen lines with the
cause in the middle. `explain` reads that tree and keeps the deepest leaf, the one that got furthest.
``ZOO_DEBUG=1`` shows the traceback instead.
"""

import difflib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


class CommandError(SystemExit):
    """A mistake in what the user asked for: ``zoo`` prints its one line and ends with status 2.

    A `SystemExit`, since jsonargparse takes any `Exception` for a branch of a union that does not fit, and
    goes on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = " ".join(str(message).split())

    def __str__(self) -> str:
        return self.message


def debugging() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get("ZOO_DEBUG", "") not in ("", "0")


def say(text: str = "") -> None:
    """Writes a line for the user to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Writes a line for the user to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def close(name: str, choices: Iterable[str]) -> str:
    """A tail for a message: the choices that look like ``name``, best first, or nothing.

    >>> close("quickstrat", ["quickstart", "flow/digits"])
    '; did you mean quickstart?'
    """
    by_key: dict[str, str] = {}
    for choice in choices:
        by_key.setdefault(choice.lower(), choice)
    found = difflib.get_close_matches(name.lower(), by_key, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(by_key[key] for key in found)}?" if found else ""


@dataclass(frozen=True)
class Leaf:
    """One cause in the tree of a parsing error: where it stands, in which classes, and what was wrong."""

    keys: tuple[str, ...]
    classes: tuple[str, ...]
    text: str
    value: str | None = None

    @property
    def key(self) -> str:
        """The place in the config, in the form that the command line takes too."""
        return ".init_args.".join(self.keys)


_KEY = re.compile(r'^Parser key "(?P<key>.+?)":\s*(?P<rest>.*)$')
_CLASS = re.compile(r"^Problem with given class_path '(?P<path>.+)':$")
_EXPECTED = re.compile(r"^Expected an? <class '(?P<type>.+?)'>(?:\. Got value: (?P<value>.*))?$")
_NESTED = re.compile(r"^NestedArg\(key='.*?', val=(?P<value>.*)\)$")
_NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Expected a path but",
    "Subclass types expect one of",
    "a class path (str)",
    "a dict ",
)
_NAMES = {"NoneType": "null", "builtins.NoneType": "null"}


def leaves(message: str) -> Iterator[Leaf]:
    """The causes in a message of jsonargparse, in its order."""
    stack: list[tuple[int, str, str]] = []  # (indent, "key" or "class", name)
    pending: list[Leaf] = []
    for raw in message.replace("expects a function or a callable class: ", "\n").splitlines():
        line = raw.strip().removeprefix("- ")
        indent = len(raw) - len(raw.lstrip())
        if not line or (line.startswith("Type typing.") and not line.endswith(":")):
            continue
        if match := _KEY.match(line):
            # A key that came in the middle of a line has lost its indent: it stands below what is on the stack.
            indent = indent if raw.startswith((" ", "Parser")) and (indent or not stack) else stack[-1][0] + 1
            stack = [entry for entry in stack if entry[0] < indent] + [(indent, "key", match["key"])]
            line = match["rest"]
            if not line:
                continue
        elif match := _CLASS.match(line):
            stack = [entry for entry in stack if entry[0] < indent or entry[1] == "key"]
            stack.append((indent, "class", match["path"]))
            continue
        keys = tuple(name for _, kind, name in stack if kind == "key")
        classes = tuple(name for _, kind, name in stack if kind == "class")
        if line.startswith("Given value: "):
            value = line.removeprefix("Given value: ")
            if nested := _NESTED.match(value):
                value = nested["value"]
            pending = [
                leaf if leaf.value is not None else Leaf(leaf.keys, leaf.classes, leaf.text, value)
                for leaf in pending
            ]
        elif not line.startswith(_NOISE):
            value = match["value"] if (match := _EXPECTED.match(line)) else None
            pending.append(Leaf(keys, classes, line, value))
    yield from pending


def explain(message: str, retry: str = "") -> str:
    """The one line that matters in a message of jsonargparse.

    Args:
        message: What the parser said.
        retry: The command that the user typed, for the advice that ends a refused import.
    """
    found = [leaf for leaf in leaves(message)]
    if not found:
        return message
    depth = max(len(leaf.keys) + len(leaf.classes) for leaf in found)
    deepest = [leaf for leaf in found if len(leaf.keys) + len(leaf.classes) == depth]
    best = next((leaf for leaf in deepest if not _EXPECTED.match(leaf.text)), deepest[0])
    where = f"{best.key}: " if best.key else ""
    if denied := re.search(r"Importing '(.+?)' is not allowed, denied by the '(.+?)' entry", best.text):
        return where + refusal(denied[1], denied[2], retry)
    if unknown := re.search(r"^Expected a dot import path string: (.+)$", best.text):
        expected = [m["type"] for leaf in deepest if (m := _EXPECTED.match(leaf.text))]
        if expected and expected[0] not in _NAMES:  # a union such as float or Tensor: a number was meant
            return _wrong_type(where, deepest, found)
        return where + unknown_class(unknown[1], best.key)
    if option := re.search(r"^Option '(.+?)' is not accepted", best.text):
        return _unknown_option(best, option[1])
    if _EXPECTED.match(best.text):
        return _wrong_type(where, deepest, found)
    return where + best.text


def refusal(path: str, entry: str, retry: str) -> str:
    """Why a class is not imported, and the command that allows it where that makes sense."""
    package = path.split(".")[0]
    if entry != "*":
        return f"{path} is refused: configs and checkpoints never import {entry}"
    if (
        importlib.util.find_spec(package) is None
        and not os.path.exists(package)
        and not os.path.exists(f"{package}.py")
    ):
        return f"{path}: there is no module named {package!r}{close(path, _loaded_classes())}"
    return (
        f"{path} is not imported, since a config may name only the zoo, torch.nn, torch.optim, torchmetrics and "
        f"Lightning's own parts. If you trust {package}, run: {retry} --trust {package}"
    )


def unknown_class(name: str, key: str) -> str:
    """A short name that no imported class has."""
    choices = {path.rsplit(".", 1)[-1] for path in _loaded_classes()}
    return (
        f"no class is named {name!r}{close(name, choices)} (short names are those of the zoo, of Lightning and of "
        "torch; any other class goes by its full path, my_module.MyClass)"
    )


def _unknown_option(leaf: Leaf, option: str) -> str:
    where, _, name = option.rpartition(".")
    key = ".init_args.".join((*leaf.keys, option)) if leaf.keys else option
    if not leaf.classes:
        return f"{key}: there is no such setting"
    owner = _find(leaf.classes[-1])
    choices = list(inspect.signature(owner).parameters) if owner is not None else []
    class_name = leaf.classes[-1].rsplit(".", 1)[-1]
    return f"{key}: {class_name} takes no argument {name or where!r}{close(name, choices)}"


def _wrong_type(where: str, deepest: list[Leaf], found: list[Leaf]) -> str:
    types = [m["type"].rsplit(".", 1)[-1] for leaf in deepest if (m := _EXPECTED.match(leaf.text))]
    names = list(dict.fromkeys(_NAMES.get(name, name) for name in types))
    value = next((leaf.value for leaf in (*deepest, *found) if leaf.value is not None), "?")
    return f"{where}expected {' or '.join(names)}, got {value}"


def _loaded_classes() -> list[str]:
    """Full paths of the classes a config can name by their short names: those that are imported by now."""
    torch_nn = sys.modules.get("torch.nn")
    if torch_nn is None:
        return []
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    bases = (LightningModule, LightningDataModule, Callback, torch_nn.Module, Optimizer, LRScheduler)
    names: set[str] = set()
    todo: list[type] = list(bases)
    while todo:
        for child in todo.pop().__subclasses__():
            path = f"{child.__module__}.{child.__name__}"
            if path not in names and not child.__name__.startswith("_"):
                names.add(path)
                todo.append(child)
    return sorted(names)


def _find(path: str) -> Any | None:
    """The class at ``path`` if its module is imported already; nothing is imported for an error message."""
    module, _, name = path.rpartition(".")
    while module and module not in sys.modules:
        module = module.rpartition(".")[0]
    return getattr(sys.modules.get(module), name, None)
