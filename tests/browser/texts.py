"""Runs whose text is known beforehand."""

from agent.llm import demo


def model(chunks: int, delay_ms: int = 20) -> str:
    return f"demo/lorem?chunks={chunks}&delay_ms={delay_ms}"


def text_of(chunks: int) -> str:
    return "".join(demo.lorem(chunks))
