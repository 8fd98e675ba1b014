"""Parsers whose every error is a `CommandError` of one line."""

from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from zoo._cli.errors import CommandError, close, explain


class OneLineErrors(ArgumentParser):
    """Mixin for a jsonargparse parser."""

    retry = ""  # the command that was typed, for advice

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the error's one line; within a union the branch's error goes to the union, as ever."""
        if not self.exit_on_error:
            super().error(message, ex)
        text = explain(message, OneLineErrors.retry)
        prefix = "unrecognized arguments: "
        if text.startswith(prefix):
            word = text.removeprefix(prefix).split()[0]
            text = f"{word}: there is no such argument{close(word.split('=')[0], self.options())}"
        raise CommandError(text) from ex

    def options(self) -> list[str]:
        """All option strings, those of subcommands included."""
        found = [option for action in self._actions for option in action.option_strings]
        if self._subcommands_action is not None:
            for parser in self._subcommands_action._name_parser_map.values():
                found += parser.options() if isinstance(parser, OneLineErrors) else []
        return list(dict.fromkeys(found))


class OneLineParser(OneLineErrors):
    """The parser of the small verbs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
