from typing import Any

import orjson
import pytest

from services import agent_secrets
from services.agent_secrets import MASK
from services.errors import Unprocessable
from services.secrets import Secrets

SECRETS = Secrets(["a-key-of-this-test-of-32-characters"])
WORD = "hunter2-hunter2"
LONG = f"{WORD}-hunter2"


def http(**config: Any) -> dict[str, Any]:
    return {"name": "Search", "type": "http", "config": {"url": "https://mcp.example/x", **config}}


def stdio(*args: str, **config: Any) -> dict[str, Any]:
    return {"name": "Files", "type": "stdio", "config": {"command": "npx", "args": list(args), **config}}


def known(**config: Any) -> dict[str, Any]:
    return {"name": "Exa", "qualifiedName": "exa", "config": config}


def seal(kind: str, mcp: dict[str, Any], *stored: dict[str, Any], takes_new: bool = True) -> dict[str, Any]:
    (sealed,) = agent_secrets.seal(SECRETS, kind, [mcp], stored, takes_new=takes_new)
    return sealed


@pytest.mark.parametrize(
    ("kind", "mcp", "shown"),
    [
        ("custom_mcps", http(headers={"Authorization": WORD}), {"headers": {"Authorization": MASK}}),
        (
            "custom_mcps",
            http(anything={"deep": [WORD, 7, True, None]}),
            {"anything": {"deep": [MASK, MASK, True, None]}},
        ),
        ("custom_mcps", http(timeout={"sealed": WORD}), {"timeout": {"sealed": MASK}}),
        (
            "custom_mcps",
            http(url=f"https://me:{WORD}@mcp.example:8443/x?api_key={WORD}&v=1#{WORD}"),
            {"url": f"https://{MASK}@mcp.example:8443/x?api_key={MASK}&v={MASK}#{MASK}"},
        ),
        (
            "custom_mcps",
            http(url=f"https://mcp.example/s/{LONG}/mcp/{LONG}%3D?v="),
            {"url": f"https://mcp.example/s/{MASK}/mcp/{MASK}?v={MASK}"},
        ),
        ("custom_mcps", stdio("-y", "it", env={"TOKEN": WORD}), {"env": {"TOKEN": MASK}, "args": ["-y", "it"]}),
        ("custom_mcps", stdio("-y", url=f"http://[{WORD}"), {"url": MASK}),
        ("custom_mcps", stdio("-y", url=WORD), {"url": MASK}),
        ("custom_mcps", stdio("--api-key", WORD, "-v"), {"args": ["--api-key", MASK, "-v"]}),
        ("custom_mcps", stdio(f"--token={WORD}", "x"), {"args": [f"--token={MASK}", "x"]}),
        (
            "configured_mcps",
            known(exaApiKey=WORD, pin=1234, debug=False),
            {"exaApiKey": MASK, "pin": MASK, "debug": False},
        ),
        ("configured_mcps", known(url=f"https://a.example/?key={WORD}"), {"url": f"https://a.example/?key={MASK}"}),
    ],
)
def test_a_secret_is_sealed_in_the_row_masked_in_answers_and_open_for_a_run(
    kind: str, mcp: dict[str, Any], shown: dict[str, Any]
) -> None:
    sealed = seal(kind, mcp)
    assert WORD.encode() not in orjson.dumps(sealed)
    (masked,) = agent_secrets.masked([sealed])
    assert {**mcp["config"], **shown} == masked["config"]
    assert agent_secrets.opened(SECRETS, [sealed]) == [mcp]
    again = seal(kind, {**mcp, "config": masked["config"]}, sealed)
    assert again == sealed, "what comes back masked is kept"
    assert seal(kind, mcp, sealed) == sealed, "and what comes back as it was is not new"


def test_a_new_secret_replaces_only_its_own() -> None:
    sealed = seal("custom_mcps", http(headers={"A": "one", "B": "two"}))
    changed = seal("custom_mcps", http(headers={"A": MASK, "B": "three"}), sealed)
    assert agent_secrets.opened(SECRETS, [changed]) == [http(headers={"A": "one", "B": "three"})]


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("custom_mcps", http(headers={"A": WORD}), http(headers={"A": MASK}, url="https://thief.example/x")),
        ("custom_mcps", http(headers={"A": WORD}), http(headers={"A": MASK}, url="http://mcp.example/x")),
        ("custom_mcps", http(headers={"A": WORD}), http(headers={"A": MASK}, url="https://mcp.example/@thief/x")),
        (
            "custom_mcps",
            http(headers={"A": WORD}, url=f"https://mcp.example/{LONG}/x"),
            http(headers={"A": MASK}, url=f"https://mcp.example/{LONG}-of-a-thief/x"),
        ),
        ("custom_mcps", stdio("server", env={"A": WORD}), stdio("thief", env={"A": MASK})),
        ("configured_mcps", known(url="https://a.example", key=WORD), known(url="https://b.example", key=MASK)),
        ("custom_mcps", http(headers={"A": WORD}), {**http(headers={"A": MASK}), "name": "Other"}),
        ("custom_mcps", http(headers={"A": WORD}), http(headers={"B": MASK})),
        ("custom_mcps", http(headers={"A": WORD}), http(headers={"A": f"Bearer {MASK}"})),
    ],
)
def test_a_mask_takes_no_secret_to_another_place(kind: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    sealed = seal(kind, before)
    with pytest.raises(Unprocessable, match=rf"{kind}\.0\.config\..* is masked") as refused:
        seal(kind, after, sealed)
    assert WORD not in str(refused.value)


def test_who_may_not_bring_new_secrets_may_keep_those_there_are() -> None:
    sealed = seal("custom_mcps", http(headers={"A": WORD}))
    assert seal("custom_mcps", http(headers={"A": MASK}), sealed, takes_new=False) == sealed
    with pytest.raises(Unprocessable, match="the person enters it"):
        seal("custom_mcps", http(headers={"A": "other"}), sealed, takes_new=False)


def test_a_secret_whose_key_is_gone_is_still_masked_and_can_be_replaced() -> None:
    (lost,) = agent_secrets.seal(
        Secrets(["another-key-of-32-characters-or-more"]), "custom_mcps", [http(headers={"A": WORD})]
    )
    assert agent_secrets.masked([lost]) == [http(headers={"A": MASK})]
    replaced = seal("custom_mcps", http(headers={"A": "new"}), lost)
    assert agent_secrets.opened(SECRETS, [replaced]) == [http(headers={"A": "new"})]
