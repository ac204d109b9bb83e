"""Who may run, and what it costs them."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.settings.section import Section

Credits = Annotated[Decimal, Field(ge=0, le=1_000_000)]


class Price(BaseModel):
    """Credits for a million tokens, which are micro-credits for one.

    What is not said costs what `input` costs (`cached_input`, `cache_write`), or `output` (`reasoning`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    input: Credits
    output: Credits
    cached_input: Credits | None = None
    cache_write: Credits | None = None
    reasoning: Credits | None = None


class Tier(BaseModel):
    """`models`: full names; a `*` at the end stands for any rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    models: tuple[str, ...] = ("*",)


class BillingSettings(Section):
    """Who decides whether an account may run: `local` always lets it, `credits` as long as it has some.

    `prices` by names as a tier has them; the longest that fits counts, and a model that none fits is not sold.
    """

    model_config = SettingsConfigDict(env_prefix="BILLING_")
    kind: Literal["local", "credits"] = Field("local", validation_alias="BILLING")
    """`local`: everybody may run; `credits`: who has some ([how](operations.md#credits))."""
    prices: dict[str, Price] = Field(default_factory=dict)
    """Credits for a million tokens, by names of models, in JSON."""
    tiers: dict[str, Tier] = Field(default_factory=lambda: {"free": Tier()})
    """Which models a tier may use, in JSON."""
    default_tier: str = "free"
    """The tier of an account that was given none."""

    @model_validator(mode="after")
    def know_what_is_sold(self) -> "BillingSettings":
        if self.kind == "credits" and not self.prices:
            raise ValueError('BILLING=credits needs BILLING_PRICES, {"*": {"input": 3, "output": 15}} for instance')
        if self.default_tier not in self.tiers:
            raise ValueError("BILLING_DEFAULT_TIER must be one of BILLING_TIERS")
        return self
