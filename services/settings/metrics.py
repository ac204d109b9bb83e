"""What is told to Prometheus and to whoever looks whether a worker lives."""

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from services.settings.section import Section

SHORTEST_TOKEN = 16


class MetricsSettings(Section):
    """`host` and `port` are where workers answer (port 0: nowhere); those that share `dir` answer for each other."""

    model_config = SettingsConfigDict(env_prefix="METRICS_")
    token: SecretStr = SecretStr("")
    """Who has it may read `/metrics` as a bearer token, 16 characters or more; without one, this machine alone."""
    dir: str = ""
    """Processes of one kind that share this folder answer for each other; empty: those of one `--workers` or
    `--processes` do.
    """
    host: str = "127.0.0.1"
    """The address at which each worker answers `/metrics`."""
    port: int = Field(0, ge=0, le=65535)
    """Its port; 0: nowhere."""
    liveness_dir: str = Field("", validation_alias="WORKER_LIVENESS_DIR")
    """Where each worker process keeps a file that says that its loop turns (`python -m services.liveness`); empty:
    nowhere.
    """

    @field_validator("token")
    @classmethod
    def be_long_enough(cls, token: SecretStr) -> SecretStr:
        if 0 < len(token.get_secret_value()) < SHORTEST_TOKEN:
            raise ValueError(f"METRICS_TOKEN must have at least {SHORTEST_TOKEN} characters")
        return token
