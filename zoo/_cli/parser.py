"""Parsers whose every error is a `CommandError` of one line."""

import re
from typing import NoReturn

from jsonargparse import ArgumentParser

from zoo._cli.errors import CommandError, close
from zoo._cli.explain import explain


class OneLineParser(ArgumentParser):
    """A jsonargparse parser with errors of one line."""

    retry = ""  # the command that was typed, for the advice that ends a refused import

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
