"""Who may run, and what it costs."""

from services.billing.credits import CreditsGate
from services.billing.gate import Gate
from services.billing.local import LocalGate
from services.settings import Settings


def gate_of(settings: Settings) -> Gate:
    """The gate that BILLING names."""
    return CreditsGate(settings.billing) if settings.billing.kind == "credits" else LocalGate()
