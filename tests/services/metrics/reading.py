"""What an answer of /metrics says, and what this process counts."""

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from services import metrics

Series = tuple[str, tuple[tuple[str, str], ...]]


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


def series() -> dict[Series, float]:
    """Of this process."""
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


class Counted:
    """`counted("run_ends_total", status="failed")`: how much that grew in this process since this was made."""

    def __init__(self) -> None:
        self.before = series()

    def __call__(self, name: str, **labels: str) -> float:
        key = f"longrun_{name}", tuple(sorted(labels.items()))
        return series().get(key, 0.0) - self.before.get(key, 0.0)
