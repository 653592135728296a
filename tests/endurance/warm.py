"""Commands in processes of their own that need not import anything first, so that a kill meets their work."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED = ["export.build", "export.chain", "export.report", "training.fit", "training.models.pig", "serving.__main__"]


class Commands:
    """Starts `python -m PACKAGE ...` by a fork of a process that has imported all packages; their output is kept."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(IMPORTED)

    def start(self, package: str, *arguments: object, graphs: Path | None = None) -> BaseProcess:
        """graphs: where `export build` finds the graphs that it else exports, which takes long and writes nothing."""
        process = self._context.Process(target=_run, args=(package, [*map(str, arguments)], self.log, graphs))
        process.start()
        return process

    def run(self, package: str, *arguments: object, graphs: Path | None = None) -> None:
        """To its end, which must be a good one."""
        process = self.start(package, *arguments, graphs=graphs)
        process.join()
        assert process.exitcode == 0, self.log.read_text()


def _run(package: str, arguments: Sequence[str], log: Path, graphs: Path | None) -> None:
    with log.open("w") as output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    if graphs is not None:
        import onnx

        import export.build

        export.build.step_graph = lambda *_: onnx.load(graphs / "step.onnx")
        export.build.finish_graph = lambda *_: onnx.load(graphs / "finish.onnx")
    sys.argv = [package, *arguments]
    runpy.run_module(package, run_name="__main__", alter_sys=True)
