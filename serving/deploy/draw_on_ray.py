"""Draws one set on a Ray cluster whose machines see one folder, a task a shard:

    python draw_on_ray.py --shards 16 --cpus 2 -- --local --model pig --count 100000 --out /shared/set

What comes after -- is for `medgen draw`. A task whose worker or machine dies is started again and goes on with what is
missing.
"""

import subprocess
import sys
from pathlib import Path

import click
import ray

from serving.finite import FiniteRange


@ray.remote
def draw(shard: str, arguments: tuple[str, ...]) -> str:
    """What the command says at its end; raises RuntimeError with what it says if it fails."""
    medgen = Path(sys.executable).with_name("medgen")  # of the worker's environment, which need not be on its PATH
    result = subprocess.run([medgen, "draw", "--shard", shard, *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"shard {shard}: {result.stderr.strip() or f'ended with {result.returncode}'}")
    return result.stdout.strip()


@click.command()
@click.option("--shards", type=click.IntRange(1), required=True, help="How many tasks; more than workers is well.")
@click.option("--cpus", type=FiniteRange(0, min_open=True), default=1.0, show_default=True, help="Of each task.")
@click.option("--gpus", type=FiniteRange(0), default=0.0, show_default=True, help="Of each task.")
@click.option("--retries", type=int, default=3, show_default=True, help="Of a task whose worker dies; -1 is for ever.")
@click.argument("arguments", nargs=-1, required=True)
def main(shards: int, cpus: float, gpus: float, retries: int, arguments: tuple[str, ...]) -> None:
    """Draw a set of samples with as many tasks of Ray as there are shards."""
    task = draw.options(num_cpus=cpus, num_gpus=gpus, max_retries=retries)
    left = [task.remote(f"{shard}/{shards}", arguments) for shard in range(shards)]
    while left:
        (done,), left = ray.wait(left)
        click.echo(ray.get(done))


if __name__ == "__main__":
    main()
