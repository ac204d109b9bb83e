from typing import Any

import pytest

from agent.mcp.config import InvalidServer, parse, read

URL = "https://mcp.example.org/mcp"


def custom(**entry: Any) -> list[dict[str, Any]]:
    return [{"name": "one", "type": "http", "config": {"url": URL}, **entry}]


def test_standard_and_custom_servers_are_one_list() -> None:
    standard = {"name": "Search", "qualifiedName": "@acme/search", "config": {"depth": 2}, "enabledTools": ["find"]}
    program = {"command": "npx", "args": ["-y", "server"], "env": {"TOKEN": "t"}}
    search, web, time = parse(
        [standard],
        [
            {"name": "Web", "customType": "sse", "config": {"url": URL, "headers": {"X-Key": "k"}}},
            {"name": "Time", "type": "json", "config": program, "enabledTools": []},
        ],
    )
    assert (search.kind, search.qualified_name, search.options) == ("http", "@acme/search", {"depth": 2})
    assert search.enabled == frozenset({"find"})
    assert (web.kind, web.url, web.headers) == ("sse", URL, {"X-Key": "k"})
    assert (time.kind, time.argv, time.env, time.enabled) == ("stdio", ("npx", "-y", "server"), {"TOKEN": "t"}, None)


def test_a_standard_server_may_bring_its_own_url() -> None:
    (server,) = parse([{"name": "A", "config": {"url": URL, "headers": {"K": "v"}, "more": 1}}], None)
    assert (server.url, server.headers, server.options) == (URL, {"K": "v"}, {"more": 1})


@pytest.mark.parametrize(("config", "kind"), [({"command": "run"}, "stdio"), ({"url": URL}, "sse")])
def test_a_server_without_a_type_is_known_by_its_config(config: dict[str, Any], kind: str) -> None:
    assert parse([], [{"name": "a", "config": config}])[0].kind == kind


def test_no_lists_are_no_servers() -> None:
    assert parse(None, None) == parse([], []) == []


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"name": ""}, "custom_mcps[0].name: must be text that is not empty"),
        ({"name": "x" * 101}, "custom_mcps[0].name: must be at most 100"),
        ({"type": "carrier pigeon"}, "custom_mcps[0].type: must be http, sse or stdio"),
        ({"type": 7}, "custom_mcps[0].type: must be http, sse or stdio"),
        ({"config": []}, "custom_mcps[0].config: must be an object"),
        ({"config": {}}, "custom_mcps[0].config.url: must be text"),
        ({"config": {"url": "file:///etc/passwd"}}, "custom_mcps[0].config.url: must be a URL"),
        ({"config": {"url": "http://[::1"}}, "custom_mcps[0].config.url: must be a URL"),
        ({"config": {"url": "http://a b/"}}, "custom_mcps[0].config.url: must be a URL"),
        ({"config": {"url": "http://me:pw@a.org/"}}, "custom_mcps[0].config.url: must not carry a user name"),
        ({"config": {"url": URL, "headers": {"a b": "c"}}}, "custom_mcps[0].config.headers: has a name or value"),
        ({"config": {"url": URL, "headers": {"a": "b\r\nc: d"}}}, "custom_mcps[0].config.headers: has a name or value"),
        ({"config": {"url": URL, "headers": {"a": 1}}}, "custom_mcps[0].config.headers: must map text to text"),
        ({"type": "stdio", "config": {}}, "custom_mcps[0].config.command: must be text"),
        ({"type": "stdio", "config": {"command": "a", "args": "b"}}, "custom_mcps[0].config.args: must be a list"),
        ({"type": "stdio", "config": {"command": "a", "args": ["\0"]}}, "custom_mcps[0].config.args: must have"),
        ({"type": "stdio", "config": {"command": "a", "env": {"a=b": "c"}}}, "custom_mcps[0].config.env: has a name"),
        ({"enabledTools": "all"}, "custom_mcps[0].enabledTools: must be a list of texts"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(entry: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidServer) as refused:
        parse([], custom(**entry))
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize(
    ("standard", "told"),
    [
        ("none", "configured_mcps: must be a list"),
        ([7], "configured_mcps[0]: must be an object"),
        ([{"name": "a"}], "configured_mcps[0].qualifiedName: is needed"),
        ([{"name": "a", "qualifiedName": "../../etc"}], "configured_mcps[0].qualifiedName: must look like"),
    ],
)
def test_a_standard_server_needs_a_place(standard: Any, told: str) -> None:
    with pytest.raises(InvalidServer) as refused:
        parse(standard, [])
    assert str(refused.value).startswith(told)


def test_a_bad_entry_does_not_keep_the_others_from_being_used() -> None:
    servers, invalid = read([], [*custom(), {"name": "odd"}, *custom(name="two")])
    assert [server.name for server in servers] == ["one", "two"]
    assert [(wrong.server, wrong.field) for wrong in invalid] == [("odd", "custom_mcps[1].config.url")]


def test_an_agent_has_a_bounded_number_of_servers() -> None:
    servers, invalid = read([], custom() * 25)
    assert (len(servers), len(invalid)) == (20, 5)


def test_a_server_shown_in_a_log_shows_no_secret() -> None:
    (server,) = parse([], custom(config={"url": f"{URL}?key=hunter2", "headers": {"K": "hunter2"}}))
    assert "hunter2" not in repr(server)
