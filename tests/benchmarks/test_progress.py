"""A benchmark says how far it is."""

import io

from rich.console import Console

from tests.benchmarks.progress import Progress


def test_without_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end() -> None:
    seldom, often = io.StringIO(), io.StringIO()
    for stream, every in ((seldom, 60.0), (often, 0.0)):
        with Progress(stream, every).steps("stops", 3) as advance:
            for _ in range(3):
                advance()
    assert [line.split(" after ")[0] for line in often.getvalue().splitlines()] == [
        "  stops: 1 of 3",
        "  stops: 2 of 3",
        "  stops: 3 of 3",
    ]
    assert [line.split(" after ")[0] for line in seldom.getvalue().splitlines()] == ["  stops: 3 of 3"]


def test_a_terminal_shows_a_bar() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.console = Console(file=stream, force_terminal=True, width=100)
    with progress.steps("stops", 2) as advance:
        advance()
        advance()
    assert "stops" in stream.getvalue()
    assert "2/2" in stream.getvalue()
    assert "━━━━" in stream.getvalue()
