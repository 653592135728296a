"""Images and manifests: without a cluster, as far as that goes. What they start is in triton/test_deployed.py."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import click
import jsonschema
import kserve_schema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from deployed import DEPLOY, DOCKERFILE, FOLDERS, KUBERNETES, container, instructions, manifests, pod
from tiny import write_tiny_bundle

from serving.__main__ import draw, page, pull_command, up
from serving.bundle import TEMPLATES, bundle_folder
from serving.page.health import READY
from serving.store import push
from serving.triton.served_models import find_models
from serving.triton.server import CONNECTION_SECONDS, ORPHAN_SECONDS, STOP_SECONDS

ROOT = DEPLOY.parents[1]
TARGETS = ("wheel", "client", "page", "server")
VERSION = "1.33"
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl makes the manifests")


def validate(folder: Path) -> None:
    for manifest in manifests(folder):
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def lint(file: Path) -> str:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "--no-color", file], capture_output=True, text=True, check=False).stdout


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    assert lint(DOCKERFILE) == ""
    careless = tmp_path / "Dockerfile"
    careless.write_text(DOCKERFILE.read_text().replace("--no-cache-dir ", ""))
    assert "DL3042" in lint(careless)


def test_what_is_copied_is_there() -> None:
    copied = [rest.split()[:-1] for word, rest in instructions("wheel") if word == "COPY"]
    assert all((ROOT / name).exists() for names in copied for name in names)
    assert {"serving", "pyproject.toml"} <= {name for names in copied for name in names}


@pytest.mark.parametrize("target", TARGETS[1:])
def test_nothing_runs_as_root_and_health_is_to_be_ready(target: str) -> None:
    of = dict(instructions(target))
    assert of["USER"] == "10001:10001"
    ready = {"server": "8000/v2/health/ready", "page": f"7860{READY}", "client": ""}[target]
    assert ready in of.get("HEALTHCHECK", ""), "live is as soon as it listens"
    assert ("HEALTHCHECK" in of) == (target != "client")


def test_every_base_has_a_name_whatever_target_is_built() -> None:
    """BuildKit refuses a Dockerfile with one that has none, though the target would not need it."""
    text = DOCKERFILE.read_text()
    values = dict(re.findall(r"^ARG (\w+)=(\S+)$", text.partition("FROM ")[0], re.MULTILINE))
    bases = [base.format_map(values) for base in re.findall(r"^FROM \$?(\S+)", text, re.MULTILINE)]
    assert len(bases) == len(TARGETS)
    assert all(bases)


def lines(target: str, place: Path) -> Iterator[str]:
    """What a target runs, with its folders in a place; its arguments are what they are if nobody says anything."""
    of = instructions(target)
    given = "".join(f"{rest}; " for word, rest in of if word == "ARG")
    for line in (rest for word, rest in of if word == "RUN"):
        line = line.replace("--no-cache-dir ", "").replace("/opt/medgen", f"{place}/{target}")
        yield given + line.replace("/wheels", f"{place}/wheels")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel by the Dockerfile's own lines, and an empty environment, beside which targets are installed."""
    place = tmp_path_factory.mktemp("images")
    venv.create(place / "empty", with_pip=True, symlinks=True)
    context = place / "context"
    context.mkdir()
    for *names, to in (rest.split() for word, rest in instructions("wheel") if word == "COPY"):
        for name in names:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "bundle", ".bundle*")
                shutil.copytree(ROOT / name, context / name, symlinks=True, ignore=ignored)
            elif to == "/wheels/":
                (place / "wheels").mkdir(exist_ok=True)
                shutil.copy(ROOT / name, place / "wheels")
            else:
                shutil.copy(ROOT / name, context / name)
    for line in lines("wheel", place):
        run_in(place, line)
    return place


def run_in(place: Path, line: str, target: str | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PATH"] = f"{place / 'empty' / 'bin'}{os.pathsep}{environment['PATH']}"
    if target:
        environment["PYTHONPATH"] = f"{place / target}"
    done = subprocess.run(["sh", "-c", line], cwd=place / "context", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_and_a_client_are_installed_in_an_empty_environment(installed: Path) -> None:
    """By the Dockerfile's own lines; of other targets see below."""
    for line in lines("client", installed):
        run_in(installed, line.replace("pip install", "pip install --no-compile"))
    # From elsewhere: the checkout's own modules would be found first.
    listed = run_in(installed, f"cd / && {installed}/client/bin/medgen --help", "client")
    assert "draw " in listed
    assert "Not installed: pip install 'medgen[bench]'" in listed
    run_in(installed, "cd / && python3 -c 'import serving.client, pydicom, nibabel, fsspec'", "client")
    found = {(one.name, one.version) for one in distributions(path=[str(installed / "client")])}
    assert of_other_versions(found) == {"medgen"}


def of_other_versions(found: set[tuple[str, str]]) -> set[str]:
    """Those of (package, version) that constraints.txt does not have."""

    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pins = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    tested = {(canonical(name), version) for name, version in pins}
    return {canonical(name) for name, version in found if (canonical(name), version) not in tested}


@pytest.mark.parametrize(("target", "wanted"), [("page", "gradio"), ("server", "openvino")])
def test_what_an_image_installs_is_of_the_versions_that_were_tested(installed: Path, target: str, wanted: str) -> None:
    """As pip says that it would, by the Dockerfile's own lines."""
    (line,) = lines(target, installed)
    report = run_in(installed, line.replace("pip install", "pip install --dry-run --quiet --report -"))
    would = [one["metadata"] for one in json.loads(report)["install"]]
    assert wanted in {one["name"] for one in would}
    assert of_other_versions({(one["name"], one["version"]) for one in would}) == {"medgen"}


def with_typo(folder: Path, place: Path, file: str, right: str, wrong: str) -> Path:
    """A copy of manifests in which the first of what is right is wrong."""
    copy = shutil.copytree(folder.parent, place / "kubernetes") / folder.name
    text = (copy / file).read_text()
    assert right in text
    (copy / file).write_text(text.replace(right, wrong, 1))
    return copy


@needs_kubectl
@pytest.mark.parametrize("folder", sorted({*FOLDERS} - {"kserve"}))
def test_kubernetes_takes_the_manifests(folder: str) -> None:
    validate(KUBERNETES / folder)


@needs_kubectl
@pytest.mark.parametrize(
    ("folder", "file", "right", "wrong"),
    [
        ("base", "deployment.yaml", "maxSurge: 1", "maxSurges: 1"),
        ("base", "deployment.yaml", "containerPort: 8001", "containerPort: gprc"),
        ("base", "autoscaler.yaml", "maxReplicas: 10", "maxReplicas: ten"),
        ("base", "service.yaml", "targetPort: http", "targetport: http"),
        ("base", "disruptions.yaml", "maxUnavailable: 1", "maxUnavailables: 1"),
        ("bundles", "claim.yaml", "accessModes:", "accessMode:"),
        ("draw", "job.yaml", "completions: 16", "completion: 16"),
        ("drawn", "claim.yaml", "requests:", "request:"),
        ("gpu", "kustomization.yaml", "maxSurge: 0", "maxSurges: 0"),
        ("page", "deployment.yaml", "sizeLimit: 4Gi", "sizeLimits: 4Gi"),
        ("pull", "job.yaml", "optional: true", "optional: yes please"),
    ],
)
def test_typos_are_found(tmp_path: Path, folder: str, file: str, right: str, wrong: str) -> None:
    copy = with_typo(KUBERNETES / folder, tmp_path, file, right, wrong)
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(copy)


@needs_kubectl
def test_each_folder_has_a_typo_that_is_found() -> None:
    """So that none is passed over in silence."""
    (planted,) = [mark for mark in test_typos_are_found.pytestmark if mark.name == "parametrize"]
    assert {folder for folder, *_ in planted.args[1]} == {*FOLDERS} - {"kserve"}


def every_pod() -> dict[str, dict[str, Any]]:
    made = ((folder, manifest, pod(manifest)) for folder in FOLDERS for manifest in manifests(KUBERNETES / folder))
    return {f"{folder} {manifest['kind']}": found[1] for folder, manifest, found in made if found}


@needs_kubectl
def test_pod_security_s_strictest_standard_admits_every_pod() -> None:
    """The fields that `restricted` asks for, and a root that nobody can write to."""
    pods = every_pod()
    assert {"base Deployment", "draw Job", "kserve ServingRuntime", "page Deployment", "pull Job"} <= pods.keys()
    for name, spec in pods.items():
        for one in spec["containers"]:
            asked = {**spec.get("securityContext", {}), **one["securityContext"]}
            assert asked["runAsNonRoot"] is True, name
            assert asked["runAsUser"] > 0, name
            assert asked["seccompProfile"] == {"type": "RuntimeDefault"}, name
            assert asked["allowPrivilegeEscalation"] is False, name
            assert asked["capabilities"] == {"drop": ["ALL"]}, name
            assert asked["readOnlyRootFilesystem"] is True, name
            written = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
            room = [written.get(volume["name"]) for volume in spec["volumes"] if "emptyDir" in volume]
            assert "/tmp" in room, name
        assert {kind for volume in spec["volumes"] for kind in volume} <= {"name", "emptyDir", "persistentVolumeClaim"}
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}, name
        if name != "kserve ServingRuntime":  # which has no such field; its service has
            assert spec["automountServiceAccountToken"] is False, name
    (service,) = [made for made in manifests(KUBERNETES / "kserve") if made["kind"] == "InferenceService"]
    assert service["spec"]["predictor"]["automountServiceAccountToken"] is False


def test_what_images_cache_is_where_a_pod_has_room() -> None:
    for target in TARGETS[1:]:
        assert "XDG_CACHE_HOME=/tmp/" in dict(instructions(target))["ENV"]


@needs_kubectl
def test_a_model_computes_with_as_many_threads_as_its_pod_has_processors() -> None:
    """Which serving.engines.cpu reads from the limit."""
    for name, spec in every_pod().items():
        for one in spec["containers"]:
            if one["image"].startswith("medgen-server:"):
                assert one["resources"]["limits"]["cpu"] == one["resources"]["requests"]["cpu"], name
                assert int(one["resources"]["limits"]["cpu"]) >= 1, name


@needs_kubectl
def test_every_claim_is_declared() -> None:
    every = [made for folder in FOLDERS for made in manifests(KUBERNETES / folder)]
    declared = {made["metadata"]["name"] for made in every if made["kind"] == "PersistentVolumeClaim"}
    volumes = [volume for spec in every_pod().values() for volume in spec["volumes"]]
    claimed = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}
    assert claimed == declared == {"medgen-bundles", "medgen-samples"}


@needs_kubectl
def test_to_delete_what_runs_deletes_no_bundle_and_no_sample() -> None:
    kept = {folder for folder in FOLDERS for made in manifests(KUBERNETES / folder) if "Claim" in made["kind"]}
    assert kept == {"bundles", "drawn"}


@needs_kubectl
def test_nothing_names_a_namespace_so_that_two_versions_can_stand_in_two() -> None:
    assert not [
        made for folder in FOLDERS for made in manifests(KUBERNETES / folder) if "namespace" in made["metadata"]
    ]


@needs_kubectl
def test_an_apply_leaves_the_autoscaler_s_number_of_servers() -> None:
    made = {manifest["kind"]: manifest["spec"] for manifest in manifests(KUBERNETES / "base")}
    assert "replicas" not in made["Deployment"]
    assert made["HorizontalPodAutoscaler"]["minReplicas"] > 1


@needs_kubectl
def test_a_gpu_is_asked_for_where_it_is_wanted_alone() -> None:
    for folder, wanted in (("base", None), ("gpu", "1")):
        (deployment,) = [made for made in manifests(KUBERNETES / folder) if made["kind"] == "Deployment"]
        (server,) = deployment["spec"]["template"]["spec"]["containers"]
        assert server["resources"]["limits"].get("nvidia.com/gpu") == wanted
        surge = deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
        assert bool(surge) == (wanted is None), "a GPU that nobody uses is rare"
        assert server["image"].endswith("-gpu") == (wanted is not None), "another image computes on it"


@needs_kubectl
def test_kserve_s_runtime_is_a_pod_as_kubernetes_takes_it() -> None:
    runtime, service = sorted(manifests(KUBERNETES / "kserve"), key=lambda made: made["kind"], reverse=True)
    spec = runtime["spec"]
    assert spec.keys() == {"labels", "supportedModelFormats", "protocolVersions", "containers", "volumes"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "runtime"},
        "spec": {name: spec[name] for name in ("containers", "volumes")},
    }
    kubernetes_validate.validate(pod, VERSION, strict=True)
    model = service["spec"]["predictor"]["model"]
    assert model["protocolVersion"] in spec["protocolVersions"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert [model["modelFormat"]["name"]] == [known["name"] for known in spec["supportedModelFormats"]]
    claim = manifests(KUBERNETES / "bundles")
    assert model["storageUri"].removeprefix("pvc://") in {made["metadata"]["name"] for made in claim}


def validate_kserve(folder: Path) -> None:
    for manifest in manifests(folder):
        kserve_schema.validate(manifest)
        alone = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
        kubernetes_validate.validate(alone, VERSION, strict=True)


@needs_kubectl
def test_kserve_takes_the_manifests() -> None:
    validate_kserve(KUBERNETES / "kserve")


@needs_kubectl
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("runtime.yaml", "v1alpha1", "v1beta1"),
        ("runtime.yaml", "supportedModelFormats:", "supportedModelFormat:"),
        ("runtime.yaml", "autoSelect: true", 'autoSelect: "true"'),
        ("runtime.yaml", "{name: medgen, version", "{version"),
        ("runtime.yaml", "containers:", "container:"),
        ("runtime.yaml", "sizeLimit: 1Gi", "sizeLimit: 1Gib"),
        ("runtime.yaml", "{path: /v2/health/ready, port: 8080}", "{path: /v2/health/ready}"),
        ("service.yaml", "InferenceService", "InferenceServices"),
        ("service.yaml", "annotations:", "annotation:"),
        ("service.yaml", "predictor:", "predictors:"),
        ("service.yaml", "storageUri:", "storageURI:"),
        ("service.yaml", "maxReplicas: 4", "maxReplicas: four"),
        ("service.yaml", "modelFormat: {name: medgen}", "modelFormat: {version: medgen}"),
        ("service.yaml", "maxReplicas: 4", "scaleMetric: gpu"),
    ],
)
def test_typos_are_found_in_those_of_kserve(tmp_path: Path, file: str, right: str, wrong: str) -> None:
    folder = with_typo(KUBERNETES / "kserve", tmp_path, file, right, wrong)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate_kserve(folder)


def test_the_arguments_of_all_are_those_of_up(tmp_path: Path) -> None:
    of_image = json.loads(dict(instructions("server"))["CMD"])
    of_kserve = container("kserve", "runtime.yaml")["args"]
    for arguments in (of_image, of_kserve, container("base", "deployment.yaml")["args"]):
        assert arguments[0] == "up"
        given = up.make_context("up", [*arguments[1:], "--repository", str(tmp_path)]).params
        assert given["host"] == "0.0.0.0"
    with pytest.raises(click.UsageError):
        up.make_context("up", [*of_kserve[1:], "--repository", str(tmp_path), "--grpcport", "1"])


@pytest.mark.parametrize(
    ("folder", "file", "of_pod"),
    [("base", "deployment.yaml", "deployment.yaml"), ("kserve", "runtime.yaml", "service.yaml")],
)
def test_a_server_is_told_to_end_when_clients_have_gone_and_has_the_time_that_it_takes(
    folder: str, file: str, of_pod: str
) -> None:
    program, seconds = container(folder, file)["lifecycle"]["preStop"]["exec"]["command"]
    spec = yaml.safe_load((KUBERNETES / folder / of_pod).read_text())["spec"]
    pod = spec["predictor"] if "predictor" in spec else spec["template"]["spec"]
    assert program == "sleep"
    assert int(seconds) > 1.1 * CONNECTION_SECONDS, "gRPC takes up to a tenth more"
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + STOP_SECONDS + ORPHAN_SECONDS


def test_a_page_that_cannot_draw_is_not_ready() -> None:
    pod = container("page", "deployment.yaml")
    given = page.make_context("page", [*pod["args"]]).params
    services = [made for made in manifests(KUBERNETES / "base") if made["kind"] == "Service"]
    assert given["url"] in {f"{made['metadata']['name']}:8001" for made in services}
    assert pod["readinessProbe"]["httpGet"]["path"] == READY
    assert "httpGet" not in pod["livenessProbe"], "a page need not start again when its server is gone"


def test_the_pods_of_the_job_draw_the_set(tmp_path: Path) -> None:
    repository, claim = tmp_path / "models", tmp_path / "claim"
    (claim / "lost+found").mkdir(parents=True)
    shutil.copytree(TEMPLATES / "pig", repository / "pig", ignore=shutil.ignore_patterns("bundle", ".bundle*"))
    write_tiny_bundle(bundle_folder(repository, "pig"), model="pig")
    pod = container("draw", "job.yaml")
    job = pod["args"]
    assert job[0] == "draw"
    (where,) = [mount["mountPath"] for mount in pod["volumeMounts"] if mount["name"] == "samples"]
    out = claim / Path(job[job.index("--out") + 1]).relative_to(where)
    pods = yaml.safe_load((KUBERNETES / "draw" / "job.yaml").read_text())["spec"]["completions"]
    shards = int(job[job.index("--shard") + 1])
    assert shards == pods
    # A file a shard, so that one that is not drawn is missed.
    changed = ["--repository", str(repository), "--out", str(out), "--count", str(2 * shards), "--per-file", "2"]
    for one in range(pods):
        ran = CliRunner().invoke(draw, [*job[1:], *changed], env={"JOB_COMPLETION_INDEX": str(one)})
        assert ran.exit_code == 0, ran.output
    checked = CliRunner().invoke(draw, ["--check", str(out)])
    assert checked.exit_code == 0, checked.output


def test_a_pulled_bundle_is_what_servers_look_for(tmp_path: Path) -> None:
    shutil.copytree(TEMPLATES / "pig", tmp_path / "built" / "pig", ignore=shutil.ignore_patterns("bundle", ".bundle*"))
    write_tiny_bundle(bundle_folder(tmp_path / "built", "pig"), model="pig")
    job, server = container("pull", "job.yaml"), container("base", "deployment.yaml")
    command, address, *options = job["args"]
    assert command == "pull"
    (where,) = [mount for mount in job["volumeMounts"] if mount["name"] == "bundles"]
    assert options == ["--repository", where["mountPath"]] == server["args"][1:3]
    assert address.endswith("/bundles/pig/DIGEST")
    address = push(tmp_path / "built", "pig", f"file://{tmp_path}/bundles")
    (tmp_path / "models").mkdir()
    ran = CliRunner().invoke(pull_command, [address, "--repository", str(tmp_path / "models")])
    assert ran.exit_code == 0, ran.output
    assert find_models(tmp_path / "models", ()) == (["pig"], {})
