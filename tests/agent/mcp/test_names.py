import re

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.mcp.names import of_servers, of_tools
from agent.tools.arguments import Described
from agent.tools.base import Registry, Tool


async def nothing(calling: object) -> str:
    return ""


def test_a_server_has_a_short_name_without_separators() -> None:
    names = ["Google Calendar", "google_calendar", "日本", "Café!", "@acme/very-long-name-of-a-server"]
    assert of_servers(names) == ["googlecalendar", "googlecalendar2", "server", "cafe", "acmeverylongnameofas"]


def test_plain_names_stay_as_they_are() -> None:
    assert of_tools("time", ["get_time", "Convert"]) == {"get_time": "mcp_time_get_time", "Convert": "mcp_time_Convert"}


def test_names_that_become_alike_are_told_apart_whatever_their_order() -> None:
    tools = ["a b", "a-b", "a_b", "a.b"]
    named = of_tools("s", tools)
    assert named["a_b"] == "mcp_s_a_b"
    assert len(set(named.values())) == 4
    assert of_tools("s", list(reversed(tools))) == named


@settings(max_examples=40)
@given(st.lists(st.text(max_size=90), max_size=8), st.text(max_size=50))
def test_every_name_is_one_that_providers_take_and_that_is_found_again(tools: list[str], server: str) -> None:
    (short,) = of_servers([server])
    named = of_tools(short, tools)
    assert len(set(named.values())) == len(set(tools))
    registry = Registry.of(Tool(name, "", nothing, Described({})) for name in named.values())
    for name in named.values():
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)
        assert name.split("_")[1] == short
        found = registry.get(name)
        assert found is not None
        assert registry.get(found.tag) is found
