"""A group's list of commands, for those who look for one."""

import click

SENTENCE = 1000  # characters: more than any has


class CommandList(click.Group):
    """Says of each command its whole first sentence, where click breaks off at the end of a line."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        found = [(name, self.get_command(context, name)) for name in self.list_commands(context)]
        rows = [(name, command.get_short_help_str(SENTENCE)) for name, command in found if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
