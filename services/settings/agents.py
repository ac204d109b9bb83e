"""How agents work, and what they reach: models, sandboxes, the web."""

from datetime import timedelta
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.settings.section import Section, Span


class AgentSettings(Section):
    """How runs go about their work unless told otherwise (agent.context.AgentConfig says what each means)."""

    model_config = SettingsConfigDict(env_prefix="AGENT_")
    max_iterations: int = Field(100, ge=1)
    max_auto_continues: int = Field(25, ge=0)
    max_xml_tool_calls: int = Field(0, ge=0)
    execute_on_stream: bool = False
    tool_execution: Literal["sequential", "parallel"] = "sequential"
    xml_results_as: Literal["user", "assistant"] = "user"
    browser_timeout: Span = timedelta(seconds=30)


class ModelSettings(Section):
    """Where models are reached; one key and base URL per provider prefix (TRAPS 28)."""

    model_config = SettingsConfigDict(env_prefix="LLM_", protected_namespaces=())
    default_model: str = Field("", validation_alias="DEFAULT_MODEL")
    idle_timeout: Span = timedelta(seconds=120)
    connect_timeout: Span = timedelta(seconds=10)
    max_retries: int = Field(3, ge=0)
    context_window: int = Field(0, ge=0)
    openai_api_key: SecretStr = Field(SecretStr(""), validation_alias="OPENAI_API_KEY")
    openai_base_url: str = Field("https://api.openai.com/v1", validation_alias="OPENAI_BASE_URL")
    anthropic_api_key: SecretStr = Field(SecretStr(""), validation_alias="ANTHROPIC_API_KEY")
    anthropic_base_url: str = Field("https://api.anthropic.com", validation_alias="ANTHROPIC_BASE_URL")
    openrouter_api_key: SecretStr = Field(SecretStr(""), validation_alias="OPENROUTER_API_KEY")
    openrouter_base_url: str = Field("https://openrouter.ai/api/v1", validation_alias="OPENROUTER_BASE_URL")
    groq_api_key: SecretStr = Field(SecretStr(""), validation_alias="GROQ_API_KEY")
    groq_base_url: str = Field("https://api.groq.com/openai/v1", validation_alias="GROQ_BASE_URL")
    ollama_api_key: SecretStr = Field(SecretStr(""), validation_alias="OLLAMA_API_KEY")
    ollama_base_url: str = Field("http://127.0.0.1:11434/v1", validation_alias="OLLAMA_BASE_URL")
    vllm_api_key: SecretStr = Field(SecretStr(""), validation_alias="VLLM_API_KEY")
    vllm_base_url: str = Field("http://127.0.0.1:8001/v1", validation_alias="VLLM_BASE_URL")


class SandboxSettings(Section):
    """Where and how large sandboxes are; sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="SANDBOX_")
    kind: Literal["local", "docker", "off"] = Field("local", validation_alias="SANDBOX")
    folder: str = Field(".longrun/sandboxes", min_length=1, validation_alias="SANDBOX_DIR")
    bwrap: str = ""
    docker_url: str = Field("unix:///var/run/docker.sock", pattern=r"^(unix:///.+|(tcp|http)://.+)$")
    image: str = Field("longrun-sandbox", min_length=1)
    uid_base: int = Field(2_100_000_000, ge=1000, le=4_200_000_000)
    idle_timeout: Span = timedelta(minutes=30)
    reap_interval: Span = timedelta(seconds=30)
    cpus: float = Field(1.0, gt=0)
    memory_bytes: int = Field(2 * 1024**3, ge=64 * 1024**2)
    disk_bytes: int = Field(10 * 1024**3, ge=1024**2)
    processes: int = Field(512, ge=16)
    network: bool = False
    network_allowed: bool = False
    slirp: str = ""
    browser: str = ""


class OutgoingSettings(Section):
    """URLs that models and users name. Metadata services and the like are refused whatever stands here."""

    model_config = SettingsConfigDict(env_prefix="OUTGOING_")
    allow_private: bool = False
    allowed_hosts: tuple[str, ...] = ()
    connect_timeout: Span = timedelta(seconds=10)
    read_timeout: Span = timedelta(seconds=20)


class McpSettings(Section):
    """Servers of the Model Context Protocol. The registry's URL has `{qualifiedName}` in it; empty: there is none."""

    model_config = SettingsConfigDict(env_prefix="MCP_")
    connect_timeout: Span = timedelta(seconds=30)
    call_timeout: Span = timedelta(seconds=120)
    max_restarts: int = Field(3, ge=0)
    max_tools: int = Field(100, ge=1)
    max_message_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    registry_url: str = ""
    registry_api_key: SecretStr = SecretStr("")


class SearchSettings(Section):
    """The web search: Tavily, or a service that speaks as it does."""

    model_config = SettingsConfigDict(env_prefix="TAVILY_")
    api_key: SecretStr = SecretStr("")
    base_url: str = "https://api.tavily.com"


class PreviewSettings(Section):
    """Where the ports of sandboxes are shown; the host name must not be one of the API's."""

    model_config = SettingsConfigDict(env_prefix="PREVIEW_")
    url: str = ""

    @model_validator(mode="after")
    def name_the_label(self) -> "PreviewSettings":
        if self.url and "://{label}." not in self.url:
            raise ValueError("PREVIEW_URL must begin like http://{label}. and a host name")
        return self
