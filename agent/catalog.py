"""Model names: which exist, which is the default, what their parameters may be. Light enough for the API."""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl

from agent.models import ALIASES, unalias
from services.errors import Unprocessable
from services.settings import Settings

DEFAULT_MODELS = {"openai": "openai/gpt-4o-mini", "anthropic": "anthropic/claude-haiku-5-5"}
DEFAULT_DEMO_MODEL = "demo/tour"
PRINTABLE = re.compile(r"[\x21-\x7e]{1,200}")


@dataclass(frozen=True, slots=True)
class Provider:
    """A service that answers; its key and base URL are the settings `{prefix}_api_key|_base_url`."""

    prefix: str
    title: str
    needs_key: bool = True
    dialect: Literal["openai", "anthropic"] = "openai"

    @property
    def key_name(self) -> str:
        return f"{self.prefix.upper()}_API_KEY"

    @property
    def url_name(self) -> str:
        return f"{self.prefix.upper()}_BASE_URL"

    def key(self, settings: Settings) -> str:
        key: str = getattr(settings.models, f"{self.prefix}_api_key").get_secret_value()
        return key.strip()

    def base_url(self, settings: Settings) -> str:
        url: str = getattr(settings.models, f"{self.prefix}_base_url")
        return url


PROVIDERS = {
    provider.prefix: provider
    for provider in (
        Provider("openai", "OpenAI"),
        Provider("anthropic", "Anthropic", dialect="anthropic"),
        Provider("openrouter", "OpenRouter"),
        Provider("groq", "Groq"),
        Provider("ollama", "Ollama", needs_key=False),
        Provider("vllm", "vLLM", needs_key=False),
    )
}
DEMO_PARAMETERS = {
    "tour": {},
    "echo": {},
    "lorem": {"chunks": range(100_001), "delay_ms": range(60_001)},
}
DEMO_DEFAULTS = {"chunks": 200, "delay_ms": 20}


@dataclass(frozen=True, slots=True)
class DemoModel:
    name: str
    chunks: int = DEMO_DEFAULTS["chunks"]
    delay_ms: int = DEMO_DEFAULTS["delay_ms"]


def resolve_model(settings: Settings, name: str | None) -> str:
    """The full name (`prefix/model`) of the model a request asks for; the default when it names none.

    Raises: Unprocessable, naming `model_name`, for an unknown provider, bad demo parameters, or a demo in production.
    """
    asked = unalias((name or "").strip() or default_model(settings))
    if not PRINTABLE.fullmatch(asked):
        raise Unprocessable("model_name must be 1 to 200 printable characters without spaces.")
    prefix, model = split(asked)
    if prefix == "demo":
        refuse_in_production(settings, asked)
        demo_model(asked)
    elif prefix not in PROVIDERS or not model:
        known = ", ".join(f"{prefix}/…" for prefix in (*PROVIDERS, "demo"))
        raise Unprocessable(f"model_name {asked!r} names no known provider; known are {known}")
    return f"{prefix}/{model}"


def default_model(settings: Settings) -> str:
    """DEFAULT_MODEL, else a small one of the first provider that there is a key for, else the demo."""
    if settings.models.default_model.strip():
        return settings.models.default_model.strip()
    with_key = (model for prefix, model in DEFAULT_MODELS.items() if PROVIDERS[prefix].key(settings))
    return next(with_key, DEFAULT_DEMO_MODEL)


def offered(settings: Settings) -> list[tuple[str, str]]:
    """Full and short names of the models that can be chosen: the default, those with a short name whose provider has a
    key, and the demos outside of production."""
    named = {name: short for short, name in ALIASES.items() if PROVIDERS[split(name)[0]].key(settings)}
    demos = {} if settings.production else {f"demo/{kind}": f"demo/{kind}" for kind in DEMO_PARAMETERS}
    usual = unalias(default_model(settings))
    default = {} if settings.production and split(usual)[0] == "demo" else {usual: usual}
    return list({**default, **named, **demos}.items())


def split(name: str) -> tuple[str, str]:
    """Prefix and model of a name; a bare name is OpenAI's."""
    prefix, slash, model = name.partition("/")
    return (prefix.lower(), model) if slash else ("openai", name)


def refuse_in_production(settings: Settings, name: str) -> None:
    if settings.production:
        raise Unprocessable(
            f"model_name {name!r} is a demo, which production refuses; name a real model or set DEFAULT_MODEL."
        )


def demo_model(name: str) -> DemoModel:
    """Parse `demo/lorem?chunks=200&delay_ms=20` and the like.

    Raises: Unprocessable for an unknown demo, an unknown parameter or a value out of range.
    """
    kind, _, query = name.removeprefix("demo/").partition("?")
    allowed = DEMO_PARAMETERS.get(kind)
    if allowed is None:
        known = ", ".join(f"demo/{known}" for known in DEMO_PARAMETERS)
        raise Unprocessable(f"model_name {name!r} is no demo model; there are {known}")
    given = parse_qsl(query, keep_blank_values=True)
    return DemoModel(kind, **{key: demo_parameter(name, key, value, allowed) for key, value in given})


def demo_parameter(name: str, key: str, value: str, allowed: dict[str, range]) -> int:
    if key not in allowed:
        known = f"it takes {' and '.join(allowed)}" if allowed else "it takes none"
        raise Unprocessable(f"model_name {name!r} has an unknown parameter {key!r}; {known}.")
    if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value) in allowed[key]):
        raise Unprocessable(f"model_name {name!r}: {key} must be a whole number from 0 to {allowed[key].stop - 1}.")
    return int(value)
