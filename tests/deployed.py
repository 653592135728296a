"""What is in serving/deploy, read as its users read it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "serving" / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
KUBERNETES = DEPLOY / "kubernetes"


def manifests(folder: Path) -> list[dict[str, Any]]:
    """As kubectl makes them of a kustomization."""
    made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


FOLDERS = sorted(folder.name for folder in KUBERNETES.iterdir())


def pod(manifest: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]] | None:
    """(labels, spec) of the pods that are made of a manifest, if any are."""
    spec = manifest["spec"]
    if manifest["kind"] == "ServingRuntime":
        return spec.get("labels", {}), spec
    if "template" in spec:
        return spec["template"].get("metadata", {}).get("labels", {}), spec["template"]["spec"]
    return None


def container(folder: str, file: str) -> dict[str, Any]:
    """The only one of a manifest that is not patched."""
    spec = yaml.safe_load((KUBERNETES / folder / file).read_text())["spec"]
    (only,) = spec.get("template", {"spec": spec})["spec"]["containers"]
    return dict(only)


def instructions(target: str) -> list[tuple[str, str]]:
    """(instruction, its arguments) of a target of the Dockerfile."""
    lines = re.sub(r"\\\n", "", DOCKERFILE.read_text()).splitlines()
    found = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    stages = [number for number, (word, _) in enumerate(found) if word == "FROM"] + [len(found)]
    (stage,) = [n for n, number in enumerate(stages[:-1]) if found[number][1].endswith(f" AS {target}")]
    return [(word, rest) for word, rest in found[stages[stage] + 1 : stages[stage + 1]]]
