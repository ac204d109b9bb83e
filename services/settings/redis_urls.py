"""URLs of Redis databases: which number of which server they name."""

from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit


def redis_url(host: str, port: int, password: str, database: int) -> str:
    credentials = f":{quote(password, safe='')}@" if password else ""
    return f"redis://{credentials}{host}:{port}/{database}"


def is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        database_of(parts)
        return bool(parts.path if parts.scheme == "unix" else parts.scheme in ("redis", "rediss") and parts.hostname)
    except ValueError:
        return False


def database_address(url: str) -> str:
    """Which database of which server a URL names, without its credentials."""
    parts = urlsplit(url)
    server = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"
    return f"{server}/{database_of(parts)}"


def database_of(parts: SplitResult) -> int:
    in_path = "" if parts.scheme == "unix" else parts.path.strip("/")
    return int(dict(parse_qsl(parts.query)).get("db", in_path) or 0)


def with_next_database(url: str) -> str:
    """The URL of the database number after that of `url`, whichever way it names it."""
    parts = urlsplit(url)
    names = {name: value for name, value in parse_qsl(parts.query) if name != "db"}
    database = database_of(parts) + 1
    if parts.scheme == "unix":
        return f"{parts.scheme}://{parts.netloc}{parts.path}?{urlencode({**names, 'db': database})}"
    return urlunsplit(parts._replace(path=f"/{database}", query=urlencode(names)))
