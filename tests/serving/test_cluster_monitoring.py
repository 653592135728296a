"""How a cluster's servers are found by Prometheus, and its figures by the autoscaler; promtool says what would come."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DEPLOY, FOLDERS, KUBERNETES, manifests, pod

MONITORING = DEPLOY / "monitoring"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool evaluates the rules")
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl makes the manifests")


def read(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text()))


def promtool(*words: str | Path) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
@pytest.mark.parametrize(("waiting", "seconds"), [("900x120", 300), ("900x20 0x100", 0)])
def test_the_autoscaler_has_its_own_namespace_s_figure_from_the_adapter(
    tmp_path: Path, waiting: str, seconds: int
) -> None:
    """Of samples that wait and are not answered, and of none that wait."""
    (metric,) = read(KUBERNETES / "base" / "autoscaler.yaml")["spec"]["metrics"]
    rules = read(MONITORING / "prometheus-adapter.yml")["externalRules"]
    (rule,) = [rule for rule in rules if rule["name"]["as"] == metric["external"]["metric"]["name"]]
    # Without such a label prometheus-adapter refuses to make a query.
    (label,) = [name for name, of in rule["resources"]["overrides"].items() if of == {"resource": "namespace"}]
    query = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"])
    query = query.replace("<<.LabelMatchers>>", f'{label}="here"')
    assert "<<" not in query
    series = [
        {"series": f'{name}{{namespace="{namespace}",instance="a",model="pig"}}', "values": values}
        for namespace, waits in (("here", waiting), ("there", "9000x120"))
        for name, values in (("medgen_rows_waiting", waits), ("medgen_rows_left_total", "0x120"))
    ]
    case = {
        "interval": "15s",
        "input_series": series,
        "promql_expr_test": [{"expr": query, "eval_time": "25m", "exp_samples": [{"labels": "{}", "value": seconds}]}],
    }
    made = tmp_path / "test.yml"
    made.write_text(yaml.safe_dump({"rule_files": [str(MONITORING / "rules.yml")], "tests": [case]}))
    promtool("test", "rules", made)


def as_prometheus_finds(name: str, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets of kubernetes_sd_configs with the role pod: one for each port."""
    labels, spec = pod(manifest) or ({}, {"containers": []})
    of_pod = {
        f"__meta_kubernetes_pod_label_{key.translate(str.maketrans('./-', '___'))}": labels[key] for key in labels
    }
    return [
        {
            "targets": [f"10.0.0.1:{port['containerPort']}"],
            "labels": {
                "__meta_kubernetes_namespace": "here",
                "__meta_kubernetes_pod_name": name,
                "__meta_kubernetes_pod_container_port_name": port["name"],
                **of_pod,
            },
        }
        for container in spec["containers"]
        for port in container.get("ports", [])
    ]


@needs_promtool
@needs_kubectl
@pytest.mark.parametrize("folder", FOLDERS)
def test_servers_alone_are_scraped_and_under_the_job_that_the_rules_ask_for(tmp_path: Path, folder: str) -> None:
    servers = {"base": 1, "gpu": 1, "kserve": 1}.get(folder, 0)
    config = read(MONITORING / "prometheus-kubernetes.yml")
    (job,) = config["scrape_configs"]
    # Debian's Prometheus is built without what asks a cluster.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    job["static_configs"] = [
        target for made in manifests(KUBERNETES / folder) for target in as_prometheus_finds("pod-1", made)
    ] or [{"targets": ["10.0.0.1:1"]}]
    shutil.copy(MONITORING / "rules.yml", tmp_path)
    made = tmp_path / "prometheus.yml"
    made.write_text(yaml.safe_dump(config))
    promtool("check", "config", made)
    found = [
        one["labels"] for one in json.loads(promtool("check", "service-discovery", "--timeout=1s", made, "medgen"))
    ]
    kept = [{name: value for name, value in labels.items() if name[0] != "_"} for labels in found if labels]
    assert kept == [{"job": "medgen", "namespace": "here", "instance": "pod-1"}] * servers
    assert all(labels["__address__"].endswith(":8002") for labels in found if labels)
