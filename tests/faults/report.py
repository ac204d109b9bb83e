"""What the faults came to, as the table of docs/reliability.md."""

from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"
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

    def write(self, path: Path) -> None:
        """Replace the table between the two marks of a document. Raises: ValueError when it has none."""
        before, _, rest = path.read_text().partition(BEGIN)
        _, mark, after = rest.partition(END)
        if not mark:
            raise ValueError(f"{path} has no {BEGIN} … {END}")
        table = HEAD + "".join(f"{row}\n" for row in self.rows)
        path.write_text(f"{before}{BEGIN}\n{table}{END}{after}")
