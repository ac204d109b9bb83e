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
    cors_credentials: bool = False
    allowed_hosts: tuple[str, ...] = ()
    hsts: Duration = timedelta(0)
    forwarded_allow_ips: str = Field("127.0.0.1,::1", validation_alias="FORWARDED_ALLOW_IPS")
    public_url: str = Field("http://127.0.0.1:8000", validation_alias="PUBLIC_URL")
    max_body_bytes: int = Field(1024 * 1024, ge=1024)
    max_prompt_chars: int = Field(200_000, ge=1)
    max_files: int = Field(20, ge=0)
    max_file_bytes: int = Field(50 * 1024 * 1024, ge=1)
    max_upload_bytes: int = Field(200 * 1024 * 1024, ge=1)
    max_url_bytes: int = Field(20 * 1024, ge=1024)
    max_headers: int = Field(100, ge=10)
    max_header_bytes: int = Field(32 * 1024, ge=1024)
    head_timeout: Span = timedelta(seconds=20)
    body_timeout: Span = timedelta(seconds=15)
    min_body_rate: int = Field(4096, ge=0)

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
