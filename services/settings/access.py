"""The API: what it takes, who may ask, and the secrets that this rests on."""

import re
from datetime import timedelta
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.settings.section import Duration, Section, Span

DEVELOPMENT_JWT_SECRET = "development-only-secret-of-32-bytes-or-more"  # noqa: S105 - refused in production
DEVELOPMENT_SECRETS_KEY = "development-only-key-of-32-bytes-or-more"
DEVELOPMENT_API_KEY_PEPPER = "development-only-pepper-of-32-bytes-or-more"
SHORTEST_KEY = 32
HOST = re.compile(r"(\*\.)?[a-z0-9.-]+|\[[0-9a-f:]+\]")
ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


class ApiSettings(Section):
    """`forwarded_allow_ips` is uvicorn's to use: whose X-Forwarded-For and -Proto it believes."""

    model_config = SettingsConfigDict(env_prefix="API_")
    cors_origins: tuple[str, ...] = ()
    """A JSON list of origins whose pages may call the API; `["*"]`: any."""
    cors_credentials: bool = False
    """Whether those pages may send cookies, which the API does not need."""
    allowed_hosts: tuple[str, ...] = ()
    """A JSON list of names that the API answers to, also like `*.example.org`; empty: any."""
    hsts: Duration = timedelta(0)
    """For how long browsers are told to come by TLS only; 0: they are not told."""
    forwarded_allow_ips: str = Field("127.0.0.1,::1", validation_alias="FORWARDED_ALLOW_IPS")
    """Proxies whose `X-Forwarded-For` and `-Proto` uvicorn believes: addresses or networks with commas between them."""
    public_url: str = Field("http://127.0.0.1:8000", validation_alias="PUBLIC_URL")
    """Where clients reach the API."""
    max_body_bytes: int = Field(1024 * 1024, ge=1024)
    """The largest JSON or form body without files."""
    max_prompt_chars: int = Field(200_000, ge=1)
    """The longest prompt and the longest message."""
    max_files: int = Field(20, ge=0)
    """Files of one request."""
    max_file_bytes: int = Field(50 * 1024 * 1024, ge=1)
    """The largest single file."""
    max_upload_bytes: int = Field(200 * 1024 * 1024, ge=1)
    """All files of one request together."""
    max_url_bytes: int = Field(20 * 1024, ge=1024)
    """The longest URL; a stream's may hold an access token."""
    max_headers: int = Field(100, ge=10)
    """Headers of one request."""
    max_header_bytes: int = Field(32 * 1024, ge=1024)
    """All headers of one request together."""
    head_timeout: Span = timedelta(seconds=20)
    """How long the head of a request may take to arrive."""
    body_timeout: Span = timedelta(seconds=15)
    """In each such span `API_MIN_BODY_RATE` bytes a second of a body must arrive."""
    min_body_rate: int = Field(4096, ge=0)
    """Bytes a second that must arrive of a body; 0: any pace."""

    @model_validator(mode="after")
    def name_origins_as_browsers_do(self) -> "ApiSettings":
        if self.cors_credentials and "*" in self.cors_origins:
            raise ValueError("API_CORS_ORIGINS must name origins, not *, when API_CORS_CREDENTIALS is true")
        if unknown := [origin for origin in self.cors_origins if origin != "*" and not ORIGIN.fullmatch(origin)]:
            raise ValueError(f"API_CORS_ORIGINS must be origins like https://app.example.org, not {unknown[0]!r}")
        if unknown := [host for host in self.allowed_hosts if not HOST.fullmatch(host)]:
            raise ValueError(
                f"API_ALLOWED_HOSTS must be names like api.example.org or *.example.org, not {unknown[0]!r}"
            )
        return self


class AuthSettings(Section):
    """What an access token must be; RS256 and ES256 are checked with the keys that the issuer shows at JWKS_URL."""

    model_config = SettingsConfigDict(env_prefix="JWT_")
    secret: SecretStr = SecretStr(DEVELOPMENT_JWT_SECRET)
    """The HS256 secret of access tokens, 32 bytes or more; stream tokens and preview addresses are signed with
    keys made from it.
    """
    previous_secrets: SecretStr = SecretStr("")
    """Secrets before it, commas between them: they still verify."""
    algorithms: tuple[Literal["HS256", "RS256", "ES256"], ...] = Field(("HS256",), min_length=1)
    """A JSON list of the algorithms that access tokens may have."""
    audience: str = Field("authenticated", min_length=1)
    """The audience that an access token must name."""
    issuer: str = ""
    """The issuer that an access token must name; empty: not checked."""
    leeway: Duration = timedelta(seconds=10)
    """How far the clocks of issuer and API may be apart."""
    jwks_url: str = Field("", pattern=r"^(https?://.+)?$")
    """Where the issuer shows its public keys, for RS256 and ES256."""
    jwks_refresh: Span = timedelta(minutes=5)
    """After how long those keys are fetched again."""
    jwks_max_age: Span = timedelta(hours=24)
    """How long known keys go on while the issuer is away."""
    jwks_cooldown: Span = timedelta(seconds=10)
    """For a key that is not known they are fetched at most this often."""
    jwks_timeout: Span = timedelta(seconds=5)
    """How long fetching them may take."""

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

    model_config = SettingsConfigDict(env_prefix="API_KEY_")
    pepper: SecretStr = Field(SecretStr(DEVELOPMENT_API_KEY_PEPPER), min_length=SHORTEST_KEY)
    """What secrets of API keys are hashed with, 32 characters or more; another one makes all of them void."""
    cache_ttl: Duration = Field(timedelta(seconds=60), le=timedelta(seconds=60))
    """For how long a key that was found is known without asking again."""
    touch_interval: Span = timedelta(seconds=60)
    """A key's last use is written at most this often."""


class SecretsSettings(Section):
    """What secrets of agents are encrypted with at rest: one key, or several with commas between them.

    The first encrypts, all decrypt: a new key goes in front, an old one stays until nothing is encrypted with it.
    """

    model_config = SettingsConfigDict(env_prefix="SECRETS_")
    keys: SecretStr = SecretStr(DEVELOPMENT_SECRETS_KEY)
    """What secrets of agents are encrypted with at rest: one or more keys of 32 characters, commas between them;
    the first encrypts.
    """

    @property
    def each(self) -> list[str]:
        return [key.strip() for key in self.keys.get_secret_value().split(",") if key.strip()]

    @model_validator(mode="after")
    def be_long_enough(self) -> "SecretsSettings":
        if not self.each or any(len(key) < SHORTEST_KEY for key in self.each):
            raise ValueError(f"SECRETS_KEYS must be one or more keys of at least {SHORTEST_KEY} characters")
        return self
