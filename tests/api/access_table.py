"""docs/access.md: who is answered what at every route, as tests/api/test_access.py asks it.

`python -m tests.api.access_table` writes it anew.
"""

from pathlib import Path

from api import access
from api.access import ROLES, SCOPES, Access
from tests.api.test_access import CASES, PUBLIC, names_things

DOCUMENT = Path(__file__).parents[2] / "docs" / "access.md"
HEAD = """# Who may do what

Written by `python -m tests.api.access_table` from `api/access.py` and the cases of `tests/api/test_access.py`, which
ask every route of the OpenAPI document as everybody named here; a test fails when this page says something else.

- *Nobody* is whoever has no token or key, or one that is expired, forged, revoked, made for something else, or junk:
  always 401 with `WWW-Authenticate: Bearer`, except at the two routes of health.
- *Whoever signs* has the secret of a workflow's webhook, and needs no token; without the signature everybody is nobody.
- *Somebody else's* is a thing of an account that the caller does not act for. The answer is that for a thing that does
  not exist: the same body, after the same statements and the same commands to Redis, and no worker hears of it.
  `none`: the route names no thing, and shows or makes only what is the caller's.
- *Public* is somebody else's thing that its owner made public, asked for by whoever is signed in.
- A role that is missing is 403, and so is a scope of an API key. A key does what its scopes and its maker's role both
  allow.

| route | acts on | roles | scopes of a key | somebody else's | public | nobody |
| --- | --- | --- | --- | --- | --- | --- |
"""


def line(name: str) -> str:
    if name.startswith("POST /schedules/trigger/"):
        return f"| `{name}` | schedule | QStash | signed with its keys | 401 | 401 | {CASES[name].own} |"
    if name in access.SIGNED:
        return f"| `{name}` | workflow | whoever signs | a secret of its own | 401 | 401 | {CASES[name].own} |"
    if name in access.OPEN:
        return f"| `{name}` | the server | anybody | none needed | none | none | {CASES[name].own} |"
    declared = access.ROUTES[name]
    roles, scopes = ", ".join(ROLES[declared.action]), ", ".join(SCOPES[declared.action]) or "never a key"
    foreign = "404" if names_things(name) else "none"
    return f"| `{name}` | {declared.on} | {roles} | {scopes} | {foreign} | {public(name, declared)} | 401 |"


def public(name: str, declared: Access) -> str:
    if not names_things(name):
        return "none"
    if declared.on not in PUBLIC:
        return "404"
    return "as the owner" if declared.action == "read" else "403"


def text() -> str:
    return HEAD + "\n".join(line(name) for name in CASES) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(text())
