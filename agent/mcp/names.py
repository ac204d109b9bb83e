"""What tools of MCP servers are called: `mcp_{server}_{tool}`, the same in every attempt of a run. Pure."""

import re
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from unicodedata import normalize

LONGEST = 64
"""OpenAI and Anthropic take `^[A-Za-z0-9_-]{1,64}$`; a hyphen would not survive the way to an XML tag and back."""
LONGEST_SERVER = 20
DIGEST = 6


def of_servers(names: Iterable[str]) -> list[str]:
    """A short name for each server, by the agent's list alone: lower-case letters and digits.

    Without an underscore, so that clients find server and tool in a name by its first two.
    """
    taken: set[str] = set()
    short: list[str] = []
    for name in names:
        plain = re.sub(r"[^a-z0-9]", "", normalize("NFKD", name).lower())[:LONGEST_SERVER] or "server"
        number, free = 1, plain
        while free in taken:
            number += 1
            free = f"{plain}{number}"
        taken.add(free)
        short.append(free)
    return short


def of_tools(server: str, tools: Iterable[str]) -> dict[str, str]:
    """Each tool's name for models, whatever order they are listed in.

    One whose name had to be changed gets a digest of it where that would make two alike.
    """
    originals = list(dict.fromkeys(tools))
    plain = {tool: re.sub(r"[^A-Za-z0-9_]", "_", tool) or "tool" for tool in originals}
    room = LONGEST - len(f"mcp_{server}_")
    shared = Counter(plain.values())
    return {
        tool: f"mcp_{server}_{name if name == tool and len(name) <= room else fitted(tool, name, room, shared)}"
        for tool, name in plain.items()
    }


def fitted(tool: str, name: str, room: int, shared: Counter[str]) -> str:
    if len(name) <= room and shared[name] == 1:
        return name
    digest = sha256(tool.encode(errors="surrogatepass")).hexdigest()[:DIGEST]
    return f"{name[: room - DIGEST - 1]}_{digest}"
