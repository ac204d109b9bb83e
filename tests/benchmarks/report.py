"""What a benchmark found, and the circumstances it was found in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from tests.figures import percentile


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure; beside it, where both were measured, the least that does the job and the reference design.

    `group` is the heading under which neighbouring rows stand.
    """

    name: str
    unit: str
    longrun: float | None
    limit: float | None = None
    reference: float | None = None
    group: str = ""

    @property
    def longrun_by_limit(self) -> float | None:
        return quotient(self.longrun, self.limit)

    @property
    def reference_by_longrun(self) -> float | None:
        return quotient(self.reference, self.longrun)


def quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def shares(name: str, values: Iterable[float]) -> Series:
    """Which share of the values, in percent, is no greater than x."""
    ordered = sorted(values)
    return Series(name, ordered, [100 * rank / len(ordered) for rank in range(1, len(ordered) + 1)])


def in_ms(name: str, seconds: Iterable[float]) -> Series:
    """`shares` in milliseconds."""
    return shares(name, (1000 * value for value in seconds))


def at(seconds: Sequence[float], share: float) -> float | None:
    """That percentile in milliseconds; None of nothing."""
    return 1000 * percentile(seconds, share) if seconds else None


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over common axes; `x_label` and `y_label` name the unit."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    logarithmic_x: bool = False
    logarithmic_y: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What `run` of a benchmark returns. `notes` say what the figures mean, the limit and the reference above all."""

    title: str
    rows: Sequence[Row]
    plots: Sequence[Plot]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How to measure again and with what it was measured: no address, no path and no name of a host."""

    benchmark: str
    command: str
    seed: int
    began_at: datetime
    seconds: float
    machine: Mapping[str, str | float]
    versions: Mapping[str, str] = field(default_factory=dict)


def as_json(report: Report, circumstances: Circumstances) -> bytes:
    """One JSON object:

    - `benchmark`, `command` (repeats it), `seed`, `began_at` (ISO-8601, UTC), `seconds` (the whole, with start-up);
    - `machine`: `system`, `architecture`, `processor`, `cores` (usable), `memory_gib`, `load` (of the minute before);
    - `versions`: `python`, and those of Longrun and its servers where the benchmark started them;
    - `title`, `notes`;
    - `rows`: `[{group, name, unit, limit, longrun, reference, longrun_by_limit, reference_by_longrun}]`, figures that
      were not measured being null;
    - `plots`: `[{title, x_label, y_label, logarithmic_x, logarithmic_y, series: [{name, x: [...], y: [...]}]}]`.
    """
    whole = {
        **shallow(circumstances),
        **shallow(report),
        "rows": [
            {
                **shallow(row),
                "longrun_by_limit": row.longrun_by_limit,
                "reference_by_longrun": row.reference_by_longrun,
            }
            for row in report.rows
        ],
    }
    return orjson.dumps(whole, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


def shallow(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
