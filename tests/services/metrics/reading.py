"""What an answer of /metrics says."""

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families


class Told:
    """The samples of one answer."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name which have these labels; 0 when there is none."""
        return sum(self.values(name, labels.items()))

    def values(self, name: str, labels: Iterable[tuple[str, str]] = ()) -> list[float]:
        return [each.value for each in self.samples if each.name == name and set(labels) <= set(each.labels.items())]

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}
