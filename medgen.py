"""``medgen``: the commands of all packages under one name.

The installed command has the folder of programs first on its path, not the working folder, so that no ``training.py``
there is taken for medgen's own, as ``python -m training`` would take it.
"""

from collections.abc import Mapping
from importlib import import_module

import click

from serving.command_list import CommandList
from serving.namesakes import NamesakeError

GROUPS = {"benchmarks": "bench", "export": "export"}  # commands with commands of their own, and the extra they need
OPEN = {"serving": "server", "training": "train"}  # packages whose commands are medgen's


class Commands(CommandList):
    """Imports a package when a command of it is wanted."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*GROUPS, *(name for package in OPEN for name in _commands(package))])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in GROUPS:
            try:
                return _group(name)
            except ModuleNotFoundError as error:
                return _absent(name, error)
        return next((_commands(package)[name] for package in OPEN if name in _commands(package)), None)

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except ModuleNotFoundError as error:
            name = context.invoked_subcommand or ""
            extra = GROUPS.get(name) or next((OPEN[package] for package in OPEN if name in _commands(package)), "")
            raise click.ClickException(
                f"{name} needs the package {error.name}, which is not installed: pip install 'medgen[{extra}]'"
            ) from error


def _absent(name: str, error: ModuleNotFoundError) -> click.Command:
    """In the place of commands that need an extra, so that the others can be listed beside it."""

    def refuse(rest: tuple[str, ...]) -> None:
        raise error

    return click.Command(
        name,
        callback=refuse,
        params=[click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED)],
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
        short_help=f"Not installed: pip install 'medgen[{GROUPS[name]}]'",
    )


def _commands(package: str) -> Mapping[str, click.Command]:
    return _group(package).commands


def _group(package: str) -> click.Group:
    try:
        group: click.Group = import_module(f"{package}.__main__").main
    except NamesakeError as error:
        raise click.ClickException(str(error)) from error
    return group


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="medgen", prog_name="medgen")
def main() -> None:
    """Trained medical-image generators as fast, repeatable services."""


if __name__ == "__main__":
    main(prog_name="medgen")
