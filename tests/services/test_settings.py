import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from services.settings import (
    ApiSettings,
    AuthSettings,
    BillingSettings,
    BrokerSettings,
    PostgresSettings,
    RedisSettings,
    RunSettings,
    SecretsSettings,
    Settings,
    parse_duration,
)
from services.settings.access import DEVELOPMENT_API_KEY_PEPPER, DEVELOPMENT_JWT_SECRET, DEVELOPMENT_SECRETS_KEY

ROOT = Path(__file__).parents[2]


def environment_names() -> dict[str, Any]:
    """Every name that the settings read, with its default."""
    names = {}
    for section in Settings.model_fields.values():
        model = section.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        prefix = str(model.model_config.get("env_prefix", ""))
        for name, field in model.model_fields.items():
            names[str(field.validation_alias or f"{prefix}{name}".upper())] = field.get_default()
    return names


def example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))


def test_the_example_lists_every_setting_and_no_other() -> None:
    assert set(example()) == set(environment_names())


def test_the_example_shows_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    plain = Settings().model_dump()
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    assert Settings().model_dump() == plain


@pytest.mark.parametrize(
    ("text", "seconds"), [("15", 15), ("0.5", 0.5), ("150ms", 0.15), ("2 m", 120), ("6h", 21_600), ("30d", 2_592_000)]
)
def test_a_duration_takes_units_and_bare_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["soon", "-3s", "-3", "nan", "", "1e400s"])
def test_a_bad_duration_names_its_setting(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_LOCK_TTL", text)
    with pytest.raises(ValidationError, match=r"lock_ttl|LOCK_TTL"):
        RunSettings()


SAFE = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": "postgresql://longrun:chosen@db/longrun",
    "RABBITMQ_URL": "amqp://longrun:chosen@rabbitmq/%2F",
    "JWT_SECRET": "s" * 32,
    "SECRETS_KEYS": "k" * 32,
    "API_KEY_PEPPER": "p" * 32,
}


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The environment of an installation that is as it should be."""
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)
    for name, value in SAFE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JWT_SECRET", ""),
        ("JWT_SECRET", DEVELOPMENT_JWT_SECRET),
        ("JWT_SECRET", "short"),
        ("JWT_PREVIOUS_SECRETS", f"{'o' * 32},{DEVELOPMENT_JWT_SECRET}"),
        ("API_KEY_PEPPER", DEVELOPMENT_API_KEY_PEPPER),
        ("SECRETS_KEYS", DEVELOPMENT_SECRETS_KEY),
        ("SECRETS_KEYS", f"{'k' * 32},{DEVELOPMENT_SECRETS_KEY}"),
        ("DATABASE_URL", "postgresql://longrun:longrun@db/longrun"),
        ("DATABASE_URL", "postgresql://postgres:postgres@db:5432/longrun?sslmode=require"),
        ("RABBITMQ_URL", ""),
        ("RABBITMQ_URL", "amqp://longrun:chosen@one/%2F;amqp://guest:guest@two/%2F"),
        ("LOG_LEVEL", "debug"),
        ("DEFAULT_MODEL", "demo/lorem?chunks=2"),
        ("OUTGOING_ALLOW_PRIVATE", "true"),
        ("FORWARDED_ALLOW_IPS", "*"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1,*"),
        ("PUBLIC_URL", "http://api.example.org"),
        ("PUBLIC_URL", "http://93.184.216.34:8000"),
        ("PREVIEW_URL", "http://{label}.previews.example.org/"),
        ("JWT_JWKS_URL", "http://login.example.org/keys"),
        ("OPENAI_BASE_URL", "http://models.example.org/v1"),
        ("VLLM_BASE_URL", "http://93.184.216.34:8001/v1"),
        ("TAVILY_BASE_URL", "http://search.example.org"),
        ("LANGFUSE_HOST", "http://traces.example.org"),
        ("MCP_REGISTRY_URL", "http://registry.example.org/{qualifiedName}"),
        ("QSTASH_URL", "http://qstash.example.org"),
        ("API_CORS_ORIGINS", '["*"]'),
    ],
)
def test_production_does_not_start_with_what_is_unsafe_and_names_it(
    production: pytest.MonkeyPatch, name: str, value: str
) -> None:
    assert Settings().production
    production.setenv(name, value)
    if name == "JWT_JWKS_URL":
        production.setenv("JWT_ALGORITHMS", '["ES256"]')
    if name == "API_CORS_ORIGINS":
        production.setenv("API_CORS_CREDENTIALS", "true")
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert name.replace("JWT_PREVIOUS_SECRETS", "JWT_SECRET") in str(refused.value)
    assert not value or len(value) < 10 or value not in str(refused.value)


def test_production_names_all_that_is_unsafe_at_once(production: pytest.MonkeyPatch) -> None:
    for name in SAFE.keys() - {"ENVIRONMENT"}:
        production.delenv(name)
    with pytest.raises(ValidationError) as refused:
        Settings()
    for name in ("DATABASE_URL", "RABBITMQ_PASSWORD", "JWT_SECRET", "SECRETS_KEYS", "API_KEY_PEPPER"):
        assert name in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PUBLIC_URL", "https://api.example.org"),
        ("PUBLIC_URL", "http://127.0.0.1:8000"),
        ("PREVIEW_URL", "http://{label}.localhost:8002/"),
        ("OLLAMA_BASE_URL", "http://ollama:11434/v1"),
        ("VLLM_BASE_URL", "http://10.1.2.3:8001/v1"),
        ("LANGFUSE_HOST", "http://langfuse.monitoring.svc"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.0/8"),
        ("API_CORS_ORIGINS", '["*"]'),
    ],
)
def test_production_may_speak_in_clear_on_its_own_network(
    production: pytest.MonkeyPatch, name: str, value: str
) -> None:
    production.setenv(name, value)
    assert Settings().production


def test_cookies_are_for_pages_that_are_named() -> None:
    with pytest.raises(ValidationError, match=r"API_CORS_ORIGINS.*API_CORS_CREDENTIALS"):
        ApiSettings(cors_origins=("https://app.example", "*"), cors_credentials=True)
    assert ApiSettings(cors_origins=("https://app.example:8443", "http://[::1]:3000"), cors_credentials=True)


@pytest.mark.parametrize(
    "origin", ["https://app.example/", "app.example", "HTTPS://app.example", "null", "https://*.e.org"]
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="API_CORS_ORIGINS"):
        ApiSettings(cors_origins=(origin,))


@pytest.mark.parametrize("host", ["*", "https://api.example.org", "api.example.org:8000", "api.*.org", ""])
def test_a_host_name_that_cannot_be_meant_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="API_ALLOWED_HOSTS"):
        ApiSettings(allowed_hosts=(host,))


def test_credits_need_prices_and_a_default_tier_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING", "credits")
    with pytest.raises(ValidationError, match="BILLING_PRICES"):
        BillingSettings()
    monkeypatch.setenv("BILLING_PRICES", '{"*": {"input": 0.15, "output": 0.6}}')
    assert str(BillingSettings().prices["*"].input) == "0.15"
    monkeypatch.setenv("BILLING_TIERS", '{"pro": {"models": ["*"]}}')
    with pytest.raises(ValidationError, match="BILLING_DEFAULT_TIER"):
        BillingSettings()


@pytest.mark.parametrize("keys", ["", " , ", "short", f"{'k' * 32},short"])
def test_keys_that_are_too_short_or_missing_are_refused_without_showing_them(
    keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRETS_KEYS", keys)
    with pytest.raises(ValidationError, match="SECRETS_KEYS") as refused:
        SecretsSettings()
    assert "k" * 32 not in str(refused.value)


def test_the_broker_never_shares_our_redis_database() -> None:
    redis = RedisSettings(url=SecretStr("redis://127.0.0.1:6379/3"))
    assert Settings(redis=redis, broker=BrokerSettings(redis_url=SecretStr(""))).broker_redis_url.endswith("/4")


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    assert "hidden-word" not in repr(AuthSettings(secret=SecretStr("hidden-word" * 4)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SENTRY_DSN", "https://hidden@sentry.example/project"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization: Bearer hidden"),
    ],
)
def test_a_secret_of_the_wrong_shape_is_refused_without_showing_it(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "hidden" not in str(refused.value)


def test_a_lock_that_would_expire_between_renewals_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_HEARTBEAT_INTERVAL", "10s")
    with pytest.raises(ValidationError, match="RUN_HEARTBEAT_INTERVAL"):
        RunSettings()


def test_runs_that_would_count_as_dead_between_two_beats_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_DEAD_AFTER", "4s")
    with pytest.raises(ValidationError, match="RUN_DEAD_AFTER"):
        RunSettings()


@pytest.mark.parametrize("name", ["LOG_TTL", "SWEEP_INTERVAL", "ARCHIVE_INTERVAL", "CLOSE_AFTER", "WATCHDOG_TIMEOUT"])
@pytest.mark.parametrize("text", ["0", "0.0001s"])
def test_a_duration_in_which_nothing_could_be_done_is_refused(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"RUN_{name}", text)
    with pytest.raises(ValidationError, match=name.lower()):
        RunSettings()


def test_a_pool_smaller_than_its_minimum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_POOL_MAX", "5")
    with pytest.raises(ValidationError, match="POSTGRES_POOL_MAX"):
        PostgresSettings()


def spread_over(urls: str) -> RedisSettings:
    return RedisSettings(urls=SecretStr(urls))


def test_several_redis_servers_are_known_by_address_or_by_the_name_they_are_given() -> None:
    redis = spread_over("redis://:word@one:6380/2, rediss://two#north ,unix:///run/redis.sock?db=3")
    assert [server.name for server in redis.servers] == ["one:6380/2", "north", "/run/redis.sock/3"]
    assert [server.dsn for server in redis.servers] == redis.listed
    assert redis.dsn == "redis://:word@one:6380/2"


def test_one_redis_server_is_the_only_one() -> None:
    redis = RedisSettings(url=SecretStr(""), host="one", port=6380)
    assert [server.dsn for server in redis.servers] == [redis.dsn] == ["redis://one:6380/0"]


@pytest.mark.parametrize(
    ("urls", "why"),
    [
        ("redis://one,redis://one:6379/0", "one:6379/0 twice"),
        ("redis://one,redis://:hidden@one#north", "one:6379/0 twice"),
        ("redis://one#north,redis://two#north", "north twice"),
        ("redis://one,two:6379", "redis://host:6379/0"),
        ("redis://:hidden,hidden@one", "redis://host:6379/0"),
        ("redis://one/first", "redis://host:6379/0"),
    ],
)
def test_a_list_of_redis_servers_that_cannot_be_meant_is_refused_without_showing_it(urls: str, why: str) -> None:
    with pytest.raises(ValidationError, match=f"REDIS_URLS.*{re.escape(why)}") as refused:
        spread_over(urls)
    assert "hidden" not in str(refused.value)


def test_the_broker_shares_no_database_with_any_of_several_servers() -> None:
    redis = spread_over("redis://one/0,redis://two/1")
    broker = BrokerSettings(kind="redis", redis_url=SecretStr("redis://:word@two/1"))
    with pytest.raises(ValidationError, match="BROKER_REDIS_URL"):
        Settings(redis=redis, broker=broker)
    beside = spread_over("redis://one/0,redis://one/1")
    with pytest.raises(ValidationError, match="BROKER_REDIS_URL"):
        Settings(redis=beside, broker=BrokerSettings(kind="redis", redis_url=SecretStr("")))
    assert Settings(redis=redis, broker=BrokerSettings(kind="redis", redis_url=SecretStr("")))
