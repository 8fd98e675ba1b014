"""jsonargparse's messages in one line.

It reports a wrong value as a tree: every branch of every union on the way, a dozen lines with the cause in
the middle. `leaves` reads the tree by its indents, and `explain` keeps the leaf that lies deepest: the branch
that got furthest is the one that was meant.
"""

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo._cli.components import components
from zoo._cli.errors import close


@dataclass(frozen=True)
class Leaf:
    """One cause: the keys and classes that it lies in, what was wrong, and the value."""

    keys: tuple[str, ...]
    classes: tuple[str, ...]
    text: str
    value: str | None = None

    @property
    def depth(self) -> int:
        """How far into the config the parser got."""
        return len(self.keys) + len(self.classes)

    @property
    def key(self) -> str:
        """The place in the config, in the form that the command line takes too."""
        return ".init_args.".join(self.keys)

    @property
    def owner(self) -> str:
        """Name of the innermost class."""
        return self.classes[-1].rpartition(".")[2] if self.classes else ""


_KEY = re.compile(r'^Parser key "(.+?)":\s*(.*)$')
_CLASS = re.compile(r"^Problem with given class_path '(.+)':$")
_CALLABLE = re.compile(r"^Type .+? expects a function or a callable class: (.*)$")
_BUILT = re.compile(r"\.? ?Got value: Namespace\(class_path='(.+?)'.*$")
_TYPE = re.compile(
    r"^Expected an? (?:<class '(?:.*\.)?(\w+)'>|typing\.Literal\[(.*?)\])(?:\. Got value: (.*))?$"
)
_NESTED = re.compile(r"^NestedArg\(key='.*?', val='?(.*?)'?\)$")
_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value type:|Expected a path but|Subclass types expect"
    r"|a class path \(str\)|a dict |Not a valid subclass of"
)


def leaves(message: str) -> list[Leaf]:
    """The causes in a message of jsonargparse, in its order."""
    stack: list[tuple[int, str, str]] = []  # (indent, "key" or "class", name), outermost first
    found: list[Leaf] = []

    def read(indent: int, text: str) -> None:
        del stack[next((i for i, entry in enumerate(stack) if entry[0] >= indent), len(stack)) :]
        if match := _KEY.match(text):
            stack.append((indent, "key", match[1]))
            text = match[2]
        elif match := _CLASS.match(text):
            stack.append((indent, "class", match[1]))
            return
        elif match := _CALLABLE.match(text):
            if built := _BUILT.search(text):
                stack.append((indent, "class", built[1]))
            read(indent + 1, _BUILT.sub("", match[1]))
            return
        if not text or _NOISE.match(text):
            return
        if text.startswith("Given value: "):
            value = _BUILT.sub("", text.removeprefix("Given value: "))
            value = nested[1] if (nested := _NESTED.match(value)) else value
            found[:] = [leaf if leaf.value is not None else replace(leaf, value=value) for leaf in found]
            return
        keys, classes = (tuple(name for _, kind, name in stack if kind == k) for k in ("key", "class"))
        typed = _TYPE.match(text)
        found.append(Leaf(keys, classes, text, typed[3] if typed else None))

    for line in filter(str.strip, message.splitlines()):
        read(len(line) - len(line.lstrip()), line.strip().removeprefix("- "))
    return found


def explain(message: str, retry: str = "") -> str:
    r"""The one line that matters in a message of jsonargparse.

    Args:
        message: What the parser said.
        retry: The command that the user typed, for the advice that ends a refused import.

    >>> explain('Parser key "trainer.max_epochs":\n  Expected a <class \'int\'>. Got value: many')
    'trainer.max_epochs: expected int, got many'
    """
    found = leaves(message) if 'Parser key "' in message else []
    if not found:
        return message
    depth = max(leaf.depth for leaf in found)
    deepest = [leaf for leaf in found if leaf.depth == depth]
    # A type that does not match says less than anything else that a branch of the same depth has to say.
    best = next((leaf for leaf in deepest if not _TYPE.match(leaf.text)), deepest[0])
    where = f"{best.key}: "
    if match := re.search(r"Importing '(.+?)' is not allowed, denied by the '(.+?)' entry", best.text):
        return where + refusal(match[1], match[2], retry)
    if match := re.search(r"^Option '(.+?)' is not accepted", best.text):
        return _unknown_argument(best, match[1])
    if match := re.search(r"^module '(.+?)' has no attribute '(.+?)'", best.text):
        names = dir(sys.modules[match[1]]) if match[1] in sys.modules else []
        return f"{where}there is no {match[2]} in {match[1]}{close(match[2], names)}"
    if re.search(r"does not correspond to a subclass of (\w+)", best.text):
        return f"{where}{best.value} is no {best.text.split()[-1]}"
    if match := re.search(r"^Expected '(.+?)' to be a subclass of <class '(.+?)'>", best.text):
        return f"{where}{match[1]} is no {match[2]}"
    types = [match for leaf in deepest if (match := _TYPE.match(leaf.text))]
    if match := re.search(r"^Expected a dot import path string: (.+)$", best.text):
        if all(named[1] == "NoneType" for named in types):
            return where + unknown_class(match[1])
    elif not _TYPE.match(best.text):
        return where + best.text
    # All that is left is a value of another type; a number is meant where a union has a class as well.
    kinds = [{"NoneType": "null"}.get(named[1], named[1]) for named in types if named[1]]
    literals = [word.strip().strip("'") for named in types if named[2] for word in named[2].split(",")]
    wanted = (["one of " + ", ".join(dict.fromkeys(literals))] if literals else []) + list(
        dict.fromkeys(kinds)
    )
    value = next((leaf.value for leaf in deepest if leaf.value is not None), "a value of another type")
    of = f" (an argument of {best.owner})" if best.owner and len(best.classes) == len(best.keys) - 1 else ""
    tail = close(value, literals)
    return f"{where}expected {' or '.join(wanted)}, got {value}{of}{tail}"


def refusal(path: str, entry: str, retry: str) -> str:
    """Why a class is not imported, and the command that allows it where that makes sense.

    Args:
        path: The import path.
        entry: The entry of the deny-list that it falls under.
        retry: The command that the user typed.
    """
    package = path.split(".")[0]
    if entry != "*":
        return f"{path} is refused: configs and checkpoints never import {entry}"
    here = Path(package).is_dir() or Path(f"{package}.py").is_file()
    if not here and importlib.util.find_spec(package) is None:
        return f"{path}: there is no module named {package!r} here"
    return (
        f"{path} is not imported, since configs name parts of the zoo, torch.nn, torch.optim, torchmetrics "
        f"and Lightning only. If you trust {package}, run: {retry} --trust {package}"
    )


def unknown_class(name: str) -> str:
    """A short name that no imported class of the wanted kind has."""
    known = loaded_classes()
    if name in known:
        return f"{name} ({known[name]}) is of another kind than belongs here"
    return (
        f"no class is named {name!r}{close(name, known)} (short names are those of the zoo, Lightning and "
        "torch; any other class goes by its full path, my_module.MyClass)"
    )


def _unknown_argument(leaf: Leaf, option: str) -> str:
    where = ".init_args.".join((*leaf.keys, option))
    owner = _imported(leaf.classes[-1]) if leaf.classes else None
    choices = list(inspect.signature(owner).parameters) if owner is not None else []
    return f"{where}: {leaf.owner or 'it'} takes no argument {option!r}{close(option, choices)}"


def loaded_classes() -> dict[str, str]:
    """Short names to full paths of the classes a config may name by now: the zoo's first, then all others."""
    names = {component.name: component.path for component in components()}
    if "lightning.pytorch" not in sys.modules:
        return names
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    for child in _subclasses(LightningModule, LightningDataModule, Callback, Optimizer, LRScheduler, Module):
        if not child.__name__.startswith("_"):
            names.setdefault(child.__name__, f"{child.__module__}.{child.__name__}")
    return names


def _subclasses(*bases: type) -> Iterator[type]:
    todo, seen = list(bases), set(bases)
    while todo:
        children: list[type] = type.__subclasses__(todo.pop())
        for child in children:
            if child not in seen:
                seen.add(child)
                todo.append(child)
                yield child


def _imported(path: str) -> Any | None:
    """The class at ``path`` if its module is imported already; nothing is imported for an error message."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)
