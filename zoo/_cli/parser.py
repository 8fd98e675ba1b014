"""Parsers whose every error is a `CommandError` of one line, and where a new class has its own defaults."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, _typehints
from jsonargparse._loaders_dumpers import load_value

from zoo._cli import configs
from zoo._cli.bounds import tell
from zoo._cli.errors import CommandError, chain, suggest
from zoo._cli.explain import explain
from zoo._cli.refusal import Line
from zoo._cli.trace import Trace

_keep_what_fits = _typehints.discard_init_args_on_class_path_change
_check = _typehints.ActionTypeHint._check_type


def _keep_what_was_set(parser_or_action: Any, before: Any, after: Any) -> None:
    """Where a class takes the place of another: drops the arguments that are but the other's defaults.

    jsonargparse keeps every argument that fits the new class, so that RAdam in the place of AdamW would have
    AdamW's weight decay of 0.01.
    """
    if before and before.get("init_args") and before["class_path"] != after["class_path"]:
        before = _typehints.subclass_spec_as_namespace(before)
        adding = getattr(parser_or_action, "sub_add_kwargs", {})
        defaults = _typehints.ActionTypeHint.get_class_parser(before["class_path"], adding).get_defaults()
        for key, value in list(before.init_args.items(branches=True, nested=False)):
            if key in defaults and defaults[key] == value:
                before.init_args.pop(key)
    _keep_what_fits(parser_or_action, before, after)


@functools.wraps(_check)
def _check_and_note(self: Any, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
    """Checks a value; where it is wrong, the parsers' `Trace` knows its place."""
    before = cfg.get(self.dest) if append and cfg else None
    offset = len(before) if isinstance(before, list) else 0 if append else None
    seen = value
    if isinstance(value, str) and value.startswith(("[", "{")):  # a list or a spec on the line itself
        with suppress(yaml.YAMLError):  # it is text, then
            seen = load_value(value)
    with OneLineParser.trace.at(self.dest, seen, self._typehint, offset):
        return _check(self, value, append=append, cfg=cfg, mode=mode)


@contextmanager
def _parsing() -> Iterator[None]:
    """Lets a class that replaces another have its own defaults, and notes where a value is wrong."""
    # A parser of a class parses inside of another.
    defaults = _typehints.discard_init_args_on_class_path_change
    action: Any = _typehints.ActionTypeHint
    check = action._check_type
    _typehints.discard_init_args_on_class_path_change = _keep_what_was_set
    action._check_type = _check_and_note
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = defaults
        action._check_type = check


class OneLineParser(ArgumentParser):
    """A jsonargparse parser with errors of one line."""

    retry = ""  # the command that was typed, for the advice that ends a refused import
    line = Line()  # the same, with its configs and its folder
    trace = Trace()  # of the values that are being checked, by all parsers together
    made: Any = None  # the class or function whose arguments this parser takes

    def add_class_arguments(self, class_type: Any, nested_key: str | None = None, *a: Any, **k: Any) -> Any:
        """Adds the arguments of a class, and notes whose they are."""
        self.made = class_type if nested_key is None else self.made
        return super().add_class_arguments(class_type, nested_key, *a, **k)

    def add_function_arguments(self, function: Any, nested_key: str | None = None, *a: Any, **k: Any) -> Any:
        """Adds the arguments of a function, and notes whose they are."""
        self.made = function if nested_key is None else self.made
        return super().add_function_arguments(function, nested_key, *a, **k)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parses words: those of the line, or one that is meant for an argument of a class."""
        if self.exit_on_error:
            OneLineParser.trace = Trace()
        with _parsing(), self.trace.inside(self.made):
            return super().parse_args(*args, **kwargs)

    def parse_object(self, *args: Any, **kwargs: Any) -> Any:
        """Parses the arguments of a class in a config."""
        with self.trace.inside(self.made):
            return super().parse_object(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the error's one line; within a union, a branch's error goes to the union as ever."""
        if not self.exit_on_error:
            self.trace.keep_message(self.made, message)
            super().error(message, ex)
        raise CommandError(self._tell(message, ex)) from ex

    def _tell(self, message: str, ex: Exception | None) -> str:
        if broken := next((cause for cause in chain(ex) if isinstance(cause, yaml.YAMLError)), None):
            return f"Problems parsing config: {tell(broken)}"
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            word = match[1].split("=")[0]
            if word in configs.names() or word.endswith((".yaml", ".yml")):
                return f"{word} is a config: {self.retry.replace(f' {word}', f' --config {word}', 1)}"
            return f"unknown argument {word}{suggest(word, self.options())}"
        if match := re.match(r"(?:Subcommand|Group) '(\w+)' does not accept option '(\S+)'", message):
            keys = [option.removeprefix("--") for option in self.options()]
            return f"unknown setting {match[2]} of `zoo {match[1]}`{suggest(match[2], keys)}"
        if match := re.match(r"the following arguments are required: (.+)", message):
            names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in match[1].split(", ")]
            return (
                f"missing: {' and '.join(names)}. A config gives them: --config NAME (see `zoo list configs`)"
            )
        if self.trace.failure is not None:
            return explain(self.trace.failure, OneLineParser.line)
        return message

    def options(self) -> list[str]:
        """All option strings, those of subcommands included."""
        parsers = [self]
        if self._subcommands_action is not None:
            parsers += self._subcommands_action._name_parser_map.values()
        found = [
            option for parser in parsers for action in parser._actions for option in action.option_strings
        ]
        return list(dict.fromkeys(found))
