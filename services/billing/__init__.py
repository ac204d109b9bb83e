"""Who may run, and what it costs."""

from services.billing.gate import Gate
from services.billing.local import LocalGate
from services.settings import Settings

GATES: dict[str, type[Gate]] = {"local": LocalGate}


def gate_of(settings: Settings) -> Gate:
    """The gate that BILLING names."""
    return GATES[settings.billing.kind]()
