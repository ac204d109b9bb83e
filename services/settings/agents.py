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
    """Answers of the model that one run may ask for."""
    max_auto_continues: int = Field(25, ge=0)
    """How many answers in a row may be cut off in the middle of a call."""
    max_xml_tool_calls: int = Field(0, ge=0)
    """After how many XML calls an answer is taken for ended; 0: no limit."""
    execute_on_stream: bool = False
    """Whether a tool starts while the model still speaks."""
    tool_execution: Literal["sequential", "parallel"] = "sequential"
    """Whether the calls of one answer run one after the other."""
    xml_results_as: Literal["user", "assistant"] = "user"
    """Whose words results of XML calls are for the model."""
    browser_timeout: Span = timedelta(seconds=30)
    """How long one action in a browser may take."""


class ModelSettings(Section):
    """Where models are reached; one key and base URL per provider prefix (TRAPS 28)."""

    model_config = SettingsConfigDict(env_prefix="LLM_", protected_namespaces=())
    default_model: str = Field("", validation_alias="DEFAULT_MODEL")
    """What a start without `model_name` uses; empty: by the keys that are set, else `demo/tour`."""
    idle_timeout: Span = timedelta(seconds=120)
    """How long a model may be silent."""
    connect_timeout: Span = timedelta(seconds=10)
    """How long reaching its provider may take."""
    max_retries: int = Field(3, ge=0)
    """How often a call that did not begin to answer is repeated."""
    context_window: int = Field(0, ge=0)
    """Tokens that models read, where that is not what is known of them; 0: as known."""
    openai_api_key: SecretStr = Field(SecretStr(""), validation_alias="OPENAI_API_KEY")
    """The key for `openai/…`."""
    openai_base_url: str = Field("https://api.openai.com/v1", validation_alias="OPENAI_BASE_URL")
    """Where `openai/…` is reached."""
    anthropic_api_key: SecretStr = Field(SecretStr(""), validation_alias="ANTHROPIC_API_KEY")
    """The key for `anthropic/…`."""
    anthropic_base_url: str = Field("https://api.anthropic.com", validation_alias="ANTHROPIC_BASE_URL")
    """Where `anthropic/…` is reached."""
    openrouter_api_key: SecretStr = Field(SecretStr(""), validation_alias="OPENROUTER_API_KEY")
    """The key for `openrouter/…`."""
    openrouter_base_url: str = Field("https://openrouter.ai/api/v1", validation_alias="OPENROUTER_BASE_URL")
    """Where `openrouter/…` is reached."""
    groq_api_key: SecretStr = Field(SecretStr(""), validation_alias="GROQ_API_KEY")
    """The key for `groq/…`."""
    groq_base_url: str = Field("https://api.groq.com/openai/v1", validation_alias="GROQ_BASE_URL")
    """Where `groq/…` is reached."""
    ollama_api_key: SecretStr = Field(SecretStr(""), validation_alias="OLLAMA_API_KEY")
    """The key for `ollama/…`."""
    ollama_base_url: str = Field("http://127.0.0.1:11434/v1", validation_alias="OLLAMA_BASE_URL")
    """Where `ollama/…` is reached."""
    vllm_api_key: SecretStr = Field(SecretStr(""), validation_alias="VLLM_API_KEY")
    """The key for `vllm/…`."""
    vllm_base_url: str = Field("http://127.0.0.1:8001/v1", validation_alias="VLLM_BASE_URL")
    """Where `vllm/…` is reached."""


class SandboxSettings(Section):
    """Where and how large sandboxes are; sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="SANDBOX_")
    kind: Literal["local", "docker", "off"] = Field("local", validation_alias="SANDBOX")
    """`local` is bubblewrap on this machine, `docker` a container for each project, `off` none
    ([how](operations.md#sandboxes)).
    """
    folder: str = Field(".longrun/sandboxes", min_length=1, validation_alias="SANDBOX_DIR")
    """Where their files and sockets are; the same for all processes of a machine."""
    bwrap: str = ""
    """The program bubblewrap; empty: the system's."""
    docker_url: str = Field("unix:///var/run/docker.sock", pattern=r"^(unix:///.+|(tcp|http)://.+)$")
    """The engine, for `SANDBOX=docker`."""
    image: str = Field("longrun-sandbox", min_length=1)
    """What containers are made from."""
    uid_base: int = Field(2_100_000_000, ge=1000, le=4_200_000_000)
    """The first of the user ids that projects are given."""
    idle_timeout: Span = timedelta(minutes=30)
    """After how long without a call or a job a sandbox ends; its files stay."""
    reap_interval: Span = timedelta(seconds=30)
    """How often that is looked for."""
    cpus: float = Field(1.0, gt=0)
    """Cores of a sandbox."""
    memory_bytes: int = Field(2 * 1024**3, ge=64 * 1024**2)
    """Memory of a sandbox."""
    disk_bytes: int = Field(10 * 1024**3, ge=1024**2)
    """What its files may take."""
    processes: int = Field(512, ge=16)
    """Processes and threads of a sandbox."""
    network: bool = False
    """Whether sandboxes reach the internet."""
    network_allowed: bool = False
    """Whether the owner of a project may open its own to the internet."""
    slirp: str = ""
    """The program slirp4netns; empty: the system's."""
    browser: str = ""
    """The folder of an unpacked Chromium; empty: the system's."""


class OutgoingSettings(Section):
    """URLs that models and users name. Metadata services and the like are refused whatever stands here."""

    model_config = SettingsConfigDict(env_prefix="OUTGOING_")
    allow_private: bool = False
    """Whether URLs that models and users name may lead into private networks; production refuses it."""
    allowed_hosts: tuple[str, ...] = ()
    """A JSON list of names or addresses that they may lead to all the same."""
    connect_timeout: Span = timedelta(seconds=10)
    """How long opening a connection may take."""
    read_timeout: Span = timedelta(seconds=20)
    """How long an answer may be silent."""


class McpSettings(Section):
    """Servers of the Model Context Protocol. The registry's URL has `{qualifiedName}` in it; empty: there is none."""

    model_config = SettingsConfigDict(env_prefix="MCP_")
    connect_timeout: Span = timedelta(seconds=30)
    """How long connecting to a server may take, with the list of its tools."""
    call_timeout: Span = timedelta(seconds=120)
    """How long one call may take."""
    max_restarts: int = Field(3, ge=0)
    """How often a server that died is started again in one run."""
    max_tools: int = Field(100, ge=1)
    """Tools that all servers of a run may add."""
    max_message_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    """What a server may send between two requests."""
    registry_url: str = ""
    """Where configured servers without a URL are reached, with `{qualifiedName}` in it."""
    registry_api_key: SecretStr = SecretStr("")
    """The key for that."""


class SearchSettings(Section):
    """The web search: Tavily, or a service that speaks as it does."""

    model_config = SettingsConfigDict(env_prefix="TAVILY_")
    api_key: SecretStr = SecretStr("")
    """The key of the web search; without one agents are told that there is none."""
    base_url: str = "https://api.tavily.com"
    """Tavily, or a service that speaks as it does."""


class PreviewSettings(Section):
    """Where the ports of sandboxes are shown; the host name must not be one of the API's."""

    model_config = SettingsConfigDict(env_prefix="PREVIEW_")
    url: str = ""
    """Where ports of sandboxes are shown, with `{label}` in it; empty: nowhere ([how](operations.md#previews))."""

    @model_validator(mode="after")
    def name_the_label(self) -> "PreviewSettings":
        if self.url and "://{label}." not in self.url:
            raise ValueError("PREVIEW_URL must begin like http://{label}. and a host name")
        return self
