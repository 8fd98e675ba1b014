"""What the zoo holds, read from its sources by `ast`: `zoo list` and `zoo show` import none of it.

Constructors are explicit and typed, so the source says it all: the public names of each package stand in its
``__init__.py`` (`zoo._lazy.table`), a class's kind follows from its bases, and its arguments from
``__init__``.
"""

import ast
import importlib.util
import pkgutil
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import zoo
from zoo._lazy import table

Kind = Literal["models", "data", "callbacks", "networks", "pieces", "parts"]

# A class is of the first kind that one of its bases, near or far, is the root of.
_ROOTS: dict[str, Kind] = {
    "LightningModule": "models",
    "LightningDataModule": "data",
    "Callback": "callbacks",
    "Metric": "parts",
    "Module": "networks",
}
# Plain modules, whose names are all public.
GROUND = (
    "zoo.base",
    "zoo.events",
    "zoo.io",
    "zoo.pickles",
    "zoo.rng",
    "zoo.run_files",
    "zoo.run_logger",
    "zoo.runs",
)
_SHARED = ("base", "callbacks", "datamodules", "io", "metrics", "rng", "runs")  # what stands beside the rooms


@dataclass(frozen=True)
class Argument:
    """An argument of a constructor or function, as its source writes it."""

    name: str
    type: str
    default: str | None  # None: required
    help: str
    fields: tuple["Argument", ...] = ()  # of the dataclass of the zoo that the default is one of


@dataclass(frozen=True)
class Component:
    """A public class or function of the zoo."""

    name: str
    path: str  # by which users import it: zoo.flow.MeanFlow
    module: str  # where it is defined
    kind: Kind
    doc: str
    arguments: tuple[Argument, ...]

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.split("\n\n")[0].replace("\n", " ").strip()


@cache
def packages() -> tuple[str, ...]:
    """The packages of the zoo that have public names, nested ones included."""
    found = ["zoo.callbacks", "zoo.datamodules"]  # mapped from other folders in an editable install
    found += [
        info.name
        for info in pkgutil.walk_packages(zoo.__path__, "zoo.")
        if info.ispkg and "._" not in info.name and info.name != "zoo.configs"
    ]
    return tuple(sorted(set(found)))


def package_doc(package: str) -> str:
    """The first line of a package's docstring."""
    return (ast.get_docstring(_tree(package)) or "").split("\n")[0]


@cache
def public_names() -> dict[str, dict[str, str]]:
    """Each package's public names, and the modules that define them."""
    return {package: table(_source(package)[1]) for package in packages()}


@cache
def components() -> tuple[Component, ...]:
    """Every public class and function, in order of path; a name that several packages offer comes once."""
    found: dict[tuple[str, str], Component] = {}
    for package, names in public_names().items():
        for name, module in names.items():
            found.setdefault((module, name), _component(name, f"{package}.{name}", module))
    for module in GROUND:
        for node in _tree(module).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                part = _component(node.name, f"{module}.{node.name}", module)
                found[(module, node.name)] = replace(part, kind="parts")  # a base class is not a model
        for name, source in table(_source(module)[1]).items():  # loaded when it is first used
            if source.startswith("zoo."):
                found.setdefault((source, name), _component(name, f"{module}.{name}", source))
    return tuple(sorted(found.values(), key=lambda component: component.path))


def _source(module: str) -> tuple[Path, str]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module named {module}")
    path = Path(spec.origin)
    return path, path.read_text(encoding="utf-8")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module)[1])


def _definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    for node in reversed(_tree(module).body):  # the last one counts, as in Python: overloads come before it
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
    return None


@cache
def _imports(module: str) -> dict[str, str]:
    """Names that a module's import statements bind, to the full paths they stand for."""
    names: dict[str, str] = {}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
    return names


def _bases(module: str, node: ast.ClassDef) -> list[str]:
    """Names of all classes that a class descends from, followed through the zoo's own modules."""
    found: list[str] = []
    for base in node.bases:
        owner, name = _owner(module, base)
        found.append(name)
        if owner.split(".")[0] == "zoo" and isinstance(parent := _definition(owner, name), ast.ClassDef):
            found += _bases(owner, parent)
    return found


def _owner(module: str, base: ast.expr) -> tuple[str, str]:
    """The module that defines a base class named in ``module``, and the class's name there."""
    head, _, tail = ast.unparse(base).split("[")[0].partition(".")
    path = _imports(module).get(head, f"{module}.{head}") + (f".{tail}" if tail else "")
    owner, _, name = path.rpartition(".")
    if owner in packages():  # named through a package's table
        owner = public_names()[owner].get(name, owner)
    return owner, name


def _component(name: str, path: str, module: str) -> Component:
    node = _definition(module, name)
    if node is None:
        return Component(name, path, module, "parts", "", ())
    doc = ast.get_docstring(node) or ""
    kind: Kind
    if isinstance(node, ast.FunctionDef):
        arguments = _arguments(module, node, doc)
        of_models = path.split(".")[1] not in _SHARED
        kind = "pieces" if of_models and _builds(module, node) and _is_piece([], arguments) else "parts"
        return Component(name, path, module, kind, doc, arguments)
    bases = _bases(module, node)
    kind = next((kind for root, kind in _ROOTS.items() if root in bases), "parts")
    if kind == "parts" and path.startswith("zoo.callbacks."):
        kind = (
            "callbacks"  # of a Lightning callback, EMAWeightAveraging say, whose own bases are not followed
        )
    init = _initializer(module, node)
    arguments = _arguments(*init, doc) if init else _fields(module, node)
    if kind in ("networks", "parts") and ".networks." not in module:
        of_models = kind == "networks" or path.split(".")[1] not in _SHARED
        kind = "pieces" if of_models and not _is_record(node) and _is_piece(bases, arguments) else "parts"
    return Component(name, path, module, kind, doc, arguments)


def _is_record(node: ast.ClassDef) -> bool:
    """Whether a class is a dataclass: a result, or data that something else builds."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _builds(module: str, node: ast.FunctionDef) -> bool:
    """Whether a function returns an object of a class of the zoo, as configs may name one by class_path."""
    if not isinstance(node.returns, ast.Name):
        return False
    owner, name = _owner(module, node.returns)
    made = _definition(owner, name) if owner.startswith("zoo.") else None
    if not isinstance(made, ast.ClassDef) or _is_record(made):
        return False
    return not {"Module", "NamedTuple"} & set(_bases(owner, made))


def _is_piece(bases: list[str], arguments: tuple[Argument, ...]) -> bool:
    """Whether a config can build a class of a room: one of plain values and of other such classes."""
    if {"NamedTuple", "Protocol", "ABC"} & set(bases[:1]):
        return False
    return not any(re.search(r"\b(Any|Tensor|Callable)\b", argument.type) for argument in arguments)


def _initializer(module: str, node: ast.ClassDef) -> tuple[str, ast.FunctionDef] | None:
    """The ``__init__`` that a class uses, its own or the nearest base's, and the module that holds it."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return module, item
    for base in node.bases:
        owner, name = _owner(module, base)
        if owner.split(".")[0] == "zoo" and isinstance(parent := _definition(owner, name), ast.ClassDef):
            return _initializer(owner, parent)
    return None


def _arguments(module: str, function: ast.FunctionDef, doc: str) -> tuple[Argument, ...]:
    spec = function.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults)) + list(spec.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]
    helps = argument_help(doc) or argument_help(ast.get_docstring(function) or "")
    return tuple(
        Argument(
            name=argument.arg,
            type=_type(module, argument.annotation) if argument.annotation else "",
            default=None if default is None else _full_path(module, ast.unparse(default)),
            help=helps.get(argument.arg, ""),
            fields=_fields_of_default(module, default),
        )
        for argument, default in pairs
        if argument.arg != "self"
    )


def _fields(module: str, node: ast.ClassDef) -> tuple[Argument, ...]:
    """The arguments of a dataclass; none of another class."""
    if not _is_record(node):
        return ()
    helps = argument_help(ast.get_docstring(node) or "")
    return tuple(
        Argument(
            name=field.target.id,
            type=_type(module, field.annotation),
            default=None if field.value is None else _full_path(module, ast.unparse(field.value)),
            help=helps.get(field.target.id, ""),
        )
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def _fields_of_default(module: str, default: ast.expr | None) -> tuple[Argument, ...]:
    """Those of ``Guidance()``, where that is a dataclass of the zoo: a config writes its fields as keys."""
    if not isinstance(default, ast.Call) or default.args or default.keywords:
        return ()
    owner, name = _owner(module, default.func)
    node = _definition(owner, name) if owner.startswith("zoo.") else None
    return _fields(owner, node) if isinstance(node, ast.ClassDef) else ()


def _type(module: str, annotation: ast.expr) -> str:
    """An annotation as it stands; the name of a `Literal` of the zoo as its words."""
    if isinstance(annotation, ast.Name):
        owner, name = _owner(module, annotation)
        for node in _tree(owner).body if owner.split(".")[0] == "zoo" else []:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                value = ast.unparse(node.value)
                return value if value.startswith("Literal[") else name
    return ast.unparse(annotation)


def _full_path(module: str, text: str) -> str:
    """A default as a config writes it: a class by its full path, anything else as it stands."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*", text):
        return text
    head, _, tail = text.partition(".")
    if head not in _imports(module):
        return text
    return _imports(module)[head] + (f".{tail}" if tail else "")


def argument_help(doc: str) -> dict[str, str]:
    r"""The ``Args:`` section of a Google docstring.

    >>> argument_help("Does it.\n\nArgs:\n    size: How many,\n        in all.\n    name: Whose.\n")
    {'size': 'How many, in all.', 'name': 'Whose.'}
    """
    match = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    if not match:
        return {}
    helps: dict[str, str] = {}
    name = ""
    for line in match[1].splitlines():
        if head := re.match(r"^ {4}\*{0,2}(\w+)(?: \(.*?\))?: (.*)$", line):
            name = head[1]
            helps[name] = head[2].strip()
        elif name and line.strip():
            helps[name] += " " + line.strip()
    return helps
