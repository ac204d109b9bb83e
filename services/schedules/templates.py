"""Schedules to begin with."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Template:
    id: str
    name: str
    description: str
    icon: str
    category: str
    config: dict[str, Any]


def cron(expression: str) -> dict[str, Any]:
    return {"type": "cron", "cron": {"cron_expression": expression}}


def simple(unit: str, value: int) -> dict[str, Any]:
    return {"type": "simple", "simple": {"interval_type": unit, "interval_value": value}}


TEMPLATES = (
    Template(
        "every_15_minutes",
        "Every 15 minutes",
        "Looks every quarter of an hour.",
        "⏱",
        "monitoring",
        simple("minutes", 15),
    ),
    Template("hourly", "Every hour", "At the full hour.", "🕐", "monitoring", cron("0 * * * *")),
    Template("daily_morning", "Every morning", "Daily at nine.", "☀", "reports", cron("0 9 * * *")),
    Template(
        "weekday_morning",
        "Weekday mornings",
        "At nine from Monday to Friday.",
        "💼",
        "reports",
        cron("0 9 * * MON-FRI"),
    ),
    Template("weekly_monday", "Every Monday", "Mondays at eight.", "📅", "reports", cron("0 8 * * MON")),
    Template("monthly_first", "Every month", "On the first at nine.", "🗓", "reports", cron("0 9 1 * *")),
    Template("nightly", "Every night", "Daily at two, for what takes long.", "🌙", "maintenance", cron("0 2 * * *")),
)
