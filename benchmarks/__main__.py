"""``python -m benchmarks``: what samples cost, and what they are worth."""

import click

# Here and in these, nothing that takes long: commands import what they need when they run.
from benchmarks.dmgan.command import dmgan
from benchmarks.evaluation.command import privacy, quality, report, utility
from benchmarks.gpu.command import gpu
from benchmarks.latency.command import latency
from benchmarks.load.command import load
from benchmarks.papers.command import papers
from benchmarks.quality.command import anatomy, redraw
from benchmarks.tune.command import calibrate, tune
from serving.command_list import CommandList


class Commands(CommandList):
    """What one command needs and is not installed does not stop the others."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except ModuleNotFoundError as error:
            needs = f"{context.invoked_subcommand} needs the package {error.name}, which is not installed"
            raise click.ClickException(needs) from error


@click.group(cls=Commands)
def main() -> None:
    """Measure what samples cost, beside what one would use instead, and what they are worth."""


main.add_command(anatomy)
main.add_command(dmgan)
main.add_command(gpu)
main.add_command(latency)
main.add_command(load)
main.add_command(papers)
main.add_command(redraw)
main.add_command(tune)
main.add_command(calibrate)
for measure in (quality, utility, privacy, report):
    main.add_command(measure)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
