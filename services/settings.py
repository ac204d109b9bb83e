"""Every setting of Longrun: the only reader of the environment."""

from datetime import timedelta
from functools import lru_cache
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

LONGEST_SECONDS = 1e9
UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DEVELOPMENT_JWT_SECRET = "development-only-secret-of-32-bytes-or-more"  # noqa: S105 - refused in production
DEVELOPMENT_SECRETS_KEY = "development-only-key-of-32-bytes-or-more"
DEVELOPMENT_API_KEY_PEPPER = "development-only-pepper-of-32-bytes-or-more"
SHORTEST_KEY = 32


def parse_duration(value: Any) -> Any:
    """Turn `15`, `"0.5"`, `"150ms"`, `"6h"` into a timedelta; anything else is left to pydantic."""
    if isinstance(value, int | float):
        return timedelta(seconds=value)
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    for unit in sorted(UNIT_SECONDS, key=len, reverse=True):
        number = text.removesuffix(unit)
        if number != text and is_number(number):
            return timedelta(seconds=float(number) * UNIT_SECONDS[unit])
    return timedelta(seconds=float(text)) if is_number(text) else value


def is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < LONGEST_SECONDS
    except ValueError:
        return False


Duration = Annotated[timedelta, BeforeValidator(parse_duration), Field(ge=timedelta(0))]
Span = Annotated[timedelta, BeforeValidator(parse_duration), Field(ge=timedelta(milliseconds=1))]
"""A duration of which nothing would be left to do its work in: a loop would spin, a key be gone at once."""


class Section(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, env_file=".env", extra="ignore", populate_by_name=True)


class PostgresSettings(Section):
    model_config = SettingsConfigDict(env_prefix="POSTGRES_")
    url: SecretStr = Field(
        SecretStr("postgresql://longrun:longrun@127.0.0.1:5432/longrun"), validation_alias="DATABASE_URL"
    )
    pool_min: int = Field(10, ge=0)
    pool_max: int = Field(20, ge=1)
    worker_pool_min: int = Field(1, ge=0)
    max_queries: int = Field(50_000, ge=1)
    idle_lifetime: Duration = timedelta(seconds=300)
    upkeep_connections: int = Field(3, ge=1)
    connect_timeout: Span = timedelta(seconds=10)
    acquire_timeout: Span = timedelta(seconds=3)
    command_timeout: Span = timedelta(seconds=6)
    statement_timeout: Duration = timedelta(seconds=60)
    idle_transaction_timeout: Duration = timedelta(seconds=10)

    @model_validator(mode="after")
    def fit_the_pool(self) -> "PostgresSettings":
        if max(self.pool_min, self.worker_pool_min) > self.pool_max:
            raise ValueError("POSTGRES_POOL_MIN and POSTGRES_WORKER_POOL_MIN must be at most POSTGRES_POOL_MAX")
        return self


class RedisSettings(Section):
    """One server, or several that runs are spread over: `urls` then takes the place of `url`, host and port."""

    model_config = SettingsConfigDict(env_prefix="REDIS_", hide_input_in_errors=True)
    urls: SecretStr = SecretStr("")
    url: SecretStr = SecretStr("")
    host: str = "127.0.0.1"
    port: int = Field(6379, ge=1, le=65535)
    password: SecretStr = SecretStr("")
    pool_size: int = Field(6, ge=1)
    socket_timeout: Span = timedelta(seconds=5)
    connect_timeout: Span = timedelta(seconds=2)
    ping_interval: Span = timedelta(seconds=5)

    @property
    def dsn(self) -> str:
        """The URL of our database number on the first server: of REDIS_URLS, REDIS_URL, or host, port and password."""
        if self.listed:
            return self.listed[0]
        if self.url.get_secret_value():
            return self.url.get_secret_value()
        return redis_url(self.host, self.port, self.password.get_secret_value(), 0)

    @property
    def listed(self) -> list[str]:
        return [url.strip() for url in self.urls.get_secret_value().split(",") if url.strip()]

    @property
    def servers(self) -> "list[RedisSettings]":
        """Settings of each server by itself; the first is the home of what belongs to no run."""
        each = [{"urls": SecretStr(""), "url": SecretStr(url)} for url in self.listed]
        return [self.model_copy(update=changes) for changes in each] or [self]

    @property
    def name(self) -> str:
        """What runs know a server by: what follows `#` in its URL, else its address and database number."""
        return urlsplit(self.dsn).fragment or database_address(self.dsn)

    @model_validator(mode="after")
    def name_each_server_once(self) -> "RedisSettings":
        if any(not is_redis_url(url) for url in self.listed):
            raise ValueError(
                "REDIS_URLS must be addresses like redis://host:6379/0 with commas between them"
                " (a comma in a password is %2C)"
            )
        for what in ([server.name for server in self.servers], list(map(database_address, self.listed))):
            twice = sorted({one for one in what if what.count(one) > 1})
            if twice:
                raise ValueError(f"REDIS_URLS names {twice[0]} twice")
        return self


class BrokerSettings(Section):
    model_config = SettingsConfigDict(env_prefix="RABBITMQ_")
    kind: Literal["rabbitmq", "redis"] = Field("rabbitmq", validation_alias="BROKER")
    url: SecretStr = SecretStr("")
    host: str = "127.0.0.1"
    port: int = Field(5672, ge=1, le=65535)
    user: str = "guest"
    password: SecretStr = SecretStr("guest")
    vhost: str = "/"
    queue_type: Literal["classic", "quorum"] = "classic"
    connection_attempts: int = Field(3, ge=1)
    retry_delay: Duration = timedelta(seconds=1)
    heartbeat: Duration = timedelta(seconds=30)
    blocked_connection_timeout: Span = timedelta(seconds=10)
    socket_timeout: Span = timedelta(seconds=5)
    stack_timeout: Span = timedelta(seconds=10)
    redis_url: SecretStr = Field(SecretStr(""), validation_alias="BROKER_REDIS_URL")
    redis_namespace: str = Field("dramatiq", validation_alias="BROKER_REDIS_NAMESPACE")
    redis_pool_size: int = Field(32, ge=1, validation_alias="BROKER_REDIS_POOL_SIZE")
    redis_heartbeat_timeout: Span = Field(timedelta(seconds=5), validation_alias="BROKER_REDIS_HEARTBEAT_TIMEOUT")
    redis_maintenance_chance: int = Field(20_000, ge=1, validation_alias="BROKER_REDIS_MAINTENANCE_CHANCE")
    outbox_size: int = Field(10_000, ge=1, validation_alias="BROKER_OUTBOX_SIZE")

    @property
    def amqp_url(self) -> str:
        """RABBITMQ_URL, else built from host, port, user, password and vhost."""
        if self.url.get_secret_value():
            return self.url.get_secret_value()
        user, password = quote(self.user, safe=""), quote(self.password.get_secret_value(), safe="")
        return f"amqp://{user}:{password}@{self.host}:{self.port}/{quote(self.vhost, safe='')}"


class RunSettings(Section):
    """Durations of CONTRACT section 6; tests scale them down."""

    model_config = SettingsConfigDict(env_prefix="RUN_")
    lock_ttl: Span = timedelta(seconds=15)
    heartbeat_interval: Span = timedelta(seconds=5)
    dead_after: Span = timedelta(seconds=15)
    sweep_interval: Span = timedelta(seconds=2)
    resend_after: Span = timedelta(seconds=5)
    close_after: Span = timedelta(seconds=5)
    stop_grace: Duration = timedelta(milliseconds=150)
    timeout: Span = timedelta(hours=6)
    max_crashes: int = Field(5, ge=1)
    drain: Literal["handover", "finish"] = "handover"
    watchdog_timeout: Span = timedelta(seconds=60)
    drain_deadline: Duration = timedelta(minutes=10)
    log_ttl: Span = timedelta(hours=24)
    append_interval: Duration = timedelta(milliseconds=10)
    append_timeout: Span = timedelta(seconds=30)
    archive_interval: Span = timedelta(seconds=1)
    max_event_bytes: int = Field(1024 * 1024, ge=1024)
    max_events: int = Field(200_000, ge=10)
    max_log_bytes: int = Field(256 * 1024 * 1024, ge=1024)
    max_tail_bytes: int = Field(8 * 1024 * 1024, ge=1024)

    @model_validator(mode="after")
    def renew_before_the_lock_expires(self) -> "RunSettings":
        if self.heartbeat_interval > self.lock_ttl / 2:
            raise ValueError("RUN_HEARTBEAT_INTERVAL must be at most half of RUN_LOCK_TTL")
        if self.dead_after < self.heartbeat_interval:
            raise ValueError("RUN_DEAD_AFTER must be at least RUN_HEARTBEAT_INTERVAL: live runs would be taken over")
        return self


class StreamSettings(Section):
    model_config = SettingsConfigDict(env_prefix="STREAM_")
    ping_interval: Span = timedelta(seconds=15)
    retry: Duration = timedelta(seconds=3)
    send_timeout: Span = timedelta(seconds=30)
    silence: Span = timedelta(seconds=5)
    window_bytes: int = Field(256 * 1024, ge=1024)
    windows_bytes: int = Field(32 * 1024 * 1024, ge=1024)
    max_streams: int = Field(20_000, ge=1)
    token_lifetime: Span = timedelta(minutes=15)
    recheck_interval: Span = Field(timedelta(seconds=30), le=timedelta(seconds=45))


class ApiSettings(Section):
    model_config = SettingsConfigDict(env_prefix="API_")
    cors_origins: tuple[str, ...] = ()
    public_url: str = Field("http://127.0.0.1:8000", validation_alias="PUBLIC_URL")
    max_body_bytes: int = Field(1024 * 1024, ge=1024)
    max_prompt_chars: int = Field(200_000, ge=1)
    max_files: int = Field(20, ge=0)
    max_file_bytes: int = Field(50 * 1024 * 1024, ge=1)
    max_upload_bytes: int = Field(200 * 1024 * 1024, ge=1)


class AuthSettings(Section):
    """What an access token must be; RS256 and ES256 are checked with the keys that the issuer shows at JWKS_URL."""

    model_config = SettingsConfigDict(env_prefix="JWT_", hide_input_in_errors=True)
    secret: SecretStr = SecretStr(DEVELOPMENT_JWT_SECRET)
    previous_secrets: SecretStr = SecretStr("")
    algorithms: tuple[Literal["HS256", "RS256", "ES256"], ...] = Field(("HS256",), min_length=1)
    audience: str = Field("authenticated", min_length=1)
    issuer: str = ""
    leeway: Duration = timedelta(seconds=10)
    jwks_url: str = Field("", pattern=r"^(https?://.+)?$")
    jwks_refresh: Span = timedelta(minutes=5)
    jwks_max_age: Span = timedelta(hours=24)
    jwks_cooldown: Span = timedelta(seconds=10)
    jwks_timeout: Span = timedelta(seconds=5)

    @property
    def secrets(self) -> list[str]:
        """The secret that signs, then those that once did and still verify."""
        previous = self.previous_secrets.get_secret_value().split(",")
        return [self.secret.get_secret_value(), *(secret.strip() for secret in previous if secret.strip())]

    @model_validator(mode="after")
    def know_where_the_keys_are(self) -> "AuthSettings":
        if bool(self.jwks_url) != bool({"RS256", "ES256"} & set(self.algorithms)):
            raise ValueError("JWT_JWKS_URL and RS256 or ES256 in JWT_ALGORITHMS need each other")
        return self


class ApiKeySettings(Section):
    """The pepper is what the secrets of API keys are hashed with: another one makes all of them void."""

    model_config = SettingsConfigDict(env_prefix="API_KEY_", hide_input_in_errors=True)
    pepper: SecretStr = Field(SecretStr(DEVELOPMENT_API_KEY_PEPPER), min_length=SHORTEST_KEY)
    cache_ttl: Duration = Field(timedelta(seconds=60), le=timedelta(seconds=60))
    touch_interval: Span = timedelta(seconds=60)


class SecretsSettings(Section):
    """What secrets of agents are encrypted with at rest: one key, or several with commas between them.

    The first encrypts, all decrypt: a new key goes in front, an old one stays until nothing is encrypted with it.
    """

    model_config = SettingsConfigDict(env_prefix="SECRETS_", hide_input_in_errors=True)
    keys: SecretStr = SecretStr(DEVELOPMENT_SECRETS_KEY)

    @property
    def each(self) -> list[str]:
        return [key.strip() for key in self.keys.get_secret_value().split(",") if key.strip()]

    @model_validator(mode="after")
    def be_long_enough(self) -> "SecretsSettings":
        if not self.each or any(len(key) < SHORTEST_KEY for key in self.each):
            raise ValueError(f"SECRETS_KEYS must be one or more keys of at least {SHORTEST_KEY} characters")
        return self


class BillingSettings(Section):
    """Who decides whether an account may run: `local` always lets it."""

    kind: Literal["local"] = Field("local", validation_alias="BILLING")


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


class LangfuseSettings(Section):
    """Where runs are traced to; nowhere without both keys."""

    model_config = SettingsConfigDict(env_prefix="LANGFUSE_")
    public_key: SecretStr = SecretStr("")
    secret_key: SecretStr = SecretStr("")
    host: str = "https://cloud.langfuse.com"

    @property
    def in_use(self) -> bool:
        return bool(self.public_key.get_secret_value().strip() and self.secret_key.get_secret_value().strip())


class PreviewSettings(Section):
    """Where the ports of sandboxes are shown; the host name must not be one of the API's."""

    model_config = SettingsConfigDict(env_prefix="PREVIEW_")
    url: str = ""

    @model_validator(mode="after")
    def name_the_label(self) -> "PreviewSettings":
        if self.url and "://{label}." not in self.url:
            raise ValueError("PREVIEW_URL must begin like http://{label}. and a host name")
        return self


class LogSettings(Section):
    model_config = SettingsConfigDict(env_prefix="LOG_")
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class DeploymentSettings(Section):
    environment: Literal["development", "production"] = "development"


class Settings(BaseModel):
    """All sections. Build once at an entry point with `load()` and hand down."""

    model_config = ConfigDict(frozen=True)
    deployment: DeploymentSettings = Field(default_factory=DeploymentSettings)
    postgres: PostgresSettings = Field(default_factory=PostgresSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    runs: RunSettings = Field(default_factory=RunSettings)
    streams: StreamSettings = Field(default_factory=StreamSettings)
    api: ApiSettings = Field(default_factory=ApiSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    api_keys: ApiKeySettings = Field(default_factory=ApiKeySettings)
    secrets: SecretsSettings = Field(default_factory=SecretsSettings)
    billing: BillingSettings = Field(default_factory=BillingSettings)
    agent: AgentSettings = Field(default_factory=AgentSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings)
    outgoing: OutgoingSettings = Field(default_factory=OutgoingSettings)
    mcp: McpSettings = Field(default_factory=McpSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    langfuse: LangfuseSettings = Field(default_factory=LangfuseSettings)
    previews: PreviewSettings = Field(default_factory=PreviewSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @property
    def production(self) -> bool:
        return self.deployment.environment == "production"

    @property
    def broker_redis_url(self) -> str:
        """BROKER_REDIS_URL, else our Redis with the next database number: the two never share one."""
        named = self.broker.redis_url.get_secret_value()
        return named or with_next_database(self.redis.dsn)

    @model_validator(mode="after")
    def keep_the_broker_apart(self) -> "Settings":
        ours = [database_address(url) for url in self.redis.listed]
        if self.broker.kind == "redis" and database_address(self.broker_redis_url) in ours:
            raise ValueError("BROKER_REDIS_URL must be a database of its own: REDIS_URLS names the same one")
        return self

    @model_validator(mode="after")
    def refuse_unsafe_production(self) -> "Settings":
        if self.production and DEVELOPMENT_JWT_SECRET in self.auth.secrets:
            raise ValueError("JWT_SECRET must be set, without the development secret, when ENVIRONMENT=production")
        if self.production and any(len(secret.encode()) < SHORTEST_KEY for secret in self.auth.secrets):
            raise ValueError(f"JWT_SECRET must have at least {SHORTEST_KEY} bytes when ENVIRONMENT=production")
        if self.production and self.api_keys.pepper.get_secret_value() == DEVELOPMENT_API_KEY_PEPPER:
            raise ValueError("API_KEY_PEPPER must be set when ENVIRONMENT=production")
        if self.production and DEVELOPMENT_SECRETS_KEY in self.secrets.each:
            raise ValueError("SECRETS_KEYS must be set, without the development key, when ENVIRONMENT=production")
        return self


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


@lru_cache(maxsize=1)
def load() -> Settings:
    """Read the environment and `.env` once per process.

    Raises: pydantic.ValidationError naming each setting that is wrong.
    """
    return Settings()
