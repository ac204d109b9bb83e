"""Which parts of an agent's MCP configurations are secret: sealed in the row, masked in answers, open for a run.

Secret are all texts and numbers of a `config` but its address (of which user, password, what looks random in the path,
query and fragment are) and,
of a `custom_mcps[].config`, the command and its arguments (of which the value behind a flag like `--token` is). One is
`{"sealed": token}` in the row, an address or argument with one in it `{"sealed": token, "shown": masked}`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import orjson

from services.errors import Unprocessable
from services.secrets import Secrets, SecretUnreadable

MASK = "***"
ADDRESS = "url"
PLAIN = ("command", "type", "transport", "cwd", "timeout")
SECRET_FLAG = re.compile(r"^-.*(token|key|secret|pass|auth|cred|header|cookie|bearer)", re.IGNORECASE)
LOOKS_RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9_~.+=-]{16,}")
"""Some services hand out addresses with a key in the path."""

Json = Any
Mcp = dict[str, Json]


def seal(
    secrets: Secrets, kind: str, mcps: Sequence[Mcp], stored: Sequence[Mcp] = (), *, takes_new: bool = True
) -> list[Mcp]:
    """What the row keeps of `mcps`, a list of the kind `configured_mcps` or `custom_mcps`.

    `stored` is the list before: a secret that comes back masked is kept from it, and one that is the same stays the
    same token, so that lists that mean the same are equal. A server whose address changed takes no secret along.
    Raises: Unprocessable naming the place of a mask behind which there is nothing, or unless it `takes_new` of a secret
    that is new.
    """
    return [
        {**mcp, "config": Sealing(secrets, f"{kind}.{nth}.config", takes_new).config(kind, mcp, before)}
        for nth, (mcp, before) in enumerate((mcp, earlier(kind, mcp, stored)) for mcp in mcps)
    ]


def earlier(kind: str, mcp: Mcp, stored: Sequence[Mcp]) -> Mcp:
    """The stored configuration that `mcp` came from: of the server of that name."""
    found = [each for each in stored if name_of(kind, each) == name_of(kind, mcp)]
    return as_dict(found[0].get("config")) if found else {}


def name_of(kind: str, mcp: Mcp) -> Json:
    return (kind == "configured_mcps" and mcp.get("qualifiedName")) or mcp.get("name")


class Sealing:
    """One configuration on its way into a row."""

    def __init__(self, secrets: Secrets, place: str, takes_new: bool) -> None:
        self.secrets = secrets
        self.place = place
        self.takes_new = takes_new

    def config(self, kind: str, mcp: Mcp, before: Mcp) -> Mcp:
        given = as_dict(mcp.get("config"))
        if destination(given) not in self.destinations(before):
            before = {}
        custom = kind == "custom_mcps"
        return {name: self.part(name, value, before.get(name), custom=custom) for name, value in given.items()}

    def destinations(self, before: Mcp) -> list[tuple[Json, ...]]:
        """Where the secrets went before, masked and as it is."""
        known = [destination(walk(before, show))]
        with suppress(SecretUnreadable):
            known += [destination(walk(before, partial(reveal, self.secrets)))]
        return known

    def part(self, name: str, value: Json, before: Json, *, custom: bool) -> Json:
        if name == ADDRESS and isinstance(value, str):
            shown = masked_url(value)
            return self.leaf(name, value, before, shown=shown) if shown != value or MASK in shown else value
        if custom and name == "args" and is_texts(value):
            return self.arguments(value, before if isinstance(before, list) else [])
        plain = custom and name in PLAIN and not isinstance(value, dict | list)
        return value if plain else self.values(name, value, before)

    def arguments(self, given: list[str], before: list[Json]) -> list[Json]:
        kept = dict(enumerate(before))
        return [
            self.leaf(f"args.{nth}", value, kept.get(nth), shown=shown) if shown != value or MASK in shown else value
            for nth, (value, shown) in enumerate(zip(given, masked_arguments(given), strict=True))
        ]

    def values(self, name: str, value: Json, before: Json) -> Json:
        if isinstance(value, dict):
            was = as_dict(before)
            return {key: self.values(f"{name}.{key}", item, was.get(key)) for key, item in value.items()}
        if isinstance(value, list):
            kept = dict(enumerate(before if isinstance(before, list) else []))
            return [self.values(f"{name}.{nth}", item, kept.get(nth)) for nth, item in enumerate(value)]
        return value if value is None or isinstance(value, bool) else self.leaf(name, value, before)

    def leaf(self, name: str, value: Json, before: Json, shown: str = MASK) -> Json:
        if is_sealed(before) and (value == show(before) or self.opens_to(before, value)):
            return before
        if isinstance(value, str) and MASK in value:
            raise Unprocessable(f"{self.place}.{name} is masked with {MASK}, and no secret is kept behind it.")
        if not self.takes_new:
            raise Unprocessable(f"{self.place}.{name} is a secret: the person enters it in the settings of the agent.")
        token = self.secrets.seal(orjson.dumps(value).decode())
        return {"sealed": token} if shown == MASK else {"sealed": token, "shown": shown}

    def opens_to(self, sealed: Mcp, value: Json) -> bool:
        try:
            return bool(orjson.loads(self.secrets.open(sealed["sealed"])) == value)
        except SecretUnreadable:
            return False


def masked(mcps: Sequence[Mcp]) -> list[Mcp]:
    """Stored configurations as anybody may see them; needs no key."""
    return each_config(mcps, show)


def opened(secrets: Secrets, mcps: Sequence[Mcp]) -> list[Mcp]:
    """Stored configurations as they were given. Raises: SecretUnreadable."""
    return each_config(mcps, partial(reveal, secrets))


def reveal(secrets: Secrets, sealed: Mcp) -> Json:
    """Raises: SecretUnreadable."""
    return orjson.loads(secrets.open(sealed["sealed"]))


def renewed(secrets: Secrets, mcps: Sequence[Mcp]) -> list[Mcp]:
    """Stored configurations, their secrets encrypted with the first key. Raises: SecretUnreadable."""

    def renew(sealed: Mcp) -> Json:
        return {**sealed, "sealed": secrets.renew(sealed["sealed"])}

    return each_config(mcps, renew)


def each_config(mcps: Sequence[Mcp], of_sealed: Callable[[Mcp], Json]) -> list[Mcp]:
    return [{**mcp, "config": walk(as_dict(mcp.get("config")), of_sealed)} for mcp in mcps]


def show(sealed: Mcp) -> str:
    return str(sealed.get("shown", MASK))


def walk(value: Json, of_sealed: Callable[[Mcp], Json]) -> Json:
    if is_sealed(value):
        return of_sealed(value)
    if isinstance(value, dict):
        return {key: walk(item, of_sealed) for key, item in value.items()}
    return [walk(item, of_sealed) for item in value] if isinstance(value, list) else value


def is_sealed(value: Json) -> bool:
    return isinstance(value, dict) and isinstance(value.get("sealed"), str) and value.keys() <= {"sealed", "shown"}


def destination(config: Mapping[str, Json]) -> tuple[Json, ...]:
    """Where the secrets of a configuration go: its address but for the query, its command and what that is to do.

    One host may serve many: the path says whose server it is.
    """
    parts = parsed(str(config.get(ADDRESS) or ""))
    host = parts and (parts.scheme, parts.netloc.rpartition("@")[2], parts.path)
    args = list(masked_arguments(config["args"])) if is_texts(config.get("args")) else config.get("args")
    return host, config.get("command"), args


def parsed(url: str) -> SplitResult | None:
    """None for what is no address at all."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return parts if parts.netloc else None


def masked_url(url: str) -> str:
    """An address without its user, password, keys in its path, query values and fragment; nothing of what is none."""
    parts = parsed(url)
    if parts is None:
        return MASK
    host = parts.netloc.rpartition("@")
    netloc = f"{MASK}@{host[2]}" if host[1] else parts.netloc
    query = "&".join(f"{urlencode({name: ''})}{MASK}" for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    path = "/".join(MASK if LOOKS_RANDOM.fullmatch(unquote(piece)) else piece for piece in parts.path.split("/"))
    return urlunsplit(parts._replace(netloc=netloc, path=path, query=query, fragment=MASK if parts.fragment else ""))


def masked_arguments(given: Sequence[str]) -> Iterator[str]:
    """The arguments of a command; the values of flags that sound secret are masked, in both ways of writing them."""
    before = ""
    for argument in given:
        flag, equals, _ = argument.partition("=")
        if SECRET_FLAG.match(flag) and equals:
            yield f"{flag}={MASK}"
        else:
            yield MASK if SECRET_FLAG.match(before) and "=" not in before else argument
        before = argument


def is_texts(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def as_dict(value: Json) -> Mcp:
    return value if isinstance(value, dict) else {}
