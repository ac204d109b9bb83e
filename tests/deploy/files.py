"""What the repository ships to run Longrun with: image, compose files, manifests, units."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from services.embedded.environment import CHECKOUT
from services.settings import Settings

DEPLOY = CHECKOUT / "docs" / "deploy"
DOCKERFILE = CHECKOUT / "Dockerfile"
DOCKERIGNORE = CHECKOUT / ".dockerignore"
COMPOSE = CHECKOUT / "docker-compose.yml"
OVERRIDES = (DEPLOY / "docker-compose.tls.yml", CHECKOUT / "docs" / "docker-compose.sandbox.yml")
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
ENVIRONMENT_FILE = DEPLOY / "systemd" / "environment.example"
PROMETHEUS = CHECKOUT / "docs" / "observability" / "prometheus.yml"
OUR_IMAGE = "longrun"
NOT_SETTINGS = {"PATH", "PYTHONUNBUFFERED"}
"""What the image sets for Python itself."""
ONLY_FOR_COMPOSE = {"POSTGRES_PASSWORD", "DOCKER_GROUP", "TLS_CERTIFICATES"}
"""What an operator tells the compose files, which make settings or mounts of it."""
OTHER_IMAGES = {
    "postgres": {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"},
    "rabbitmq": {"RABBITMQ_DEFAULT_USER", "RABBITMQ_DEFAULT_PASS"},
}
"""What the images of others know."""


def settings_names() -> set[str]:
    """Every name that the settings read."""
    names = set()
    for section in Settings.model_fields.values():
        model: Any = section.annotation
        prefix = model.model_config.get("env_prefix", "")
        names |= {
            str(field.validation_alias or f"{prefix}{name}".upper()) for name, field in model.model_fields.items()
        }
    return names


def compose(path: Path = COMPOSE) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def documents() -> Iterator[dict[str, Any]]:
    """Each object of the manifests."""
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


def pod_specs() -> dict[str, dict[str, Any]]:
    """By the name of what makes the pods."""
    return {
        document["metadata"]["name"]: document["spec"]["template"]["spec"]
        for document in documents()
        if "template" in document.get("spec", {})
    }


def assignments(path: Path) -> set[str]:
    """The names of an environment file."""
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", path.read_text(), re.MULTILINE))
