"""What a schedule's config may be, as requests give it."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, field_validator, model_validator

from services.schedules.times import NEVER, BadCron, Cron, Every, Timetable, read_cron

MAX_ZONE_CHARS = 64
MAX_INTERVAL = timedelta(days=366)
MAX_EXECUTIONS = 1_000_000_000
UNITS = {
    "minutes": timedelta(minutes=1),
    "hours": timedelta(hours=1),
    "days": timedelta(days=1),
    "weeks": timedelta(weeks=1),
}

Missed = Literal["skip", "once", "all"]


def zone_of(name: str) -> ZoneInfo:
    """Raises: ValueError for a zone that nobody knows."""
    if len(name) <= MAX_ZONE_CHARS:
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):  # also of a folder, and of names that leave it
            pass
    raise ValueError(f"{name[:MAX_ZONE_CHARS]!r} is no IANA time zone, such as Europe/Berlin")


def known_zone(name: str) -> str:
    return zone_of(name).key


def fires_ever(expression: str) -> str:
    """Raises: BadCron."""
    read = read_cron(expression)
    if Cron(read, ZoneInfo("UTC")).after(datetime.now(UTC)) is None:
        raise BadCron(NEVER)
    return read


CronExpression = Annotated[str, Field(max_length=1_000), AfterValidator(fires_ever)]
Zone = Annotated[str, Field(max_length=1_000), AfterValidator(known_zone)]


class Simple(BaseModel):
    interval_type: Literal["minutes", "hours", "days", "weeks"]
    interval_value: int = Field(ge=1)

    @field_validator("interval_value")
    @classmethod
    def be_at_most_a_year(cls, value: int, info: ValidationInfo) -> int:
        unit = UNITS.get(info.data.get("interval_type", ""))
        if unit and value > MAX_INTERVAL // unit:
            raise ValueError(f"must be at most {MAX_INTERVAL // unit}")
        return value

    @property
    def span(self) -> timedelta:
        return self.interval_value * UNITS[self.interval_type]


class OfCron(BaseModel):
    cron_expression: CronExpression


class Advanced(BaseModel):
    """Dates without an offset are by the clocks of the zone; both ends are included."""

    cron_expression: CronExpression
    timezone: Zone = "UTC"
    start_date: datetime | None = None
    end_date: datetime | None = None
    max_executions: int | None = Field(None, ge=1, le=MAX_EXECUTIONS)

    @field_validator("start_date", "end_date")
    @classmethod
    def be_an_instant(cls, value: datetime | None, info: ValidationInfo) -> datetime | None:
        if value is None:
            return None
        try:
            moment = (
                value if value.tzinfo else value.replace(tzinfo=zone_of(info.data.get("timezone", "UTC")))
            ).astimezone(UTC)
        except OverflowError as error:
            raise ValueError("is too far away") from error
        if info.field_name == "end_date" and (start := info.data.get("start_date")) and moment <= start:
            raise ValueError("must be after start_date")
        return moment


class Config(BaseModel):
    """Only the part that `type` names counts, and it has to be there."""

    type: Literal["simple", "cron", "advanced"]
    enabled: bool = True
    simple: Simple | None = None
    cron: OfCron | None = None
    advanced: Advanced | None = None

    @model_validator(mode="before")
    @classmethod
    def leave_out_other_parts(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("type") not in ("simple", "cron", "advanced"):
            return given
        others = {"simple", "cron", "advanced"} - {given["type"]}
        return {name: value for name, value in given.items() if name not in others}

    @model_validator(mode="after")
    def have_the_part(self) -> "Config":
        if getattr(self, self.type) is None:
            raise ValueError(f"of type {self.type} needs the field {self.type}")
        return self

    @property
    def max_executions(self) -> int | None:
        return self.advanced.max_executions if self.advanced else None

    def timetable(self, anchor: datetime) -> Timetable:
        """`anchor`: since when a simple one counts."""
        if self.simple:
            return Timetable(Every(self.simple.span, anchor))
        if self.cron:
            return Timetable(Cron(self.cron.cron_expression, zone_of("UTC")))
        assert self.advanced, "one of the three is there"
        told = self.advanced
        return Timetable(Cron(told.cron_expression, zone_of(told.timezone)), told.start_date, told.end_date)


PARTS: dict[str, type[BaseModel]] = {"simple": Simple, "cron": OfCron, "advanced": Advanced}


def stored(config: dict[str, Any]) -> Config:
    """What was checked when it was stored is not checked again: an expression may have fired for the last time."""
    parts: dict[str, Any] = {"simple": None, "cron": None, "advanced": None}
    kind = config["type"]
    part = dict(config[kind])
    if kind == "advanced":
        for name in ("start_date", "end_date"):
            part[name] = part.get(name) and datetime.fromisoformat(part[name])
    parts[kind] = PARTS[kind].model_construct(**part)
    return Config.model_construct(type=kind, enabled=config.get("enabled", True), **parts)
