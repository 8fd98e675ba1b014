"""Parsers whose every error is a `CommandError` of one line, and where a new class has its own defaults."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, _typehints

from zoo._cli.errors import CommandError, close
from zoo._cli.explain import explain

_keep_what_fits = _typehints.discard_init_args_on_class_path_change


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


@contextmanager
def own_defaults() -> Iterator[None]:
    """Lets a class that takes the place of another have its own defaults where nothing else was set."""
    outer = _typehints.discard_init_args_on_class_path_change  # a parser of a class parses inside of another
    _typehints.discard_init_args_on_class_path_change = _keep_what_was_set
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = outer


class OneLineParser(ArgumentParser):
    """A jsonargparse parser with errors of one line."""

    retry = ""  # the command that was typed, for the advice that ends a refused import

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parses; a class that takes the place of another has its own defaults."""
        with own_defaults():
            return super().parse_args(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the error's one line; within a union, a branch's error goes to the union as ever."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise CommandError(self._tell(message)) from ex

    def _tell(self, message: str) -> str:
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            word = match[1].split("=")[0]
            return f"{word}: there is no such argument{close(word, self.options())}"
        if match := re.match(r"(?:Subcommand|Group) '(\w+)' does not accept option '(\S+)'", message):
            keys = [option.removeprefix("--") for option in self.options()]
            return f"{match[2]}: there is no such setting in `zoo {match[1]}`{close(match[2], keys)}"
        if match := re.match(r"the following arguments are required: (.+)", message):
            names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in match[1].split(", ")]
            return (
                f"missing: {' and '.join(names)}. A config gives them: --config NAME (see `zoo list configs`)"
            )
        return explain(message, OneLineParser.retry)

    def options(self) -> list[str]:
        """All option strings, those of subcommands included."""
        parsers = [self]
        if self._subcommands_action is not None:
            parsers += self._subcommands_action._name_parser_map.values()
        found = [
            option for parser in parsers for action in parser._actions for option in action.option_strings
        ]
        return list(dict.fromkeys(found))
