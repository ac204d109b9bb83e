from agent.llm import demo
from agent.llm.chunk import Chunk
from agent.llm.request import ModelRequest


async def answer(model: str, *said: str) -> list[Chunk]:
    asked = [{"role": "user", "content": text} for text in said]
    return [chunk async for chunk in demo.stream(ModelRequest(model, asked))]


async def test_echo_repeats_the_last_thing_that_was_said_to_the_letter() -> None:
    chunks = await answer("demo/echo", "first", "  two\nlines,  and spaces ")
    assert "".join(chunk.text for chunk in chunks) == "  two\nlines,  and spaces "
    assert chunks[-1].finish_reason == "stop"


async def test_a_thread_with_calls_of_tools_is_no_trouble() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}
    request = ModelRequest("demo/echo", [{"role": "user", "content": "Hi"}, call])
    assert "".join([chunk.text async for chunk in demo.stream(request)]) == "Hi"


async def test_lorem_says_exactly_as_many_chunks_as_asked_and_the_same_every_time() -> None:
    once, again = await answer("demo/lorem?chunks=300&delay_ms=0"), await answer("demo/lorem?chunks=300&delay_ms=0")
    assert once == again
    assert sum(bool(chunk.text) for chunk in once) == 300
    assert once[-1].usage
    assert once[-1].usage.completion_tokens == 300


async def test_the_tour_says_that_it_is_a_demo_and_how_to_set_a_key() -> None:
    assert "demo" in demo.TOUR.lower()
    assert "OPENAI_API_KEY" in demo.TOUR
    assert "".join(demo.words(demo.TOUR)) == demo.TOUR
