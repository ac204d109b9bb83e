"""What the faults came to, as the table of docs/reliability.md."""

from dataclasses import dataclass, field
from pathlib import Path

FAULTS_HERE = ("<!-- faults -->", "<!-- end of faults -->")
BREAKS_HERE = ("<!-- breaks -->", "<!-- end of breaks -->")
HEAD = "| fault | recovered after | promised | outcome |\n| --- | ---: | ---: | --- |\n"


@dataclass(frozen=True)
class Row:
    fault: str
    seconds: float
    within: float
    outcome: str

    def __str__(self) -> str:
        return f"| {self.fault} | {self.seconds:.1f} s | {self.within:g} s | {self.outcome} |"


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def __str__(self) -> str:
        return HEAD + "".join(f"{row}\n" for row in self.rows)


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks of a document. Raises: ValueError when they are not there."""
    before, _, rest = path.read_text().partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"{path} has no {begin} … {end}")
    path.write_text(f"{before}{begin}\n{text}{end}{after}")
