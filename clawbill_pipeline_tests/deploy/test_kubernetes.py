"""deploy/kubernetes/values.yaml as Dagster's chart renders it, and the job that a run becomes by it.

``DAGSTER_HELM_CHART`` names the chart's folder (``helm pull dagster/dagster --untar``). It is rendered with the program
``helm``, or with the package ``helm-python-sdk``. Without a chart, what needs none is tested.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster_k8s import job
from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job

DEPLOY = Path(__file__).parents[2] / "deploy"
VALUES = DEPLOY / "kubernetes" / "values.yaml"
values = yaml.safe_load(VALUES.read_text())
chart = os.environ.get("DAGSTER_HELM_CHART", "")
#: Where the chart puts it.
HOME = "/opt/dagster/dagster_home"
HELM = shutil.which("helm")
RENDERER = HELM or importlib.util.find_spec("helm_python")


def job_of(container: dict[str, Any], pod: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """A run's job, as K8sRunLauncher makes it."""
    given = {"container_config": container, "pod_spec_config": pod, "job_spec_config": spec}
    config = DagsterK8sJobConfig(
        job_image="clawbill:1",
        dagster_home="/opt/dagster/dagster_home",
        instance_config_map="clawbill-dagster-instance",
    )
    arguments = ["dagster", "api", "execute_run", "{}"]
    user_defined = UserDefinedDagsterK8sConfig.from_dict(given)
    made = construct_dagster_k8s_job(config, arguments, "run-1", user_defined_k8s_config=user_defined)
    found: dict[str, Any] = job.kubernetes.client.ApiClient().sanitize_for_serialization(made)
    return found


def check_mounts(container: dict[str, Any]) -> None:
    """What is written to, by the entrypoint too, must not be the root file system."""
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert mounted == {"/tmp": False, "/run/clawbill": False, HOME: False, "/catalog": True}
    given = [entry["value"] for entry in container["env"] if entry["name"] == "DAGSTER_HOME"]
    assert given in ([], [HOME])


def check_job(made: dict[str, Any]) -> None:
    kubernetes_validate.validate(made, "1.37", strict=True)
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    # An hour of ten million events needs more than the code server has.
    assert container["resources"]["limits"] == {"memory": "4Gi"}
    assert pod["securityContext"]["runAsNonRoot"]
    check_mounts(container)
    # Where the image's entrypoint stands, its arguments come after it.
    assert "command" not in container
    assert {"name": "CLAWBILL_LOG_FORMAT", "value": "json"} in container["env"]


def test_a_run_is_a_job_that_kubernetes_takes() -> None:
    given = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    check_job(job_of(given["containerConfig"], given["podSpecConfig"], given["jobSpecConfig"]))
    (server,) = values["dagster-user-deployments"]["deployments"]
    assert not server["includeConfigInLaunchedRuns"]["enabled"], "runs would get the code server's memory"


def rendered(folder: Path) -> list[dict[str, Any]]:
    """All that the chart makes of our values."""
    copy = shutil.copytree(chart, folder / "chart")
    for schema in copy.rglob("values.schema.json"):  # which refers to addresses that may not be reached
        schema.unlink()
    if HELM:
        done = subprocess.run(
            [HELM, "template", "clawbill", str(copy), "--values", str(VALUES)],
            capture_output=True,
            text=True,
            check=True,
        )
        parts = [done.stdout]
    else:
        helm_python = importlib.import_module("helm_python")  # no requirement of ours
        with helm_python.Chart.load(copy) as loaded:
            parts = [
                text for name, text in loaded.render(values, name="clawbill").items() if not name.endswith("NOTES.txt")
            ]
    return [document for part in parts for document in yaml.safe_load_all(part) if document]


@pytest.mark.skipif(not chart, reason="DAGSTER_HELM_CHART does not name Dagster's Helm chart")
@pytest.mark.skipif(not RENDERER, reason="neither helm nor the package helm-python-sdk is installed")
def test_dagsters_chart_takes_the_values_and_dagster_what_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = rendered(tmp_path)
    for document in documents:
        kubernetes_validate.validate(document, "1.37", strict=True)
    (text,) = (
        document["data"]["dagster.yaml"]
        for document in documents
        if document["kind"] == "ConfigMap" and "dagster.yaml" in (document.get("data") or {})
    )
    (tmp_path / "dagster.yaml").write_text(text)
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "password")
    instance = InstanceRef.from_dir(str(tmp_path))
    assert instance.run_launcher_data is not None
    assert instance.run_launcher_data.class_name == "K8sRunLauncher"
    given = yaml.safe_load(text)
    assert given["run_coordinator"]["config"]["max_concurrent_runs"] == 16
    run = given["run_launcher"]["config"]["run_k8s_config"]
    check_job(job_of(run["container_config"], run["pod_spec_config"], run["job_spec_config"]))
    homes = {(document.get("data") or {}).get("DAGSTER_HOME", HOME) for document in documents}
    assert homes == {HOME}
    (server,) = (
        document["spec"]["template"]["spec"]["containers"][0]
        for document in documents
        if document["kind"] == "Deployment" and "-user-deployments-" in document["metadata"]["name"]
    )
    check_mounts(server)
    assert not {"DAGSTER_CONTAINER_CONTEXT", "DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT"} & {
        entry["name"] for entry in server["env"]
    }
