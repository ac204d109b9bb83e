"""The one reader of the environment here: which servers the machine already has, and what processes are handed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Given:
    """Addresses that replace an embedded server; empty where the embedded one is wanted."""

    database_url: str = ""
    redis_url: str = ""
    redis_urls: str = ""
    broker_redis_url: str = ""
    rabbitmq_url: str = ""
    broker: str = ""
    jwt_secret: str = ""
    secrets_keys: str = ""
    api_key_pepper: str = ""
    public_url: str = ""
    preview_url: str = ""
    environment: str = ""
    sandbox_dir: str = ""
    sandbox_bwrap: str = ""
    sandbox_slirp: str = ""
    sandbox_browser: str = ""
    sandbox_network: bool = False


def given(environ: Mapping[str, str] | None = None) -> Given:
    """Read the addresses from `environ` (default: the process's own)."""
    env = os.environ if environ is None else environ
    return Given(
        database_url=env.get("DATABASE_URL", ""),
        redis_url=first(env.get("REDIS_URLS", "")) or env.get("REDIS_URL", "") or redis_address(env),
        redis_urls=env.get("REDIS_URLS", ""),
        broker_redis_url=env.get("BROKER_REDIS_URL", ""),
        rabbitmq_url=env.get("RABBITMQ_URL", "") or rabbitmq_address(env),
        broker=env.get("BROKER", ""),
        jwt_secret=env.get("JWT_SECRET", ""),
        secrets_keys=env.get("SECRETS_KEYS", ""),
        api_key_pepper=env.get("API_KEY_PEPPER", ""),
        public_url=env.get("PUBLIC_URL", ""),
        preview_url=env.get("PREVIEW_URL", ""),
        environment=env.get("ENVIRONMENT", ""),
        sandbox_dir=env.get("SANDBOX_DIR", ""),
        sandbox_bwrap=env.get("SANDBOX_BWRAP", ""),
        sandbox_slirp=env.get("SANDBOX_SLIRP", ""),
        sandbox_browser=env.get("SANDBOX_BROWSER", ""),
        sandbox_network=any(is_set(env.get(name, "")) for name in ("SANDBOX_NETWORK", "SANDBOX_NETWORK_ALLOWED")),
    )


def is_set(value: str) -> bool:
    return value.lower() in ("1", "true", "t", "yes", "y", "on")


def first(urls: str) -> str:
    return urls.partition(",")[0].strip()


def redis_address(env: Mapping[str, str]) -> str:
    if not (env.get("REDIS_HOST") or env.get("REDIS_PORT")):
        return ""
    password = env.get("REDIS_PASSWORD", "")
    credentials = f":{quote(password, safe='')}@" if password else ""
    return f"redis://{credentials}{env.get('REDIS_HOST') or '127.0.0.1'}:{env.get('REDIS_PORT') or 6379}/0"


def rabbitmq_address(env: Mapping[str, str]) -> str:
    if not (env.get("RABBITMQ_HOST") or env.get("RABBITMQ_PORT")):
        return ""
    user, password, vhost = (
        quote(env.get(f"RABBITMQ_{name}") or default, safe="")
        for name, default in (("USER", "guest"), ("PASSWORD", "guest"), ("VHOST", "/"))
    )
    return (
        f"amqp://{user}:{password}@{env.get('RABBITMQ_HOST') or '127.0.0.1'}:{env.get('RABBITMQ_PORT') or 5672}/{vhost}"
    )


def for_our_code(names: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process of ours: all that we have, `names`, and sources from the checkout."""
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", **names}


def for_a_server(names: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a foreign server: no more than it needs, so that ours cannot change what it does."""
    path = os.environ.get("PATH", "") + os.pathsep + os.defpath
    return {"PATH": path, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **(names or {})}


def for_a_tool() -> dict[str, str]:
    """The environment of a tool of the machine, such as apt: everything, proxies included."""
    return dict(os.environ)
