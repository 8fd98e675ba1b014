"""Where in a config the parser got stuck: the keys on the way, with their values and types.

jsonargparse reports a wrong value as text: every branch of every union on the way. `Trace` watches the values
being checked instead. Of all failures it keeps the deepest, since the branch of a union that got furthest is
the one that was meant; a failure inside a key whose value is accepted in the end is none.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace
from jsonargparse._util import NestedArg


@dataclass(frozen=True)
class Step:
    """A key whose value was being checked.

    Attributes:
        key: Its name in the class, or in the whole config.
        value: What was given.
        typehint: What belongs there.
        owner: The class or function whose argument it is; None for the config itself.
        offset: Items that stand before ``value``, where it is appended to a list.
    """

    key: str
    value: Any
    typehint: Any = None
    owner: Any = None
    offset: int | None = None


@dataclass(frozen=True)
class Failure:
    """The way to what was wrong, outermost key first; what a class's parser said of all its arguments."""

    steps: tuple[Step, ...]
    owner: Any = None
    said: str = ""

    @property
    def depth(self) -> int:
        """How far the parser got."""
        return len(self.steps) + bool(self.said)

    @property
    def place(self) -> str:
        """The last key's place in the config."""
        return place(self.steps)


class Trace:
    """The checks that are going on, and the deepest failure so far."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.owners: list[Any] = [None]
        self.failure: Failure | None = None

    @contextmanager
    def inside(self, owner: Any) -> Iterator[None]:
        """The arguments of a class are parsed."""
        self.owners.append(owner)
        try:
            yield
        finally:
            self.owners.pop()

    @contextmanager
    def at(self, key: str, value: Any, typehint: Any, offset: int | None = None) -> Iterator[None]:
        """The value of a key is checked."""
        before = self.failure
        self.steps.append(Step(key, value, typehint, self.owners[-1], offset))
        try:
            yield
        except Exception:
            self._keep(Failure(tuple(self.steps)))
            raise
        else:
            self.failure = before
        finally:
            self.steps.pop()

    def keep_message(self, owner: Any, text: str) -> None:
        """The parser of a class says what is wrong with its arguments as a whole."""
        self._keep(Failure(tuple(self.steps), owner, text))

    def _keep(self, failure: Failure) -> None:
        if self.failure is None or failure.depth > self.failure.depth:
            self.failure = failure


def place(steps: tuple[Step, ...], *, then: Any = None) -> str:
    """The place of the last key: ``model.init_args.width``, ``trainer.callbacks[4] (SampleReport).steps``.

    Args:
        steps: The keys on the way.
        then: The class at the last key that is meant, which tells items of a list apart.
    """
    text = ""
    for number, step in enumerate(steps):
        text += step.key
        child = steps[number + 1] if number + 1 < len(steps) else None
        owner = child.owner if child else then
        if owner is None:
            continue
        index = _index(step, owner, child)
        text += f"[{index}] ({name(owner)})." if index is not None else ".init_args."
    return text if then is None else text.removesuffix(".").removesuffix(".init_args")


def _index(step: Step, owner: Any, child: Step | None) -> int | None:
    """Which item of a list is meant, by its class and by the argument that was being checked."""
    if not isinstance(step.value, list):
        return step.offset
    fitting = [n for n, item in enumerate(step.value) if class_path(item).rpartition(".")[2] == name(owner)]
    exact = [n for n in fitting if child and _argument(step.value[n], child.key) is child.value]
    exact = exact or [n for n in fitting if child and _argument(step.value[n], child.key) == child.value]
    found = exact or fitting
    return found[0] + (step.offset or 0) if found else None


def _argument(item: Any, key: str) -> Any:
    arguments = item.get("init_args") if isinstance(item, dict | Namespace) else None
    return arguments.get(key) if isinstance(arguments, dict | Namespace) else None


def class_path(item: Any) -> str:
    """The path that a spec names, or that a word may be."""
    path = item.get("class_path") if isinstance(item, dict | Namespace) else item
    return path if isinstance(path, str) else ""


def name(owner: Any) -> str:
    """The name of a class or function."""
    return getattr(owner, "__name__", str(owner))


def given(value: Any) -> Any:
    """A value as the user gave it."""
    return value.val if isinstance(value, NestedArg) else value


def plain(value: Any) -> Any:
    """A config as dicts, lists and leaves."""
    if isinstance(value, Namespace):
        return {key: plain(item) for key, item in vars(value).items()}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
