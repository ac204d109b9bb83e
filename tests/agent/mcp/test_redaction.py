import pytest

from agent.mcp.config import ServerConfig
from agent.mcp.redaction import Redactor

SECRET = "s3cret-value-0123"


@pytest.mark.parametrize(
    "config",
    [
        ServerConfig("a", "http", headers={"Authorization": f"Bearer {SECRET}"}),
        ServerConfig("a", "http", headers={"X-Key": SECRET}),
        ServerConfig("a", "http", url=f"https://a.org/mcp?key={SECRET}"),
        ServerConfig("a", "http", url=f"https://a.org/s/{SECRET}/mcp"),
        ServerConfig("a", "http", qualified_name="a", options={"nested": [{"apiKey": SECRET}]}),
        ServerConfig("a", "stdio", env={"API_KEY": SECRET}),
        ServerConfig("a", "stdio", argv=("run", "--api-key", SECRET)),
        ServerConfig("a", "stdio", argv=("run", f"--token={SECRET}")),
    ],
)
def test_a_secret_is_found_wherever_it_was_configured(config: ServerConfig) -> None:
    assert Redactor(config)(f"key {SECRET}, again {SECRET}.") == "key [secret], again [secret]."


def test_what_is_no_secret_stays() -> None:
    config = ServerConfig(
        "a",
        "stdio",
        argv=("npx", "-y", "@modelcontextprotocol/server-files", "/workspace"),
        env={"LOCAL_TIMEZONE": "Europe/Berlin", "LANG": "de_DE.UTF-8", "N": "12345"},
    )
    text = "npx @modelcontextprotocol/server-files /workspace Europe/Berlin de_DE.UTF-8 12345"
    assert Redactor(config)(text) == text


def test_a_secret_inside_another_is_taken_out_whole() -> None:
    config = ServerConfig("a", "http", headers={"A": "abcdef", "B": "abcdef-ghijkl"})
    assert Redactor(config)("abcdef-ghijkl abcdef") == "[secret] [secret]"


def test_a_schema_is_redacted_and_stays_a_schema() -> None:
    redact = Redactor(ServerConfig("a", "http", headers={"A": SECRET}))
    assert redact.in_schema({"properties": {"k": {"default": SECRET}}}) == {
        "properties": {"k": {"default": "[secret]"}}
    }
