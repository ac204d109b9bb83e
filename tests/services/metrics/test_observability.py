"""The dashboard and the alert rules in docs/observability: what they ask for is told."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from services import metrics
from services.embedded import debian
from services.embedded.environment import CHECKOUT
from services.runs.stores import Stores
from services.tally import BrokerTally, Tally
from tests.services.metrics.reading import Told

FOLDER = CHECKOUT / "docs" / "observability"
NAME = re.compile(r"longrun_\w+")
OF_PARTS = re.compile(r"_(bucket|count|sum)$")


async def told_names(stores: Stores) -> set[str]:
    """Every name of a sample that /metrics may have."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    of_stores = await Tally(stores.pool).read(), await BrokerTally(stores.dispatch.publisher).read()
    families = chain(metrics.registry.collect(), *of_stores)
    return {f"{family.name}{suffix}" for family in families for suffix in suffixes[family.type]}


def expressions() -> Iterator[str]:
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


@pytest.mark.parametrize(
    "document",
    ["dashboard.json", "alerts.yml", "alerts.test.yml", "../runbook.md", "../operations.md"],
)
async def test_every_metric_that_is_asked_for_is_told(document: str, stores: Stores) -> None:
    asked = set(NAME.findall((FOLDER / document).read_text()))
    told = await told_names(stores)
    assert asked
    assert asked <= told | {OF_PARTS.sub("", name) for name in told}


async def test_the_dashboard_shows_every_metric(stores: Stores) -> None:
    shown = set(NAME.findall("\n".join(expressions())))
    told = {OF_PARTS.sub("", name) for name in await told_names(stores)}
    assert told <= {OF_PARTS.sub("", name) for name in shown}


TOLD_AT_FIRST = """
import worker.sweeper
from prometheus_client import generate_latest
from services import metrics
print(generate_latest(metrics.registry).decode())
"""
INCREASE = re.compile(r"increase\((longrun_\w+_total)(?:\{(\w+)=\"([^\"]+)\"\})?\[")


def test_what_an_alert_waits_for_is_told_before_it_happens() -> None:
    """Prometheus sees no increase in a series that is new."""
    command = [sys.executable, "-c", TOLD_AT_FIRST]
    told = Told(subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout)
    waited_for = INCREASE.findall((FOLDER / "alerts.yml").read_text())
    assert len(waited_for) > 5
    for name, label, value in waited_for:
        assert told.values(name, {label: value}.items() if label else ()), (name, label, value)
    assert not [name for name in told.names if name.endswith("_created")]


def test_each_alert_is_seen_to_fire_by_a_test_of_its_own() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text()))
    tests = (FOLDER / "alerts.test.yml").read_text()
    fired = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", tests))
    fired |= set(re.findall(r"alertname=\"(\w+)\"", tests))
    assert alerts == fired


def test_names_and_labels_are_as_prometheus_wants_them() -> None:
    for family in metrics.registry.collect():
        assert re.fullmatch(r"longrun_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert "milliseconds" not in family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


@pytest.fixture(scope="module")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log = tmp_path_factory.mktemp("apt") / "apt.log"
    unpacked = asyncio.run(debian.unpack(["prometheus"], CHECKOUT / ".longrun" / "cache" / "prometheus", log))
    return unpacked / "usr" / "bin" / "promtool"


@pytest.mark.slow
@pytest.mark.parametrize("asked", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml"),
                                   ("check", "config", "--syntax-only", "prometheus.yml")])  # fmt: skip
def test_the_rules_are_what_prometheus_understands(promtool: Path, asked: tuple[str, ...]) -> None:
    checked = subprocess.run([promtool, *asked], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_the_expressions_of_the_dashboard_are_what_prometheus_understands(promtool: Path, tmp_path: Path) -> None:
    rules = [
        {"record": f"longrun:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions())
    ]
    written = tmp_path / "rules.json"
    written.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = subprocess.run([promtool, "check", "rules", written], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
