"""A group's list of commands, for those who look for one."""

import click

SENTENCE = 1000  # characters: more than any has


class CommandList(click.Group):
    """Says of each command its whole first sentence, where click breaks off at the end of a line; and of a name that is
    none, what there is."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        is_wanted = not (name.startswith("-") or context.resilient_parsing)  # by one who does not complete a line
        if is_wanted and self.get_command(context, name) is None:
            known = ", ".join(self.list_commands(context))
            raise click.UsageError(f"{name!r} is no command; there are {known}", context)
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        found = [(name, self.get_command(context, name)) for name in self.list_commands(context)]
        rows = [(name, command.get_short_help_str(SENTENCE)) for name, command in found if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
