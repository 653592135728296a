"""``python -m benchmarks``: what samples cost, and what they are worth."""

from importlib import import_module

import click

COMMANDS = {
    "anatomy": "benchmarks.quality.command:anatomy",
    "gpu": "benchmarks.gpu.command:gpu",
    "latency": "benchmarks.latency.command:latency",
    "load": "benchmarks.load.command:load",
}


class Commands(click.Group):
    """Imports a command when it is asked for, so that what one needs and is not installed does not stop the others."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        try:
            command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            return unavailable(name, str(error.name))
        assert isinstance(command, click.Command)
        return command


def unavailable(name: str, package: str) -> click.Command:
    """Stands in for a command whose module cannot be imported, and says why."""
    reason = f"needs the package {package}, which is not installed"

    def refuse(arguments: tuple[str, ...]) -> None:
        raise click.ClickException(f"{name} {reason}")

    return click.Command(
        name,
        callback=refuse,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        help=f"{reason.capitalize()}.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )


@click.group(cls=Commands)
def main() -> None:
    """Measure what samples cost, beside what one would use instead, and what they are worth."""


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
