"""What is wrong with a value of a config, in one line: the key that the parser got stuck at, and why.

`zoo._cli.trace` knows the key, its value and its type. The rest is asked of them here: is a class named that
may not be imported, that does not exist, that is of another kind? If none of these, the value is of another
type.
"""

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from jsonargparse._common import ImportDenied, denying_import_path_entry
from jsonargparse._util import import_object

from zoo._cli.components import components
from zoo._cli.errors import error_text, shorten, suggest
from zoo._cli.refusal import Line, refusal
from zoo._cli.trace import Failure, class_path, given, name, place, plain


def explain(failure: Failure, line: Line) -> str:
    """The one line about a failure.

    Args:
        failure: Where the parser got stuck.
        line: The command that was typed, for the advice that ends a refused import.
    """
    if failure.said:
        return _arguments(failure)
    step = failure.steps[-1]
    value = plain(given(step.value))
    for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
        if problem := class_problem(item, step.typehint, line):
            number = "" if index is None else f"[{index + (step.offset or 0)}]"
            return f"{failure.place}{number}: {problem}"
    of = f" (an argument of {name(step.owner)})" if step.owner and ") ." not in failure.place else ""
    literals = [str(word) for word in _literals(step.typehint)]
    tail = suggest(value, literals) if isinstance(value, str) else ""
    return f"{failure.place}: expected {wanted(step.typehint)}, got {shorten(str(value))}{of}{tail}"


def _arguments(failure: Failure) -> str:
    """What is wrong with the arguments of a class as a whole."""
    where, owner = place(failure.steps, then=failure.owner), name(failure.owner)
    if match := re.search(r"^(?:Option '|unrecognized arguments: --)(.+?)(?:[='\s]|$)", failure.said):
        inside = f"{where}.{match[1]}" if where.endswith(")") else f"{where}.init_args.{match[1]}"
        choices = list(inspect.signature(failure.owner).parameters)
        return f"{inside}: {owner} takes no argument {match[1]!r}{suggest(match[1], choices)}"
    if match := re.search(r"^the following arguments are required: (.+)", failure.said):
        where = where if where.endswith(")") else f"{where} ({owner})"
        return f"{where}: missing {match[1].replace(', ', ' and ')} (`zoo show {owner}`)"
    return f"{where}: {failure.said}"


def _branches(typehint: Any) -> Iterator[Any]:
    """The types that a type allows, those inside a list of a class included."""
    origin = get_origin(typehint)
    if origin is Annotated:
        yield from _branches(get_args(typehint)[0])
    elif origin in (Union, types.UnionType):
        for branch in get_args(typehint):
            yield from _branches(branch)
    elif name(typehint) != "Tensor":  # which no config can give
        yield typehint


def _literals(typehint: Any) -> list[Any]:
    return [word for b in _branches(typehint) if get_origin(b) is Literal for word in get_args(b)]


def wanted(typehint: Any) -> str:
    """A type in words.

    >>> wanted(int | None), wanted(Literal["a", "b"] | float), wanted(list[str])
    ('int or null', 'one of a, b or float', 'list of str')
    """
    literals = _literals(typehint)
    words = ["one of " + ", ".join(str(word) for word in dict.fromkeys(literals))] if literals else []
    words += [_word(branch) for branch in _branches(typehint) if get_origin(branch) is not Literal]
    return " or ".join(dict.fromkeys(words))


def _word(typehint: Any) -> str:
    origin, inner = get_origin(typehint), get_args(typehint)
    if typehint in (type(None), None):
        return "null"
    if origin is not None and _is_callable(origin):
        made = _made(typehint)
        return (
            f"a function or class that makes {'an' if name(made)[0] in 'AEIO' else 'a'} {name(made)}"
            if made
            else "a function"
        )
    if isinstance(origin, type) and inner and issubclass(origin, list | set | frozenset | types.GenericAlias):
        return f"{origin.__name__} of {wanted(inner[0])}"
    return name(origin or typehint)


def _is_callable(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Callable)  # type: ignore[arg-type]


def _made(typehint: Any) -> Any:
    """The class that a ``Callable[..., Class]`` makes."""
    inner = get_args(typehint)
    return inner[-1] if inner and isinstance(inner[-1], type) else None


def _classes(typehint: Any) -> list[type]:
    """The classes of which a config may name a subclass where this type belongs; `object`: any function."""
    found: list[type] = []
    for branch in _branches(typehint):
        origin, inner = get_origin(branch), get_args(branch)
        if origin is not None and _is_callable(origin):
            found.append(_made(branch) or object)
        elif inner and isinstance(origin, type):
            found += [cls for part in inner if part is not Ellipsis for cls in _classes(part)]
        elif isinstance(branch, type) and branch.__module__ not in ("builtins", "datetime", "pathlib"):
            found.append(branch)
    return found


def class_problem(item: Any, typehint: Any, line: Line) -> str | None:
    """What is wrong with the class that an item names; None if nothing is, or if it names none."""
    classes = _classes(typehint)
    path = class_path(item)
    if not classes or (isinstance(item, dict) and "class_path" not in item):
        return None
    if not path:
        named = isinstance(item, dict)
        return (
            f"expected the path of a class as class_path, got {shorten(str(item['class_path']))}"
            if named
            else None
        )
    if "." not in path:
        words = any(branch in (str, int, float, bool) for branch in _branches(typehint))
        fits = any(
            path in (child.__name__ for child in (base, *_subclasses(base)))
            for base in classes
            if base is not object
        )
        return None if words or fits else unknown_class(path)
    if not all(part.isidentifier() for part in path.split(".")):
        return f"{shorten(path)} is not a path of a class (zoo.flow.MeanFlow is one)"
    if entry := denying_import_path_entry(path):
        return refusal(path, entry, line)
    try:
        found = import_object(path)
    except ImportDenied:  # of where it is defined, not of where it is named
        return f"{path} is refused: configs and checkpoints never import what it stands for"
    except (ModuleNotFoundError, AttributeError):
        module, _, last = path.rpartition(".")
        names = dir(sys.modules[module]) if module in sys.modules else []
        return f"there is no {last} in {module}{suggest(last, names)}"
    except Exception as error:
        return f"{path} cannot be imported: {error_text(error)}"
    kinds = [kind for kind in classes if kind is not object]
    if len(kinds) < len(classes) or not isinstance(found, type) or issubclass(found, tuple(kinds)):
        return None
    wanted_kinds = " or ".join(kind.__name__ for kind in kinds)
    return f"{path} is not {'an' if wanted_kinds[0] in 'AEIOU' else 'a'} {wanted_kinds}"


def unknown_class(name: str) -> str:
    """A short name that no imported class of the wanted kind has."""
    known = loaded_classes()
    short = shorten(name)
    if name in known:
        return f"{name} ({known[name]}) is of another kind than belongs here"
    return (
        f"no class is named {short!r}{suggest(name, known)} (short names are those of the zoo, Lightning and "
        "torch; any other class goes by its full path, my_module.MyClass)"
    )


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
