"""The dashboard and the alert rules in docs/observability: what they ask for is told."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services import metrics
from services.embedded import debian
from services.embedded.environment import CHECKOUT
from services.postgres import Pool
from services.runs.tally import Tally

FOLDER = CHECKOUT / "docs" / "observability"
NAME = re.compile(r"longrun_\w+")
OF_PARTS = re.compile(r"_(bucket|count|sum)$")


async def told_names(pool: Pool) -> set[str]:
    """Every name of a sample that /metrics may have."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    families = [*metrics.registry.collect(), *await Tally(pool).read()]
    return {f"{family.name}{suffix}" for family in families for suffix in suffixes[family.type]}


def expressions() -> Iterator[str]:
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


@pytest.mark.parametrize("document", ["dashboard.json", "alerts.yml", "alerts.test.yml"])
async def test_every_metric_that_is_asked_for_is_told(document: str, pool: Pool) -> None:
    asked = set(NAME.findall((FOLDER / document).read_text()))
    told = await told_names(pool)
    assert asked
    assert asked <= told | {OF_PARTS.sub("", name) for name in told}


async def test_the_dashboard_shows_every_metric(pool: Pool) -> None:
    shown = set(NAME.findall("\n".join(expressions())))
    told = {OF_PARTS.sub("", name) for name in await told_names(pool)}
    assert told <= {OF_PARTS.sub("", name) for name in shown}


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
