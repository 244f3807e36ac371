"""deploy/kubernetes/values.yaml as Dagster's chart renders it, and the job that a run becomes by it.

``DAGSTER_HELM_CHART`` names the chart's folder (``helm pull dagster/dagster --untar``). It is rendered with the program
``helm``, or with the package ``helm-python-sdk``. Without a chart, what needs none is tested.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import LaunchRunContext
from dagster_k8s import job as k8s
from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
from jsonschema import Draft202012Validator
from sqlalchemy import make_url

from clawbill_pipeline_tests.scenarios.command import environment

Document = dict[str, Any]

DEPLOY = Path(__file__).parents[2] / "deploy"
VALUES = DEPLOY / "kubernetes" / "values.yaml"
values = yaml.safe_load(VALUES.read_text())
web = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "web.yaml").read_text()))
(server,) = values["dagster-user-deployments"]["deployments"]
IMAGE = f"{server['image']['repository']}:{server['image']['tag']}"
#: Where the chart puts it.
HOME = "/opt/dagster/dagster_home"
CHART = os.environ.get("DAGSTER_HELM_CHART", "")
HELM = shutil.which("helm")
LIBRARY = importlib.util.find_spec("helm_python")  # no requirement of ours
charted = pytest.mark.skipif(
    not CHART or not (HELM or LIBRARY),
    reason="DAGSTER_HELM_CHART does not name Dagster's Helm chart, or neither helm nor helm-python-sdk is installed",
)


def check_pod(pod: Document) -> None:
    """What Kubernetes' own standard for restricted pods asks, a read-only root file system, and bounds for memory."""
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"], container["name"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert all(port["containerPort"] >= 1024 for port in container.get("ports", []))
    for container in pod["containers"]:
        assert {"requests", "limits"} <= set(container["resources"]), container["name"]
        assert "memory" in container["resources"]["limits"]
        ports = {port["containerPort"] for port in container.get("ports", [])}
        names = {port.get("name") for port in container.get("ports", [])}
        for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
            asked = container.get(probe, {}).get("httpGet", {}).get("port")
            assert asked is None or asked in ports | names, container["name"]


def check_mounts(container: Document) -> None:
    """What is written to, by the entrypoint too, must not be the root file system."""
    mounted = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert mounted == {"/tmp": False, "/run/clawbill": False, HOME: False, "/catalog": True}
    given = [entry["value"] for entry in container["env"] if entry["name"] == "DAGSTER_HOME"]
    assert given in ([], [HOME])
    # Where the image's entrypoint stands, its arguments come after it.
    assert "command" not in container
    assert {"name": "CLAWBILL_LOG_FORMAT", "value": "json"} in container["env"]


def check_job(made: Document) -> None:
    """A run's job, as K8sRunLauncher makes it."""
    kubernetes_validate.validate(made, "1.37", strict=True)
    pod = made["spec"]["template"]["spec"]
    check_pod(pod)
    # A run reads what tenants send: it is given no key to the cluster.
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    check_mounts(container)
    # An hour of ten million events needs more than the code server has.
    assert container["resources"]["limits"] == {"memory": "4Gi"}
    assert made["spec"]["ttlSecondsAfterFinished"] == 3600
    assert made["spec"]["backoffLimit"] == 0, "Dagster runs it again, not Kubernetes"
    moved = made["spec"]["template"]["metadata"]["annotations"]
    assert moved["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


def plain(made: object) -> Document:
    found: Document = k8s.kubernetes.client.ApiClient().sanitize_for_serialization(made)
    return found


def test_a_run_is_a_job_that_kubernetes_takes() -> None:
    given = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    user_defined = UserDefinedDagsterK8sConfig.from_dict(
        {re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", name): part for name, part in given.items()}
    )
    config = DagsterK8sJobConfig(job_image=IMAGE, dagster_home=HOME, instance_config_map="clawbill-dagster-instance")
    arguments = ["dagster", "api", "execute_run", "{}"]
    check_job(plain(construct_dagster_k8s_job(config, arguments, "run-1", user_defined_k8s_config=user_defined)))
    assert not server["includeConfigInLaunchedRuns"]["enabled"], "runs would get the code server's memory"


def test_the_web_app_can_do_no_more_than_it_must() -> None:
    (pod,) = (document["spec"]["template"]["spec"] for document in web if document["kind"] == "Deployment")
    check_pod(pod)
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    secrets = [source["secretRef"]["name"] for source in container["envFrom"]]
    assert secrets == ["clawbill-environment", "clawbill-web"]
    assert {entry["name"] for entry in container["env"]} == {"CLAWBILL_LOG_FORMAT", "STRIPE_SECRET_KEY"}


def merged(base: object, over: object) -> Any:
    """``over`` laid over ``base``, as Helm lays values over the chart's."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {**base, **{name: merged(base.get(name), value) for name, value in over.items()}}
    return over


def rendered(folder: Path, over: Document | None = None) -> list[Document]:
    """All that the chart makes of our values, with ``over`` laid over them."""
    copy = shutil.copytree(CHART, folder / "chart")
    for schema in copy.rglob("values.schema.json"):  # which refers to addresses that may not be reached
        schema.unlink()
    taken = merged(values, over or {})
    (given := folder / "values.yaml").write_text(yaml.safe_dump(taken))
    if HELM:
        command = [HELM, "template", "clawbill", str(copy), "--values", str(given)]
        parts = [subprocess.run(command, capture_output=True, text=True, check=True).stdout]
    else:
        with importlib.import_module("helm_python").Chart.load(copy) as loaded:
            texts = loaded.render(taken, name="clawbill")
        parts = [text for name, text in texts.items() if not name.endswith("NOTES.txt")]
    return [document for part in parts for document in yaml.safe_load_all(part) if document]


def instance_file(documents: list[Document]) -> str:
    """The dagster.yaml in the one config map that has one."""
    (text,) = (
        document["data"]["dagster.yaml"]
        for document in documents
        if document["kind"] == "ConfigMap" and "dagster.yaml" in (document.get("data") or {})
    )
    return str(text)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return rendered(tmp_path_factory.mktemp("chart"), {"migrate": {"enabled": True}})


def pods(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Deployments and jobs by what they run: their name without the release's and the charts'."""
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            name = re.sub(r"^clawbill-dagster-(user-deployments-)?", "", document["metadata"]["name"])
            yield name, document["spec"]["template"]["spec"]


def without_addresses(part: Document) -> Document:
    """A part of a schema that leaves Kubernetes' types, which are at addresses that may not be reached, open."""
    return {name: value for name, value in part.items() if name != "$ref" or value.startswith("#")}


@charted
def test_the_chart_knows_every_value() -> None:
    schema = json.loads((Path(CHART) / "values.schema.json").read_text(), object_hook=without_addresses)
    defaults = yaml.safe_load((Path(CHART) / "values.yaml").read_text())
    found = Draft202012Validator(schema).iter_errors(merged(defaults, values))
    assert [error.message for error in found] == []
    # It forbids unknown names of the daemon and the webserver only.
    assert set(values) - set(defaults) == set()
    assert set(server) - set(schema["$defs"]["UserDeployment"]["properties"]) == set()
    ours = values["runLauncher"]["config"]["k8sRunLauncher"]
    assert set(ours) - set(defaults["runLauncher"]["config"]["k8sRunLauncher"]) == set()


@charted
def test_dagsters_chart_makes_what_kubernetes_takes(documents: list[Document]) -> None:
    every = [*documents, *web]
    names = [(document["kind"], document["metadata"]["name"]) for document in every]
    assert len(names) == len(set(names))
    readme = (DEPLOY / "kubernetes" / "README.md").read_text()
    for document in every:
        kubernetes_validate.validate(document, "1.37", strict=True)
    for name, pod in pods(documents):
        check_pod(pod)
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        text = json.dumps(pod)
        for found in re.findall(r'"configMap(?:Ref)?": {"name": "([^"]+)"', text):
            assert ("ConfigMap", found) in names or f"`{found}`" in readme, name
        for found in re.findall(r'"secret(?:Key)?Ref": {(?:"key": "[^"]+", )?"name": "([^"]+)"[^}]*}', text):
            assert f"`{found}`" in readme or f'"{found}", "optional": true' in text, name
        # Only what is ours is given our secrets.
        assert ("clawbill-environment" in text) == (name == "clawbill")
        assert "clawbill-services" not in text


@charted
def test_what_the_chart_starts_is_what_the_values_mean(documents: list[Document]) -> None:
    by_name = {name: pod["containers"][0] for name, pod in pods(documents)}
    assert set(by_name) == {"clawbill", "daemon", "webserver", "webserver-instance-migrate"}
    code = by_name["clawbill"]
    check_mounts(code)
    assert code["image"] == IMAGE
    assert not {"DAGSTER_CONTAINER_CONTEXT", "DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT"} & {
        entry["name"] for entry in code["env"]
    }
    homes = {(document.get("data") or {}).get("DAGSTER_HOME", HOME) for document in documents}
    assert homes == {HOME}
    # The daemon and the webserver ask the code server by the name of its service.
    services = {
        document["metadata"]["name"]: document["spec"] for document in documents if document["kind"] == "Service"
    }
    (workspace,) = (
        document["data"]["workspace.yaml"]
        for document in documents
        if document["kind"] == "ConfigMap" and "workspace.yaml" in (document.get("data") or {})
    )
    (place,) = (place["grpc_server"] for place in yaml.safe_load(workspace)["load_from"])
    assert services[place["host"]]["ports"][0]["port"] == place["port"] == server["port"]
    assert code["args"][:7] == ["dagster", "api", "grpc", "-h", "0.0.0.0", "-p", str(place["port"])]


@charted
def test_dagster_knows_what_the_chart_starts_it_with_and_all_of_it_logs_as_json(documents: list[Document]) -> None:
    by_name = {name: pod["containers"][0] for name, pod in pods(documents)}
    for words in (
        by_name["clawbill"]["args"],
        by_name["daemon"]["command"][-1].split(),
        by_name["webserver"]["command"][-1].split(),
    ):
        assert words[words.index("--log-format") + 1] == "json"
        program = Path(sys.executable).parent / words[0]
        known = subprocess.run([program, *words[1:], "--help"], capture_output=True, text=True, check=False)
        assert known.returncode == 0, known.stderr


def one_run(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Document]:
    """The id of a run without a partition, and the job that the instance's launcher asks Kubernetes for."""
    asked: list[object] = []
    monkeypatch.setattr(k8s.kubernetes.config, "load_incluster_config", lambda: None)
    monkeypatch.setattr(
        k8s.kubernetes.client.BatchV1Api, "create_namespaced_job", lambda self, body, namespace, **_: asked.append(body)
    )
    code = ReconstructableRepository.for_module("clawbill_pipeline.definitions", "defs", None, container_image=IMAGE)
    job = code.get_reconstructable_job("open_matters")
    run = instance.create_run_for_job(job.get_definition(), job_code_origin=job.get_python_origin())
    instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    (made,) = asked
    return run.run_id, plain(made)


@charted
@pytest.mark.timeout(300)
def test_dagster_takes_the_instance_and_a_pod_executes_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str, ledger_url: str
) -> None:
    """The run's pod as a process, without a cluster: the job's environment and arguments behind the entrypoint."""
    url = make_url(database_url)
    storage = {
        "postgresqlHost": url.host or "localhost",
        "postgresqlUsername": url.username,
        "postgresqlDatabase": url.database,
        "postgresqlParams": dict(url.query),
        "service": {"port": url.port or 5432},
    }
    (tmp_path / "dagster.yaml").write_text(instance_file(rendered(tmp_path, {"postgresql": storage})))
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", url.password or "")
    monkeypatch.setenv("CLAWBILL_DATABASE_URL", ledger_url)
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        queue = instance.get_concurrency_config().run_queue_config
        assert queue
        assert queue.max_concurrent_runs == 16
        run_id, made = one_run(instance, monkeypatch)
        check_job(made)
        pod = made["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        secrets = {
            "clawbill-environment": {"CLAWBILL_DATABASE_URL": ledger_url, "CLAWBILL_LAKE": str(tmp_path / "lake")},
            "clawbill-services": {
                "OPENCLAW_URL": "http://127.0.0.1:1",
                "OPENCLAW_TOKEN": "token",
                "STRIPE_SECRET_KEY": "sk_test_x",
            },
        }
        env = environment(CLAWBILL_DAGSTER_CONFIG=str(DEPLOY / "celery"), CLAWBILL_STATE=str(tmp_path / "state"))
        for source in container["envFrom"]:
            env |= secrets.pop(source["secretRef"]["name"])
        assert secrets == {}
        env |= {entry["name"]: entry.get("value", url.password or "") for entry in container["env"]}
        env |= {"DAGSTER_HOME": str(tmp_path / "home")}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        done = subprocess.run(
            [str(DEPLOY / "compose" / "entrypoint"), *container["args"]],
            env=env, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.status == DagsterRunStatus.SUCCESS, done.stderr
