"""The wheel, installed outside the checkout in an environment that has medgen from nowhere else."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from live import PATIENCE, free_ports
from tiny_pig import tiny_pig

from serving.bundle import TEMPLATES
from training.checkpoint import SHIPPED, save_checkpoint

ROOT = Path(__file__).parents[1]
SOURCES = ("benchmarks", "export", "kernels", "model_repository", "serving", "training")
BUILD = "import sys, setuptools.build_meta; setuptools.build_meta.build_wheel(sys.argv[1])"
THEIRS = "raise SystemExit('a file of the user was run')\n"


@dataclass
class Installed:
    """An environment with the wheel, and a working folder outside the checkout."""

    programs: Path
    packages: Path
    folder: Path
    environment: dict[str, str]

    def start(self, program: str, *arguments: object) -> subprocess.Popen[str]:
        command = [self.programs / program, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **pipes)

    def run(self, program: str, *arguments: object, code: int = 0) -> str:
        process = self.start(program, *arguments)
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, said
        return said


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Everything that medgen needs is this environment's own; the checkout, which an editable install adds, is not."""
    base = tmp_path_factory.mktemp("wheel")
    sources, wheels, folder = (base / name for name in ("sources", "wheels", "work"))
    for made in (sources, wheels, folder):
        made.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("medgen.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment["XDG_CACHE_HOME"] = str(base / "cache")
    quiet = {"check": True, "capture_output": True, "env": environment}
    subprocess.run([sys.executable, "-c", BUILD, wheels], cwd=sources, **quiet)
    venv.create(base / "environment", symlinks=True)
    python = base / "environment" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, *wheels.iterdir()], **quiet)
    (packages,) = (base / "environment" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # whose own .pth files are not read
    yield Installed(python.parent, packages, folder, environment)
    shutil.rmtree(base)


def test_it_has_what_build_needs_and_nothing_that_was_built(installed: Installed) -> None:
    for ours, where in ((TEMPLATES, "serving/templates"), (SHIPPED, "training/checkpoints")):
        files = {file.relative_to(ours) for file in ours.rglob("*") if file.is_file() and "bundle" not in str(file)}
        wanted = {file for file in files if "__pycache__" not in file.parts}
        assert {file.relative_to(installed.packages / where) for file in (installed.packages / where).rglob("*.*")} >= {
            file for file in wanted if file.suffix
        }
    assert not list(installed.packages.rglob("bundle/*"))


def test_build_verify_up_and_sample(installed: Installed, tmp_path: Path) -> None:
    pig = tiny_pig()
    save_checkpoint(tmp_path / "run", pig, pig.state_dict(), {"preset_name": "tiny"})
    assert "Nothing is built yet" in installed.run("medgen", "export", "list")
    built = installed.run(
        "medgen", "export", "build", "--model", "pig", "--checkpoint", tmp_path / "run", "--max-batch", 2
    )
    assert f"{installed.folder / 'model_repository' / 'pig' / '1' / 'bundle'} is built from" in built
    assert "digests and graphs are good" in installed.run("export", "verify", "pig")
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    server = installed.start("medgen", "up", *(f"--{name}-port={port}" for name, port in ports.items()))
    try:
        asked = ["sample", "--model", "pig", "--count", 3, "--url", f"127.0.0.1:{ports['grpc']}", "--wait", PATIENCE]
        assert "3 samples of pig" in installed.run("medgen", *asked, "--out", "served")
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=PATIENCE)
    installed.run("medgen", "sample", "--local", "--model", "pig", "--count", 3, "--out", "here")
    served, here = (installed.folder / name / "pairs.npz" for name in ("served", "here"))
    assert served.read_bytes() == here.read_bytes()


def test_files_of_the_working_folder_are_not_taken_for_ours(installed: Installed) -> None:
    for name in ("training", "serving", "kernels", "medgen", "export"):
        (installed.folder / f"{name}.py").write_text(THEIRS)
    try:
        assert "--preset" in installed.run("medgen", "fit", "--help")
        assert "--tolerance" in installed.run("export", "build", "--help")
        assert "a file of the user" in installed.run("python", "-m", "training", "fit", "--help", code=1)
    finally:
        for file in installed.folder.glob("*.py"):
            file.unlink()


def test_a_package_of_the_same_name_is_named(installed: Installed) -> None:
    """Hugging Face's `kernels` puts its files where ours are; here it is as pip leaves it."""
    ours = (installed.packages / "kernels" / "__init__.py").read_text()
    theirs = installed.packages / "kernels-0.17.2.dist-info"
    theirs.mkdir()
    (theirs / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.17.2\n")
    (theirs / "RECORD").write_text("kernels/__init__.py,,\n")
    (installed.packages / "kernels" / "__init__.py").write_text("def get_kernel(): ...\n")
    try:
        for command in (["fit", "--model", "pig"], ["export", "list"], ["--help"]):
            said = installed.run("medgen", *command, code=1)
            assert "Error: the package kernels 0.17.2 is installed over medgen's own kernels" in said
            assert said.count("\n") == 1
        assert "--solver" in installed.run("medgen", "sample", "--help")  # which has nothing to do with it
    finally:
        shutil.rmtree(theirs)
        (installed.packages / "kernels" / "__init__.py").write_text(ours)
