"""A scripted model provider over real HTTP, with every way to fail: OpenAI's chat completions, and at
`/v1/messages` the same replies as Anthropic says them.

In a test: `with FakeModel() as fake:` (its own thread, so worker processes can call it too), then either queue
replies with `fake.script(says("Hi"), cut(after=2))`, one per request, or name a model of MODELS. Alone:
`python -m tests.fakes [--port N]` serves MODELS and tells at GET /requests what was asked.
"""

import argparse
import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from typing import Any, Literal, Self

from agent.llm import demo
from tests import anthropic_wire
from tests.waiting import PATIENT

HANG = 3600.0
MOST_WORDS = 100_000
LEAST_WORDS = 20
WORDS = ("Hello", ", ", "this ", "is ", "a ", "scripted ", "answer", ".")
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass(frozen=True)
class Reply:
    """What one request gets: deltas `delay` seconds apart, then an ending; or an error of `status`."""

    deltas: Iterable[Mapping[str, Any]] = ()
    delay: float = 0.0
    ending: Literal["finish", "cut", "hang", "truncate", "error", "finish_and_cut"] = "finish"
    finish_reason: str = "stop"
    usage: Mapping[str, Any] | None = field(default_factory=lambda: dict(USAGE))
    status: int = 200
    error: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    content_type: str = "text/event-stream"

    async def spoken(self, asked: "Asked") -> AsyncIterator[Mapping[str, Any]]:
        """Its deltas, each in its time."""
        for delta in self.deltas:
            yield delta
            asked.chunks_sent += 1
            await asyncio.sleep(self.delay)


@dataclass
class Talker:
    """A model that talks until the test has heard enough, and then ends in good order, however slow the machine is."""

    name: str
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    delay: float = 0.02
    heard_enough: threading.Event = field(default_factory=threading.Event)
    answers: list[list[str]] = field(default_factory=list)
    """The words of each answer so far: one for each time that somebody asked."""

    @property
    def model(self) -> str:
        return f"openai/{self.name}"

    @property
    def reply(self) -> Reply:
        return Reply(self, self.delay)

    @property
    def texts(self) -> list[str]:
        return ["".join(words) for words in self.answers]

    @property
    def text(self) -> str:
        """What the newest who asked was told; all of it once the run has ended."""
        return self.texts[-1]

    def enough(self) -> None:
        self.heard_enough.set()

    def __iter__(self) -> Iterator[dict[str, str]]:
        """As the deltas of a reply."""
        answer: list[str] = []
        self.answers.append(answer)
        words = demo.lorem(MOST_WORDS)
        least = list(islice(words, LEAST_WORDS))
        more = takewhile(lambda _: not self.heard_enough.is_set(), words)
        for word in chain(self.before, least, more, self.after):
            answer.append(word)
            yield {"content": word}


Talk = Callable[..., Talker]
"""`FakeModel.talk`."""


def says(*words: str, delay: float = 0.0, finish_reason: str = "stop") -> Reply:
    """A whole answer, one chunk per word."""
    return Reply(contents(words or WORDS), delay, finish_reason=finish_reason)


def thinks(*thoughts: str, then: Sequence[str] = WORDS, name: str = "reasoning_content") -> Reply:
    """Reasoning first (`reasoning_content`, or `reasoning` as OpenRouter calls it), then the answer."""
    return Reply([*({name: thought} for thought in thoughts), *contents(then)])


def empty(finish_reason: str = "stop") -> Reply:
    return Reply(finish_reason=finish_reason)


def cut(after: int) -> Reply:
    """The connection breaks after so many chunks."""
    return Reply(contents(WORDS[:after]), ending="cut")


def truncated(after: int) -> Reply:
    """The body ends in good order, but early: no finish reason, no [DONE]."""
    return Reply(contents(WORDS[:after]), ending="truncate")


def hangs(after: int) -> Reply:
    """The stream says so many chunks (0: only its headers) and then nothing more."""
    return Reply(contents(WORDS[:after]), ending="hang")


def silent() -> Reply:
    """Not even response headers."""
    return Reply(status=0)


def rate_limited(retry_after: str | None = None) -> Reply:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    error = {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}
    return Reply(status=429, error=error, headers=headers)


def out_of_quota() -> Reply:
    kind = "insufficient_quota"
    return Reply(status=429, error={"message": "You exceeded your current quota", "type": kind, "code": kind})


def wrong_key() -> Reply:
    error = {"message": "Incorrect API key provided: sk-no***pe", "type": "invalid_request_error"}
    return Reply(status=401, error={**error, "code": "invalid_api_key"})


def refuses(status: int, message: str, code: str | None = None) -> Reply:
    return Reply(status=status, error={"message": message, "code": code})


def broken(status: int = 500) -> Reply:
    return Reply(status=status, error={"message": "The server had an error", "type": "server_error", "code": None})


def fails_inside(after: int, message: str = "upstream overloaded", code: Any = 502) -> Reply:
    """An error event inside a stream that began with status 200."""
    return Reply(contents(WORDS[:after]), ending="error", error={"message": message, "code": code})


def garbage() -> Reply:
    return Reply(raw=b"data: {this is no JSON\n\n")


def contents(words: Sequence[str]) -> list[dict[str, str]]:
    return [{"content": word} for word in words]


def calls(name: str, *arguments: str, call_id: str = "call_1", index: int = 0) -> list[dict[str, Any]]:
    """The deltas of one tool call, its arguments in fragments."""
    begin = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": piece}} for piece in arguments]
    return [{"tool_calls": [part]} for part in (begin, *rest)]


def first(error: Reply, then: Reply) -> Callable[[int], Reply]:
    return lambda earlier: error if earlier % 2 == 0 else then


MODELS: dict[str, Callable[[int], Reply]] = {
    "script-text": lambda _: says(),
    "script-slow": lambda _: says(*(f"word{n} " for n in range(200)), delay=0.02),
    "script-many": lambda _: says(*(f"word{n} " for n in range(10_000))),
    "script-reasoning": lambda _: thinks("Let me ", "think. "),
    "script-empty": lambda _: empty(),
    "script-silent": lambda _: silent(),
    "script-hang-first": lambda _: hangs(after=0),
    "script-hang": lambda _: hangs(after=3),
    "script-cut": lambda _: cut(after=3),
    "script-401": lambda _: wrong_key(),
    "script-quota": lambda _: out_of_quota(),
    "script-429": first(rate_limited("1"), says()),
    "script-500": lambda _: broken(),
    "script-500-once": first(broken(), says()),
}
"""Replies by model name; the argument is how often the same request body came before (429 and 500-once alternate)."""


@dataclass
class Asked:
    """One request as it arrived. Times are `time.monotonic()`, which all processes of a machine share."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    connection: int = 0
    at: float = field(default_factory=time.monotonic)
    chunks_sent: int = 0
    answered: bool = False
    hung_up_at: float | None = None
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    async def until_over(self, timeout: float = PATIENT) -> None:
        """Wait until the reply is sent whole or the client hung up (`hung_up_at` tells when)."""
        assert await asyncio.to_thread(self.over.wait, timeout), f"{self.model}: still being answered"

    @property
    def in_anthropic(self) -> bool:
        return self.path.endswith("/messages")

    def as_json(self) -> dict[str, Any]:
        shown = ("path", "body", "at", "chunks_sent", "answered", "hung_up_at")
        return {name: getattr(self, name) for name in shown}


class Reader(asyncio.StreamReader):
    """Knows when the client went away without reading: the next request of a connection must stay unread."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.gone.set()


class FakeModel:
    """The server; `requests` lists what was asked, in order of arrival."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.requests: list[Asked] = []
        self.replies: deque[Reply] = deque()
        self.models = dict(MODELS)
        self.talkers: list[Talker] = []
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.run, name="fake-model", daemon=True)
        self.stopping = asyncio.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def anthropic_base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def script(self, *replies: Reply) -> None:
        """Queue replies, one per coming request, whichever model it names."""
        self.replies.extend(replies)

    def talk(self, name: str = "", **words: Any) -> Talker:
        """A model of the caller's own, for as long as the caller likes: `words` are fields of a Talker."""
        talker = Talker(name or f"talker-{len(self.talkers)}", **words)
        self.talkers.append(talker)
        self.models[talker.name] = lambda _: talker.reply
        return talker

    def hush(self) -> None:
        """For the next test: one that failed may have left replies that nobody asks for, and whoever still talks."""
        self.replies.clear()
        for talker in self.talkers:
            talker.enough()

    def __enter__(self) -> Self:
        self.thread.start()
        assert self.ready.wait(PATIENT), "the fake model did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stopping.set)
        self.thread.join(5)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self.serve())

    async def serve(self) -> None:
        server = await self.loop.create_server(self.accept, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await self.stopping.wait()
        server.close()

    def accept(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(Reader(limit=16 * 1024 * 1024), self.converse)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: requests one after the other until either side closes it."""
        assert isinstance(reader, Reader)
        with suppress(ConnectionError, asyncio.CancelledError):
            while (asked := await read_request(reader)) and await self.answer(asked, reader, writer):
                pass
        writer.close()

    async def answer(self, asked: Asked, reader: Reader, writer: asyncio.StreamWriter) -> bool:
        """Send the reply, watching whether the client hangs up; True when the connection can be used again."""
        if asked.path.endswith("/requests"):
            return await send_json(writer, 200, {"requests": [earlier.as_json() for earlier in self.requests]})
        reply = self.choose(asked)
        asked.connection = writer.get_extra_info("peername")[1]
        self.requests.append(asked)
        sending = asyncio.ensure_future(send(reply, asked, writer))
        hanging_up = asyncio.ensure_future(reader.gone.wait())
        try:
            await asyncio.wait({sending, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            asked.answered = sending.done() and not sending.cancelled() and sending.exception() is None
            if not asked.answered:
                asked.hung_up_at = time.monotonic()
            return asked.answered and sending.result()
        finally:
            await cancel(sending, hanging_up)
            asked.over.set()

    def choose(self, asked: Asked) -> Reply:
        if self.replies:
            return self.replies.popleft()
        earlier = sum(other.body == asked.body for other in self.requests)
        by_name = self.models.get(asked.model)
        return by_name(earlier) if by_name else refuses(404, f"The model {asked.model} does not exist")


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    start, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(start.split()[1], headers, json.loads(body or b"{}"))


async def send(reply: Reply, asked: Asked, writer: asyncio.StreamWriter) -> bool:
    if reply.status == 0:
        await asyncio.sleep(HANG)
    if reply.status != 200:
        said = anthropic_wire.error(reply) if asked.in_anthropic else {"error": dict(reply.error)}
        return await send_json(writer, reply.status, said, reply.headers)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {reply.content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    async for data in stream(reply, asked):
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()
    if reply.ending in ("cut", "finish_and_cut"):
        return False
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


async def stream(reply: Reply, asked: Asked) -> AsyncIterator[bytes]:
    """The body, piece by piece."""
    if reply.raw is not None:
        yield reply.raw
        return
    if asked.in_anthropic:
        async for piece in anthropic_wire.stream(reply, asked, HANG):
            yield piece
        return
    async for delta in reply.spoken(asked):
        yield event(asked, choices=[choice(delta)])
    if reply.ending == "hang":
        await asyncio.sleep(HANG)
    if reply.ending == "error":
        yield event(asked, error=dict(reply.error))
    if reply.ending in ("finish", "finish_and_cut"):
        yield event(asked, choices=[choice({}, reply.finish_reason)])
    if reply.ending == "finish":
        if reply.usage is not None:
            yield event(asked, choices=[], usage=dict(reply.usage))
        yield b"data: [DONE]\n\n"


def choice(delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": dict(delta), "finish_reason": finish_reason}


def event(asked: Asked, **fields: Any) -> bytes:
    shape = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": asked.model}
    return b"data: " + json.dumps({**shape, **fields}).encode() + b"\n\n"


async def send_json(
    writer: asyncio.StreamWriter, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> bool:
    data = json.dumps(body).encode()
    told = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    writer.write(f"HTTP/1.1 {status} Scripted\r\n{head}\r\n".encode() + data)
    await writer.drain()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the scripted models.")
    parser.add_argument("--port", type=int, default=0)
    with FakeModel(parser.parse_args().port) as fake:
        print(f"OPENAI_BASE_URL={fake.base_url}", flush=True)  # noqa: T201 - this line is what the caller reads
        fake.thread.join()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
