"""Figures from measured values."""

from collections.abc import Iterable
from math import ceil


def percentile(values: Iterable[float], share: float) -> float:
    """The least of `values` that at least `share` (0 to 1) of them do not exceed. Raises: IndexError without values."""
    ordered = sorted(values)
    return ordered[max(ceil(len(ordered) * share) - 1, 0)]
