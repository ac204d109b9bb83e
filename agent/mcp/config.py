"""Which MCP servers an agent has: `configured_mcps` and `custom_mcps`, checked and merged. Pure; light for the API."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

Kind = Literal["http", "sse", "stdio"]

KINDS: dict[str, Kind] = {
    "http": "http",
    "streamable-http": "http",
    "streamable_http": "http",
    "sse": "sse",
    "stdio": "stdio",
    "json": "stdio",
}
"""What old frontends call a kind of server, too."""

MAX_SERVERS = 20
MAX_NAME_CHARS = 100
MAX_URL_CHARS = 4_000
MAX_ITEMS = 200
MAX_VALUE_CHARS = 20_000
QUALIFIED_NAME = re.compile(r"@?[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class InvalidServer(ValueError):
    """An entry that is no MCP server; `field` says where (`custom_mcps[1].config.url`), `problem` what is wrong."""

    def __init__(self, field: str, problem: str, server: str = "") -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem, self.server = field, problem, server


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One server. `enabled`: the tools that the agent may use; None for all. `options` is what else its config says.

    `url`, `headers`, `options` and `env` may hold secrets, and are not shown anywhere.
    """

    name: str
    kind: Kind
    enabled: frozenset[str] | None = None
    url: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    qualified_name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    argv: tuple[str, ...] = field(default=(), repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse(configured_mcps: Any, custom_mcps: Any) -> list[ServerConfig]:
    """All servers of an agent, the standard ones first.

    Raises: InvalidServer for the first entry that is none.
    """
    servers, invalid = read(configured_mcps, custom_mcps)
    if invalid:
        raise invalid[0]
    return servers


def read(configured_mcps: Any, custom_mcps: Any) -> tuple[list[ServerConfig], list[InvalidServer]]:
    """As `parse`, but what is wrong with some entries does not keep the others from being used."""
    servers: list[ServerConfig] = []
    invalid: list[InvalidServer] = []
    for found in [*entries("configured_mcps", configured_mcps), *entries("custom_mcps", custom_mcps)]:
        if isinstance(found, InvalidServer):
            invalid.append(found)
        else:
            servers.append(found)
    for extra in servers[MAX_SERVERS:]:
        invalid.append(InvalidServer("custom_mcps", f"an agent has at most {MAX_SERVERS} servers", extra.name))
    return servers[:MAX_SERVERS], invalid


def entries(where: str, said: Any) -> Iterator[ServerConfig | InvalidServer]:
    if said is None:
        return
    if not isinstance(said, list):
        yield InvalidServer(where, "must be a list")
        return
    one = standard if where == "configured_mcps" else custom
    for index, entry in enumerate(said[: 2 * MAX_SERVERS]):
        try:
            yield one(f"{where}[{index}]", entry)
        except InvalidServer as invalid:
            invalid.server = invalid.server or name_of(entry)
            yield invalid


def name_of(entry: Any) -> str:
    said = entry.get("name") if isinstance(entry, dict) else None
    return said[:MAX_NAME_CHARS] if isinstance(said, str) else ""


def standard(at: str, entry: Any) -> ServerConfig:
    """A server of the registry, or one with a `url` in its config: `{name, qualifiedName, config, enabledTools}`."""
    said = mapping(at, entry)
    name, qualified = text(at, said, "name"), text(at, said, "qualifiedName", required=False)
    options = dict(mapping(f"{at}.config", said.get("config")))
    url = web_address(f"{at}.config", options) if options.get("url") else ""
    if not url and not qualified:
        raise InvalidServer(f"{at}.qualifiedName", "is needed where config has no url")
    if qualified and not QUALIFIED_NAME.fullmatch(qualified):
        raise InvalidServer(f"{at}.qualifiedName", "must look like name or @owner/name")
    sent = headers(f"{at}.config.headers", options.get("headers"))
    rest = {key: value for key, value in options.items() if key not in ("url", "headers")}
    return ServerConfig(name, "http", enabled(at, said), url, sent, qualified, rest)


def custom(at: str, entry: Any) -> ServerConfig:
    """A server of one's own: `{name, type | customType, config, enabledTools}`."""
    said = mapping(at, entry)
    options = mapping(f"{at}.config", said.get("config"))
    name, kind = text(at, said, "name"), kind_of(at, said, options)
    if kind == "stdio":
        argv = (text(f"{at}.config", options, "command"), *texts(f"{at}.config.args", options.get("args"), MAX_ITEMS))
        variables = environment(f"{at}.config.env", options.get("env"))
        return ServerConfig(name, kind, enabled(at, said), argv=argv, env=variables)
    url = web_address(f"{at}.config", options)
    return ServerConfig(name, kind, enabled(at, said), url, headers(f"{at}.config.headers", options.get("headers")))


def kind_of(at: str, said: Mapping[str, Any], options: Mapping[str, Any]) -> Kind:
    given = said.get("customType") or said.get("type") or ("stdio" if "command" in options else "sse")
    kind = KINDS.get(given.lower()) if isinstance(given, str) else None
    if kind is None:
        raise InvalidServer(f"{at}.type", "must be http, sse or stdio")
    return kind


def mapping(at: str, said: Any) -> Mapping[str, Any]:
    if said is None and at.endswith((".config", ".headers", ".env")):
        return {}
    if not isinstance(said, dict):
        raise InvalidServer(at, "must be an object")
    return said


def text(at: str, said: Mapping[str, Any], key: str, *, required: bool = True) -> str:
    given = said.get(key)
    if given is None and not required:
        return ""
    if not isinstance(given, str) or (required and not given.strip()):
        raise InvalidServer(f"{at}.{key}", "must be text that is not empty")
    longest = MAX_NAME_CHARS if key in ("name", "qualifiedName") else MAX_URL_CHARS
    if len(given) > longest or "\0" in given:
        raise InvalidServer(f"{at}.{key}", f"must be at most {longest} characters, without NUL")
    return given.strip()


def web_address(at: str, options: Mapping[str, Any]) -> str:
    url = text(at, options, "url")
    try:
        parts = urlsplit(url)
        parsed = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parsed = False
    if not parsed or any(char.isspace() for char in url):
        raise InvalidServer(f"{at}.url", "must be a URL that begins with http:// or https://")
    if parts.username or parts.password:
        raise InvalidServer(f"{at}.url", "must not carry a user name or password; use headers")
    return url


def headers(at: str, said: Any) -> dict[str, str]:
    given = pairs(at, said)
    for name, value in given.items():
        if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value):
            raise InvalidServer(at, "has a name or value that cannot be an HTTP header")
    return given


def environment(at: str, said: Any) -> dict[str, str]:
    given = pairs(at, said)
    for name, value in given.items():
        if not VARIABLE.fullmatch(name) or "\0" in value:
            raise InvalidServer(at, "has a name or value that cannot be an environment variable")
    return given


def pairs(at: str, said: Any) -> dict[str, str]:
    given = mapping(at, said)
    if len(given) > MAX_ITEMS:
        raise InvalidServer(at, f"must have at most {MAX_ITEMS} entries")
    if not all(isinstance(name, str) and isinstance(value, str) for name, value in given.items()):
        raise InvalidServer(at, "must map text to text")
    if any(len(value) > MAX_VALUE_CHARS for value in given.values()):
        raise InvalidServer(at, f"must have values of at most {MAX_VALUE_CHARS} characters")
    return dict(given)


def enabled(at: str, said: Mapping[str, Any]) -> frozenset[str] | None:
    """No list and an empty one mean all tools, as in the original."""
    return frozenset(texts(f"{at}.enabledTools", said.get("enabledTools"), 1_000)) or None


def texts(at: str, said: Any, most: int) -> list[str]:
    if said is None:
        return []
    if not isinstance(said, Sequence) or isinstance(said, str) or not all(isinstance(item, str) for item in said):
        raise InvalidServer(at, "must be a list of texts")
    if len(said) > most or any(len(item) > MAX_VALUE_CHARS or "\0" in item for item in said):
        raise InvalidServer(at, f"must have at most {most} texts of at most {MAX_VALUE_CHARS} characters, without NUL")
    return list(said)
