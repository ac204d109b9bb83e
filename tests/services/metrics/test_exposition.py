import pytest
from pydantic import SecretStr, ValidationError

from services.metrics.exposition import may_read
from services.settings import MetricsSettings

TOKEN = "a-token-of-the-tests"
OPEN, CLOSED = MetricsSettings(), MetricsSettings(token=SecretStr(TOKEN))


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_without_a_token_this_machine_may_read(peer: str) -> None:
    assert may_read(OPEN, peer, {"host": "127.0.0.1:8000"})


@pytest.mark.parametrize("peer", ["10.0.0.7", "192.168.1.1", "::ffff:10.0.0.7", "fe80::1", "", "localhost", "unix"])
def test_without_a_token_nobody_else_may_read(peer: str) -> None:
    assert not may_read(OPEN, peer, {})


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "via", "x-forwarded-proto"])
def test_what_comes_by_a_proxy_on_this_machine_does_not_come_from_it(header: str) -> None:
    assert not may_read(OPEN, "127.0.0.1", {header: "127.0.0.1"})


@pytest.mark.parametrize(
    ("said", "allowed"),
    [(f"Bearer {TOKEN}", True), (f"bearer  {TOKEN} ", True), (f"Basic {TOKEN}", False), ("Bearer ", False),
     (f"Bearer {TOKEN}x", False), ("Bearer ärger", False), (TOKEN, False), ("", False)],
)  # fmt: skip
def test_where_there_is_a_token_it_alone_counts(said: str, allowed: bool) -> None:
    assert may_read(CLOSED, "10.0.0.7", {"authorization": said, "x-forwarded-for": "1.2.3.4"}) is allowed
    assert may_read(CLOSED, "127.0.0.1", {"authorization": said}) is allowed


def test_a_short_token_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="METRICS_TOKEN"):
        MetricsSettings(token=SecretStr("short"))
