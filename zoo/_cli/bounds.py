"""What a config may ask of the parser: no cycles, and bounds on size, depth and what aliases repeat.

YAML lets a file of some hundred bytes stand for 10^9 values (aliases of aliases), or for a value that
contains itself; the parser's own recursion ends in a stack overflow. `refuse_excess` reads the text as a
stream of events, before anything is built of it, and keeps count. It also refuses what YAML permits and no
config means: a key that stands twice, a key that is a list, and tags, which ask for Python objects.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zoo._cli.errors import CommandError, shorten

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000  # with every alias counted as what it repeats
MAX_DEPTH = 64  # collections inside each other
MAX_MODULES = 10_000  # that the classes of a config may build; LLaMA of 405 billion parameters has 2,000

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML has it


@dataclass
class _Open:
    """A collection that has not ended: its anchor, the values before it, and its keys if it is a mapping."""

    anchor: str | None
    before: int
    keys: set[str] | None
    at_key: bool = True
    height: int = field(default=1)  # of what it holds and itself


def refuse_excess(text: str) -> None:
    """Goes through the events of a YAML text.

    Raises:
        yaml.MarkedYAMLError: the text is not YAML, or asks for too much; with the line.

    >>> refuse_excess("a: &a [*a]")
    Traceback (most recent call last):
    yaml.error.MarkedYAMLError: &a contains itself
      in "<unicode string>", line 1, column 8
    """
    if len(text) > MAX_BYTES:
        raise yaml.MarkedYAMLError(
            problem=f"{len(text):,} characters, and a config has {MAX_BYTES:,} at most"
        )
    values = 0
    inside: list[_Open] = []
    anchors: dict[str, tuple[int, int]] = {}  # values and height of what has ended
    for event in yaml.parse(text, Loader=_PARSER):
        ended = isinstance(event, yaml.CollectionEndEvent)
        if not (ended or isinstance(event, yaml.NodeEvent)):
            continue  # the marks of streams and documents
        height = 0
        if ended:
            done = inside.pop()
            height = done.height
            if done.anchor:
                anchors[done.anchor] = (values - done.before, height)
        else:
            if inside:
                _check_key(inside[-1], event)
            if getattr(event, "tag", None) not in (None, "!", "tag:yaml.org,2002:str"):
                raise _problem(event, f"tags such as {event.tag} are refused: configs hold plain values")
            if isinstance(event, yaml.AliasEvent):
                if any(collection.anchor == event.anchor for collection in inside):
                    raise _problem(event, f"&{event.anchor} contains itself")
                size, height = anchors.get(event.anchor, (1, 0))
                values += size
            elif isinstance(event, yaml.ScalarEvent):
                values += 1
                if event.anchor:
                    anchors[event.anchor] = (1, 0)
            else:
                keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
                inside.append(_Open(event.anchor, values, keys))
                values += 1
        if values > MAX_VALUES:
            raise _problem(event, f"more than {MAX_VALUES:,} values (aliases count as what they repeat)")
        if len(inside) + height > MAX_DEPTH:
            raise _problem(event, f"more than {MAX_DEPTH} levels inside each other")
        if inside and height:
            inside[-1].height = max(inside[-1].height, 1 + height)


def _check_key(parent: _Open, event: Any) -> None:
    """Takes turns between keys and values of a mapping.

    Raises:
        yaml.MarkedYAMLError: a key is a collection, or stands twice.
    """
    if parent.keys is None:
        return
    if parent.at_key and isinstance(event, yaml.CollectionStartEvent):
        raise _problem(event, "a list or mapping stands where the name of a setting is expected")
    if parent.at_key and isinstance(event, yaml.ScalarEvent):
        if event.value in parent.keys and event.value != "<<":
            raise _problem(event, f"{event.value!r} stands twice, and only one of them could count")
        parent.keys.add(event.value)
    parent.at_key = not parent.at_key


def _problem(event: Any, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=event.start_mark)


def tell(error: Exception) -> str:
    """An error of a YAML loader in one line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)


def read_config(path: Path) -> str:
    """The text of a config file.

    Raises:
        CommandError: it is too large, no text, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise CommandError(f"{path} is not a config: a config has {MAX_BYTES:,} bytes at most")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not a config: byte {error.start} is not of UTF-8 text") from error
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error


def load_config(path: Path) -> Any:
    """What a config file holds, as dicts, lists and plain values.

    Raises:
        CommandError: it is not a config.
    """
    text = read_config(path)
    try:
        refuse_excess(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise CommandError(f"{path}: {tell(error)}") from error


def refuse_processes(trainer: Any) -> None:
    """Refuses a Trainer that would start more processes on this machine than it can hold.

    Raises:
        CommandError: it has more devices than the bound.
    """
    devices, bound = str(trainer.get("devices")), max(64, 4 * (os.cpu_count() or 1))
    if devices.isdigit() and int(devices) > bound:
        raise CommandError(
            f"trainer.devices: {shorten(devices)} would start as many processes on this machine, and the "
            f"bound is {bound} (4 a core, and at least 64)"
        )


@contextmanager
def few_modules() -> Iterator[None]:
    """Within the block, modules are built up to the bound: a mistyped depth would fill the memory, slowly.

    Raises:
        CommandError: more than `MAX_MODULES` were put into others.
    """
    from torch.nn.modules.module import register_module_module_registration_hook

    built = 0

    def count(parent: Any, name: str, child: Any) -> None:
        nonlocal built
        built += 1
        if built > MAX_MODULES:
            raise CommandError(
                f"model: a {type(parent).__name__} and what is around it have more than {MAX_MODULES:,} "
                "modules, which is the bound: is a depth, a number of layers or of experts mistyped?"
            )

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def bounded() -> Iterator[None]:
    """Within the block, jsonargparse reads YAML under these bounds: of files and of words of the line."""
    from jsonargparse import _loaders_dumpers

    module: Any = _loaders_dumpers

    class BoundedLoader(module.get_yaml_default_loader()):  # type: ignore[misc]
        def __init__(self, stream: str) -> None:
            refuse_excess(stream)
            super().__init__(stream)

        def get_single_data(self) -> Any:
            try:
                return super().get_single_data()
            except ValueError as error:  # a number of thousands of digits
                raise yaml.MarkedYAMLError(problem=str(error).partition(";")[0]) from error

    before = module.yaml_default_loader
    # A public `set_loader` exists, and is not asked where a single value is read.
    module.yaml_default_loader = BoundedLoader
    try:
        yield
    finally:
        module.yaml_default_loader = before
