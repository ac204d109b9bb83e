"""The parts of an agent's version, as requests and tools give them."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, StringConstraints, model_validator

from services.fields import small_object, storable_text

MAX_PROMPT_CHARS = 100_000
MAX_MCPS = 20
MAX_TOOLS = 200
MAX_ENABLED_TOOLS = 500

Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(storable_text)
]
Description = Annotated[str, StringConstraints(max_length=5_000), AfterValidator(storable_text)]
Avatar = Annotated[str, StringConstraints(max_length=2_048), AfterValidator(storable_text)]
"""A sign, an address of a picture, a colour."""
SystemPrompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS), AfterValidator(storable_text)]
Config = Annotated[dict[str, Any], AfterValidator(small_object)]
ToolNames = Annotated[list[Name], Field(max_length=MAX_ENABLED_TOOLS)]


def none_as_empty(value: Any) -> Any:
    return {} if value is None else value


class ConfiguredMcp(BaseModel):
    """An MCP server that the installation knows by its name; `config` is all secret."""

    name: Name
    qualifiedName: Name | None = None
    config: Annotated[Config, BeforeValidator(none_as_empty)] = Field(default_factory=dict)
    enabledTools: ToolNames | None = Field(None, validation_alias=AliasChoices("enabledTools", "enabled_tools"))

    @property
    def key(self) -> str:
        return self.qualifiedName or self.name


class CustomMcp(BaseModel):
    """An MCP server of one's own: `config.url` for `http` and `sse`, `config.command` for `stdio` (also `json`)."""

    name: Name
    type: Literal["http", "streamable-http", "streamable_http", "sse", "stdio", "json"]
    customType: Name | None = None
    config: Config
    enabledTools: ToolNames | None = Field(None, validation_alias=AliasChoices("enabledTools", "enabled_tools"))

    @property
    def key(self) -> str:
        return self.name

    @model_validator(mode="before")
    @classmethod
    def find_type(cls, given: Any) -> Any:
        """Old frontends say it as `customType`, or leave it out."""
        if not isinstance(given, dict):
            return given
        config = given.get("config")
        usual = "stdio" if isinstance(config, dict) and "command" in config else "sse"
        kind = given.get("type") or given.get("customType") or usual
        return {**given, "type": kind.lower() if isinstance(kind, str) else kind}


Mcps = TypeVar("Mcps", list[ConfiguredMcp], list[CustomMcp])


class ToolSwitch(BaseModel):
    enabled: bool
    description: Description = ""


def be_distinct(mcps: Mcps) -> Mcps:
    known: set[str] = set()
    for mcp in mcps:
        if mcp.key in known:
            raise ValueError(f"two servers are named {mcp.key}")
        known.add(mcp.key)
    return mcps


ToolSwitches = Annotated[dict[Name, bool | ToolSwitch], Field(max_length=MAX_TOOLS)]
ConfiguredMcps = Annotated[list[ConfiguredMcp], Field(max_length=MAX_MCPS), AfterValidator(be_distinct)]
CustomMcps = Annotated[list[CustomMcp], Field(max_length=MAX_MCPS), AfterValidator(be_distinct)]


class VersionChange(BaseModel):
    """What a new version is to change; what is absent or null stays as it is. Unknown fields are ignored."""

    system_prompt: SystemPrompt | None = None
    configured_mcps: ConfiguredMcps | None = None
    custom_mcps: CustomMcps | None = None
    agentpress_tools: ToolSwitches | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """The parts that are given, as JSON."""
        given = self.model_dump(mode="json", include=set(VersionChange.model_fields), exclude_none=True)
        return {name: given[name] for name in VersionChange.model_fields if name in given}
