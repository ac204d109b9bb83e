"""What production must not run with: each refusal is a sentence that names its setting."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from services.settings.access import (
    DEVELOPMENT_API_KEY_PEPPER,
    DEVELOPMENT_JWT_SECRET,
    DEVELOPMENT_SECRETS_KEY,
    SHORTEST_KEY,
)

if TYPE_CHECKING:
    from services.settings import Settings

EXAMPLES = {("longrun", "longrun"), ("guest", "guest"), ("postgres", "postgres")}
"""Users and passwords that everybody knows."""
OWN_NETWORK = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".svc", ".test")


def refusals(settings: "Settings") -> Iterator[str]:
    """Why production does not start with these settings; nothing when it does."""
    yield from weak_secrets(settings)
    yield from known_passwords(settings)
    yield from in_clear(settings)
    if settings.log.level == "debug":
        yield "LOG_LEVEL must not be debug: libraries then write what people say into the log"
    if settings.models.default_model.startswith("demo/"):
        yield "DEFAULT_MODEL must not be a demo: production refuses every run of one"
    if settings.outgoing.allow_private:
        yield (
            "OUTGOING_ALLOW_PRIVATE must be false: every user's agent could reach your stores;"
            " name single hosts in OUTGOING_ALLOWED_HOSTS"
        )
    if "*" in settings.api.forwarded_allow_ips:
        yield (
            "FORWARDED_ALLOW_IPS must name your proxies, by address or network: with * anybody could say"
            " from where they come"
        )


def weak_secrets(settings: "Settings") -> Iterator[str]:
    if DEVELOPMENT_JWT_SECRET in settings.auth.secrets:
        yield "JWT_SECRET must be set, without the development secret"
    elif any(len(secret.encode()) < SHORTEST_KEY for secret in settings.auth.secrets):
        yield f"JWT_SECRET must have at least {SHORTEST_KEY} bytes"
    if settings.api_keys.pepper.get_secret_value() == DEVELOPMENT_API_KEY_PEPPER:
        yield "API_KEY_PEPPER must be set"
    if DEVELOPMENT_SECRETS_KEY in settings.secrets.each:
        yield "SECRETS_KEYS must be set, without the development key"


def known_passwords(settings: "Settings") -> Iterator[str]:
    if is_example([settings.postgres.url.get_secret_value()]):
        yield "DATABASE_URL must not have the user and password of the example"
    if settings.broker.kind == "rabbitmq" and is_example(settings.broker.amqp_url.split(";")):
        yield "RABBITMQ_USER and RABBITMQ_PASSWORD (or RABBITMQ_URL) must not be those that every RabbitMQ begins with"


def is_example(urls: Iterable[str]) -> bool:
    return any((parts.username, parts.password) in EXAMPLES for parts in map(urlsplit, urls))


def in_clear(settings: "Settings") -> Iterator[str]:
    """Tokens, keys and what people say must not cross the internet unencrypted, nor may keys come that way."""
    for name, url in credentialed(settings).items():
        if is_in_clear(url):
            yield f"{name} must begin with https://: its host is not of your own network"


def credentialed(settings: "Settings") -> dict[str, str]:
    """The addresses, by the names of their settings, that somebody's credentials travel to."""
    models = {f"{name.upper()}": getattr(settings.models, name) for name in type(settings.models).model_fields}
    return {
        "PUBLIC_URL": settings.api.public_url,
        "PREVIEW_URL": settings.previews.url.replace("{label}", "label"),
        "JWT_JWKS_URL": settings.auth.jwks_url,
        **{name: url for name, url in models.items() if name.endswith("_BASE_URL")},
        "TAVILY_BASE_URL": settings.search.base_url,
        "LANGFUSE_HOST": settings.langfuse.host,
        "SENTRY_DSN": settings.sentry.dsn.get_secret_value(),
        "OTEL_EXPORTER_OTLP_ENDPOINT": settings.opentelemetry.exporter_otlp_endpoint,
        "MCP_REGISTRY_URL": settings.mcp.registry_url,
        "QSTASH_URL": settings.qstash.url,
    }


def is_in_clear(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_of_own_network((parts.hostname or "").rstrip("."))


def is_of_own_network(host: str) -> bool:
    """A private address, a name without a dot (as of a container), or one that the internet does not know."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(OWN_NETWORK)
