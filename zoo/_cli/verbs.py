"""``zoo list``, ``zoo show`` and ``zoo cp``: answers that need neither torch nor Lightning."""

import ast
import json
from pathlib import Path
from typing import Literal

from zoo._cli import configs
from zoo._cli.components import GROUND, Argument, Component, components, package_doc, packages
from zoo._cli.errors import CommandError, print_out, suggest

_TITLES = {
    "models": "Models (model: ...)",
    "data": "Data (data: ...)",
    "callbacks": "Callbacks (trainer: callbacks+: ...)",
    "networks": "Networks (given to models by class_path)",
    "pieces": "Pieces (given to models by class_path)",
    "configs": "Configs (zoo fit --config NAME)",
}


def list_names(
    what: Literal["models", "data", "callbacks", "networks", "pieces", "configs"] | None = None,
) -> None:
    """Lists models, data, callbacks, networks, their pieces and configs, one line each.

    Args:
        what: List only these.
    """
    sections: dict[str, list[tuple[str, str]]] = {title: [] for title in _TITLES}
    for component in components():
        if component.kind in sections:
            sections[component.kind].append((component.name, component.summary))
    root = configs.folder()
    sections["configs"] = [(name, configs.first_comment(root / f"{name}.yaml")) for name in configs.names()]
    for title, rows in sections.items():
        if what not in (None, title) or not rows:
            continue
        if what is None:
            print_out(f"{_TITLES[title]}:")
        width = max(len(name) for name, _ in rows)
        for name, summary in rows:
            print_out(f"  {name:<{width}}  {summary}".rstrip())
        if what is None:
            print_out()
    if what is None:
        print_out("zoo show NAME explains one of them.")


def show(name: str) -> None:
    """Explains a component (docstring, arguments, YAML to paste) or prints a bundled config.

    Args:
        name: A class or function (MeanFlow, or zoo.flow.MeanFlow), a package or module (zoo.flow, zoo.io), or
            a bundled config (quickstart).
    """
    if name in configs.names():
        print_out((configs.folder() / f"{name}.yaml").read_text(encoding="utf-8").rstrip())
        return
    if name == configs.PACKAGE:
        print_out(f"{name}: what `zoo fit --config NAME` takes by name")
        print_out()
        list_names("configs")
        return
    if name in (*packages(), *GROUND):
        list_package(name)
        return
    found = [c for c in components() if name in (c.name, c.path, f"{c.module}.{c.name}")]
    if not found:
        known = [c.name for c in components()] + configs.names()
        raise CommandError(f"nothing is named {name!r}{suggest(name, known)} (`zoo list` names them all)")
    for component in found:
        print_out(describe(component))


def list_package(package: str) -> None:
    """Prints what a package is for and what it offers, a line each."""
    parts = [part for part in components() if part.path.rpartition(".")[0] == package]
    width = max(len(part.name) for part in parts)
    print_out(f"{package}: {package_doc(package)}")
    print_out()
    for part in parts:
        print_out(f"  {part.name:<{width}}  {part.summary}".rstrip())


def copy(name: str, dest: Path | None = None) -> None:
    """Copies a bundled config, to be edited.

    Args:
        name: The config (`zoo list configs`).
        dest: A file or an existing folder; the config's own file name here if not given.
    """
    if name not in configs.names():
        raise CommandError(f"no bundled config is named {name!r}{suggest(name, configs.names())}")
    source = configs.folder() / f"{name}.yaml"
    target = Path(source.name) if dest is None else dest / source.name if dest.is_dir() else dest
    if target.suffix not in (".yaml", ".yml"):
        raise CommandError(f"cannot copy to {target}: a config's name ends in .yaml")
    if not target.parent.is_dir():
        raise CommandError(f"cannot copy to {target}: there is no folder {target.parent}")
    try:
        with open(
            target, "x", encoding="utf-8"
        ) as file:  # "x": two copies at once cannot overwrite each other
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise CommandError(
            f"{target} exists and is left as it is: give another name, zoo cp {name} DEST"
        ) from None
    print_out(f"{target} written; edit it, then run: zoo fit --config {target}")


def describe(component: Component) -> str:
    """The text of `zoo show` for a class or function."""
    lines = [component.path, "", component.doc or "(no docstring)", ""]
    if component.kind != "parts":
        lines += ["YAML to paste:", "", snippet(component)]
    elif component.arguments:
        lines += ["Arguments:", ""]
        lines += [f"    {signature_line(argument)}" for argument in component.arguments]
    return "\n".join(lines).rstrip() + "\n"


def signature_line(argument: Argument) -> str:
    """An argument as Python writes it.

    >>> signature_line(Argument("size", "int", "3", ""))
    'size: int = 3'
    """
    default = "" if argument.default is None else f" = {argument.default}"
    return f"{argument.name}: {argument.type}{default}" if argument.type else f"{argument.name}{default}"


def snippet(component: Component) -> str:
    """A YAML block for a config: required arguments first, each default as it is, each type beside it."""
    required = [argument for argument in component.arguments if argument.default is None]
    optional = [argument for argument in component.arguments if argument.default is not None]
    body = [f"class_path: {component.path}"]
    if component.arguments:
        body.append("init_args:")
        body += [line for argument in (*required, *optional) for line in _yaml_lines(argument)]
    if component.kind == "callbacks":
        head, first, rest = "trainer:\n  callbacks+:\n", "    - ", "      "
    elif component.kind in ("models", "data"):
        head, first, rest = ("model:\n" if component.kind == "models" else "data:\n"), "  ", "  "
    else:
        head, first, rest = "", "", ""
    return head + "\n".join((first if number == 0 else rest) + line for number, line in enumerate(body))


def _yaml_lines(argument: Argument) -> list[str]:
    if argument.fields:
        inside = [f"  {line}" for field in argument.fields for line in _yaml_lines(field)]
        return [f"  {argument.name}:  # {argument.type}", *inside]
    if argument.default is None:
        return [f"  {argument.name}:  # required: {argument.type}"]
    value = yaml_value(argument.default)
    if value is None:  # an expression, which YAML cannot say: leave it to the default
        return [f"  # {argument.name}: {argument.default}  # {argument.type}"]
    return [f"  {argument.name}: {value}  # {argument.type}"]


def yaml_value(default: str) -> str | None:
    """A Python default as YAML, or None where it is neither a plain value nor the path of a class.

    >>> yaml_value("None"), yaml_value("(1, 0.5)"), yaml_value("torch.optim.AdamW"), yaml_value("'ema'")
    ('null', '[1, 0.5]', 'torch.optim.AdamW', '"ema"')
    """
    try:
        value = ast.literal_eval(default)
    except ValueError:
        parts = default.split(".")
        if len(parts) > 1 and all(part.isidentifier() for part in parts):
            return default if parts[-1][0].isupper() else None
        return _list_of_range(default)
    return json.dumps(value)  # JSON is YAML; it writes a float such as 1e-05 so that YAML reads a float


def _list_of_range(default: str) -> str | None:
    """``list(range(10))``, the one expression that is a usual default."""
    inner = default.removeprefix("list(range(").removesuffix("))")
    if inner == default or not inner.isdigit():
        return None
    return json.dumps(list(range(int(inner))))
