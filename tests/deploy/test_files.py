"""The files that operators begin with are true: names that settings know, times that fit, no more than is needed."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml

from services.embedded import debian, dependencies
from services.embedded.environment import CHECKOUT, for_a_server
from services.embedded.rabbitmq import DAY_MS
from services.postgres import Pool
from services.tally import Tally
from tests.deploy import files
from tests.services.runs.seeds import Place, make_place

HOUR = timedelta(hours=1)

WORKER_DRAIN_SECONDS = 30.0
"""docs/operations.md, "Stopping workers": what a supervisor must wait longer than."""
SECRETS = {
    "JWT_SECRET": "j" * 32,
    "SECRETS_KEYS": "k" * 32,
    "API_KEY_PEPPER": "p" * 32,
    "POSTGRES_PASSWORD": "chosen",
    "RABBITMQ_PASSWORD": "chosen",
}
FOR_OVERRIDES = {"DOCKER_GROUP": "999", "TLS_CERTIFICATES": "/etc/longrun/certificates"}
COMMANDS = {
    "uvicorn": ["--factory", "--loop", "uvloop", "--http", "httptools", "--no-access-log"],
    "dramatiq": ["--worker-shutdown-timeout", "86400000", "--skip-logging"],
}
"""What every way to start them has in common."""


def composed(*overrides: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("docker-compose")
    named = [argument for path in (files.COMPOSE, *overrides) for argument in ("-f", str(path))]
    env = {**for_a_server(), **environment}
    argv = [str(program), *named, "config", "--format", "json"]
    return subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "overrides", [(), files.OVERRIDES[:1], files.OVERRIDES], ids=["alone", "with-tls", "with-sandboxes"]
)
def test_docker_compose_takes_the_compose_files(overrides: tuple[Path, ...]) -> None:
    done = composed(*overrides, **SECRETS, **FOR_OVERRIDES)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize("name", SECRETS)
def test_the_compose_file_has_no_secret_of_its_own(name: str) -> None:
    done = composed(**{**SECRETS, name: ""})
    assert done.returncode
    assert name in done.stderr


def test_kubernetes_takes_the_manifests() -> None:
    unknown = []
    for document in files.documents():
        if document["apiVersion"].startswith("keda.sh/"):
            unknown.append(document["kind"])
        else:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    assert sorted(unknown) == ["ScaledObject", "TriggerAuthentication"], "of these there is no schema here"


async def test_systemd_takes_the_units(tmp_path: Path) -> None:
    program, env = await systemd_analyze(tmp_path)
    for unit in files.UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/longrun/.venv/bin/python", sys.executable))
    argv = [program, "verify", *(str(tmp_path / unit.name) for unit in files.UNITS)]
    done = await asyncio.to_thread(subprocess.run, argv, env=env, capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "longrun" in line]
    assert (done.returncode, said) == (0, []), done.stderr


async def systemd_analyze(folder: Path) -> tuple[str, dict[str, str]]:
    """The machine's, or Debian's, unpacked without installing it."""
    if found := shutil.which("systemd-analyze"):
        return found, for_a_server()
    cache = CHECKOUT / ".longrun" / "cache" / "systemd"
    root = await debian.unpack(
        ["systemd"], cache, folder / "apt.log", resolve=lambda names, how: dependencies.missing(names, (), how)
    )
    libraries = [str(path) for path in root.glob("usr/lib/*-linux-gnu")] + [str(root / "usr/lib/systemd")]
    env = for_a_server({"LD_LIBRARY_PATH": ":".join([*libraries, *(f"{path}/systemd" for path in libraries)])})
    return str(root / "usr/bin/systemd-analyze"), env


def test_every_name_in_them_is_one_that_the_settings_read() -> None:
    known = files.settings_names()
    told = {str(files.ENVIRONMENT_FILE.name): files.assignments(files.ENVIRONMENT_FILE)}
    for number, line in enumerate(re.findall(r"^ENV (.+)$", files.DOCKERFILE.read_text(), re.MULTILINE)):
        told[f"Dockerfile {number}"] = set(re.findall(r"(?:^|\s)([A-Z][A-Z0-9_]*)=", line)) - files.NOT_SETTINGS
    for path in (files.COMPOSE, *files.OVERRIDES):
        for name, service in files.compose(path)["services"].items():
            image = service.get("image", files.OUR_IMAGE).partition(":")[0]
            told[f"{path.name} {name}"] = set(service.get("environment", {})) - files.OTHER_IMAGES.get(image, set())
        interpolated = set(re.findall(r"\$\{([A-Z][A-Z0-9_]*)", path.read_text()))
        told[f"{path.name} ${{…}}"] = interpolated - files.ONLY_FOR_COMPOSE
    for document in files.documents():
        if document["kind"] in ("ConfigMap", "Secret"):
            told[document["kind"]] = {*document.get("data", {}), *document.get("stringData", {})}
    for name, pod in files.pod_specs().items():
        told[name] = {each["name"] for container in pod["containers"] for each in container.get("env", [])}
    for path in files.UNITS:
        told[path.name] = set(re.findall(r"^Environment=\"?([A-Z][A-Z0-9_]*)=", path.read_text(), re.MULTILINE))
    assert len(set().union(*told.values())) >= 20, "names are not found any more"
    assert {where: names - known for where, names in told.items() if names - known} == {}


def test_secrets_of_the_manifests_are_references_but_for_one_example() -> None:
    for pod in files.pod_specs().values():
        for container in pod["containers"]:
            assert {"secretRef": {"name": "longrun"}} in container["envFrom"]
            assert not [each for each in container.get("env", []) if re.search("SECRET|PASSWORD|KEY|URL", each["name"])]


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_everything_that_stops_a_worker_waits_for_its_drain() -> None:
    """Half as long again as it may take."""
    unit = next(path for path in files.UNITS if path.name.startswith("longrun-worker")).read_text()
    found = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert found
    graces = {
        "compose": seconds(files.compose()["services"]["worker"]["stop_grace_period"]),
        "kubernetes": files.pod_specs()["longrun-worker"]["terminationGracePeriodSeconds"],
        "systemd": float(found[1]),
    }
    assert {name: grace for name, grace in graces.items() if grace < 1.5 * WORKER_DRAIN_SECONDS} == {}
    assert "KillMode=process" in unit


def test_everything_that_stops_an_api_waits_for_its_last_answers() -> None:
    graceful = max(int(found) for found in re.findall(r'timeout-graceful-shutdown",? "?(\d+)', all_text()))
    unit = next(path for path in files.UNITS if path.name.startswith("longrun-api")).read_text()
    pod = files.pod_specs()["longrun-api"]
    pre_stop = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert seconds(files.compose()["services"]["api-1"]["stop_grace_period"]) > graceful + 5
    assert pod["terminationGracePeriodSeconds"] > pre_stop + graceful + 5
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0]) > graceful + 5


def all_text() -> str:
    paths = [files.DOCKERFILE, files.COMPOSE, *files.UNITS, *files.MANIFESTS]
    return "\n".join(path.read_text() for path in paths)


def test_every_way_to_start_a_process_says_what_it_must() -> None:
    found = [words for words in commands() if COMMANDS.keys() & set(words)]
    assert len(found) == 6, found
    for words in found:
        (program,) = COMMANDS.keys() & set(words)
        assert not [word for word in COMMANDS[program] if word not in words], words


def commands() -> Iterator[list[str]]:
    """Of the image, the services of compose, the pods and the units."""
    yield from map(json.loads, re.findall(r"^CMD (\[.*\])$", files.DOCKERFILE.read_text(), re.MULTILINE))
    yield from (service["command"] for service in files.compose()["services"].values() if "command" in service)
    for pod in files.pod_specs().values():
        yield from (container["command"] for container in pod["containers"] if "command" in container)
    for unit in files.UNITS:
        yield from (line.split() for line in re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE))


def test_processes_of_ours_may_do_no_more_than_they_need() -> None:
    services = {name: each for name, each in files.compose()["services"].items() if name not in ("postgres", "redis")}
    for name in services.keys() - {"rabbitmq"}:
        assert services[name]["read_only"], name
        assert services[name]["cap_drop"] == ["ALL"], name
        assert services[name]["security_opt"] == ["no-new-privileges:true"], name
    for pod in files.pod_specs().values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    final = files.DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert "pip uninstall" in final
    assert not re.search(r"apt-get|pip install", final)


def test_redis_forgets_nothing_and_rabbitmq_waits_for_a_day() -> None:
    services = files.compose()["services"]
    assert services["redis"]["command"] == [
        "redis-server", "--appendonly", "yes", "--maxmemory-policy", "noeviction",
    ]  # fmt: skip
    assert f"\nconsumer_timeout = {DAY_MS}\n" in (files.DEPLOY / "rabbitmq.conf").read_text()
    assert "./docs/deploy/rabbitmq.conf:/etc/rabbitmq/conf.d/20-longrun.conf:ro" in services["rabbitmq"]["volumes"]


def test_a_store_is_healthy_when_it_serves_and_no_sooner() -> None:
    """Whoever depends on it starts then, and migrations do not start again."""
    tests = {name: " ".join(each["healthcheck"]["test"]) for name, each in files.compose()["services"].items()
        if name in ("postgres", "redis", "rabbitmq")}  # fmt: skip
    assert "-h 127.0.0.1" in tests["postgres"], "the server that fills an empty volume answers on its socket"
    assert "PONG" in tests["redis"], "one that loads its file answers, too"
    assert "check_port_connectivity" in tests["rabbitmq"], "a node answers a ping before it takes connections"


def test_the_compose_files_trust_the_word_of_their_nginx_alone() -> None:
    services = files.compose()["services"]
    trusted = services["api-1"]["environment"]["FORWARDED_ALLOW_IPS"]
    assert services["nginx"]["networks"]["default"]["ipv4_address"] == trusted
    assert not any("ports" in service for name, service in services.items() if name != "nginx")


def test_files_that_compose_mounts_are_there() -> None:
    for path in (files.COMPOSE, *files.OVERRIDES):
        for source in re.findall(r"- (\./[^:\n]+):", path.read_text()):
            assert (CHECKOUT / source).exists(), source


def test_the_image_has_all_the_code_that_its_commands_import(tmp_path: Path) -> None:
    copied = re.findall(r"^COPY (\w+) \1$", files.DOCKERFILE.read_text(), re.MULTILINE)
    for folder in copied:
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    env = {**os.environ, "PYTHONPATH": "", "BROKER": "redis"}
    code = "import api.app, api.preview, migrations.__main__, services.admin, worker"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def sent_to_the_builder(path: str) -> bool:
    """As Docker reads it: a pattern fits a path or a folder above it, and the last one that fits counts."""
    sent = True
    parts = path.split("/")
    above = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
    for line in files.DOCKERIGNORE.read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#"):
            fits = re.compile(re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*"))
            sent = line.startswith("!") if any(map(fits.fullmatch, above)) else sent
    return sent


def test_whatever_the_image_copies_is_sent_to_its_builder_and_nothing_else() -> None:
    text = files.DOCKERFILE.read_text()
    copied = {*re.findall(r"^COPY (\w+) \1$", text, re.MULTILINE), *re.findall(r"^ARG LOCK=(\S+)$", text, re.MULTILINE)}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = {path for path in tracked if path.split("/")[0] in copied | {"requirements-browser.lock"}}
    assert len(wanted) > 100
    assert {path for path in tracked if sent_to_the_builder(path)} == wanted
    left = (".git/config", ".env", "api/.env", ".venv/bin/python", ".longrun/state.json", "api/__pycache__/app.pyc",
        "worker/actors.pyc", "longrun.key", "tests/conftest.py", ".hypothesis/x", "agent/.mypy_cache/x")  # fmt: skip
    assert [path for path in left if sent_to_the_builder(path)] == []


def test_prometheus_asks_where_workers_and_the_api_answer() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load(files.PROMETHEUS.read_text())["scrape_configs"]}
    named = {job: config["dns_sd_configs"][0] for job, config in jobs.items()}
    services = files.compose()["services"]
    assert set(named["longrun-api"]["names"]) == {name for name in services if name.startswith("api")}
    assert named["longrun-worker"]["names"] == ["worker"]
    port = str(named["longrun-worker"]["port"])
    told = services["worker"]["environment"]
    assert (told["METRICS_HOST"], told["METRICS_PORT"]) == ("0.0.0.0", port)
    [pod] = files.pod_specs()["longrun-worker"]["containers"]
    by_name = {each["name"]: each["value"] for each in pod["env"]}
    assert (by_name["METRICS_PORT"], pod["ports"][0]["containerPort"]) == (port, int(port))
    on_a_host = dict(re.findall(r"^(METRICS_\w+)=(.*)$", files.ENVIRONMENT_FILE.read_text(), re.M))
    assert on_a_host["METRICS_PORT"] == port
    assert on_a_host["METRICS_DIR"].startswith("/var/lib/longrun/"), "several units answer at one port"


async def test_what_the_autoscaler_asks_is_the_age_of_the_oldest_run_that_could_start(pool: Pool) -> None:
    scaled: dict[str, Any] = next(each for each in files.documents() if each["kind"] == "ScaledObject")
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert await pool.fetchval(query) == 0.0
    project = await add_run(pool, "running", HOUR)
    await add_run(pool, "queued", HOUR, behind=project)
    await add_run(pool, "queued", HOUR, due_in=HOUR)
    await add_run(pool, "queued", HOUR, judged=False)
    assert await pool.fetchval(query) == 0.0, "no worker could begin one of them"
    await add_run(pool, "queued", HOUR, attempt=1)
    await add_run(pool, "queued", HOUR, due_in=-timedelta(seconds=2))
    assert 2 <= await pool.fetchval(query) < 20, "handed over just now, due just now"
    await add_run(pool, "queued", timedelta(seconds=90))
    told = {family.name: family.samples[0].value for family in await Tally(pool).read()}
    age = await pool.fetchval(query)
    assert 90 <= age < 120
    assert abs(age - told["longrun_queued_run_age_seconds"]) < 10, "the metric says something else"


async def add_run(
    pool: Pool,
    status: str,
    ago: timedelta,
    *,
    behind: Place | None = None,
    due_in: timedelta | None = None,
    judged: bool = True,
    attempt: int = 0,
) -> Place:
    """A run of a project of its own, or of one that has another; where it is."""
    place = behind or await make_place(pool)
    await pool.execute(
        """
        INSERT INTO agent_runs (id, account_id, project_id, thread_id, model_name, status, judged, attempt,
                                created_at, started_at, not_before)
        VALUES ($1, $2, $3, $4, 'demo/echo', $5, $6, $7, now() - $8::interval,
                CASE WHEN $5 = 'running' THEN now() - $8::interval END, now() + $9::interval)
        """,
        uuid4(),
        place.account_id,
        place.project_id,
        place.thread_id,
        status,
        judged,
        attempt,
        ago,
        due_in,
    )
    return place
