"""Runs whose text is known beforehand."""

from agent.llm import demo

MORE_THAN_READ = 10_000
"""Chunks of a run that goes on until it is stopped, however slow the machine is."""


def model(chunks: int, delay_ms: int = 20) -> str:
    return f"demo/lorem?chunks={chunks}&delay_ms={delay_ms}"


def text_of(chunks: int) -> str:
    return "".join(demo.lorem(chunks))
