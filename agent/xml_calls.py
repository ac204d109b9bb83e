"""Tool calls that a model writes as XML into its text, found as the text comes. Pure.

Two styles: `<function_calls><invoke name="…"><parameter name="…">…</parameter></invoke></function_calls>`, and
`<tag attribute="…">…</tag>` for the tags of known tools. What Markdown says is code is left alone. No character is
looked at twice for a chunk more, and what is found does not depend on where the chunks were cut.
"""

import re
from collections.abc import Collection, Generator
from dataclasses import dataclass
from xml.sax.saxutils import unescape

BLOCK = "function_calls"
MAX_CALLS = 128
LONGEST_HEAD = 8192
LONGEST_PREFIX = 64
NAME = re.compile(r"/?[\w.-]*")
ATTRIBUTE = re.compile(r"""\s+([A-Za-z_][\w.:-]*)\s*=\s*("[^"]*"|'[^']*')""")
HEAD = re.compile(rf"<{NAME.pattern}(?:{ATTRIBUTE.pattern})*\s*/?>")
HEAD_MARK = re.compile(r"""["'<>]""")
MARK = re.compile(r"[`~<\n]")
CODE_MARK = re.compile(r"[`\n]")
BEFORE_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?[ \t>]*")
"""What may stand before a fence in its line: indentation, quote marks, the marker of a list."""

Feed = Generator[None, str, None]


@dataclass(frozen=True, slots=True)
class XmlCall:
    """One call as it was written. `body` is the text inside a tag, None for an invoke; `end` is where it ends."""

    name: str
    given: dict[str, str]
    body: str | None
    end: int


class XmlCalls:
    """Feed it text piece by piece; it yields the calls that are complete."""

    def __init__(self, tags: Collection[str]) -> None:
        self.tags = {BLOCK, *tags}
        self.buffer, self.pos, self.offset = "", 0, 0
        self.line = ""
        self.open: list[str] = []
        self.found: list[XmlCall] = []
        self.count = 0
        self.machine = self.read()
        next(self.machine)

    def feed(self, text: str) -> list[XmlCall]:
        if text and self.count < MAX_CALLS:
            self.machine.send(text)
        found, self.found = self.found, []
        return found

    @property
    def unfinished(self) -> tuple[str, bool] | None:
        """The call that has begun and not ended: its name, and whether it is an invoke, which no prose contains."""
        name = self.open[-1] if self.open else BLOCK
        return None if name == BLOCK else (name, len(self.open) > 1)

    # The grammar.

    def read(self) -> Feed:
        while self.count < MAX_CALLS:
            yield from self.to_markup()
            name, attributes = yield from self.tag(self.tags)
            if attributes is None:
                self.skip(self.pos + 1)
                continue
            self.line += "<"
            self.open.append(name)
            if name == BLOCK:
                yield from self.read_block()
            else:
                yield from self.read_tag(name, attributes)
            self.open.clear()
        yield

    def read_tag(self, name: str, attributes: dict[str, str]) -> Feed:
        closed = self.buffer[self.pos - 2] == "/"
        body = "" if closed else (yield from self.until(f"</{name}>"))
        self.add(name, attributes, body)

    def read_block(self) -> Feed:
        ended = False
        while not ended and self.count < MAX_CALLS:
            name, attributes = yield from self.next_tag({"invoke", f"/{BLOCK}"})
            if name != "invoke":
                return
            called = attributes.get("name") or "invoke"  # a call of no known tool, which its result will say
            self.open.append(called)
            ended = yield from self.read_invoke(called)
            self.open.pop()

    def read_invoke(self, called: str) -> Generator[None, str, bool]:
        """True when the block ended with it: a missing </invoke> is forgiven."""
        given: dict[str, str] = {}
        while True:
            name, attributes = yield from self.next_tag({"parameter", "/invoke", f"/{BLOCK}"})
            if name != "parameter":
                self.add(called, given, None)
                return name != "/invoke"
            given[attributes.get("name", "")] = trim((yield from self.until("</parameter>")))

    def add(self, name: str, given: dict[str, str], body: str | None) -> None:
        self.found.append(XmlCall(name, given, None if body is None else trim(body), self.offset + self.pos))
        self.count += 1

    # Tags.

    def next_tag(self, names: Collection[str]) -> Generator[None, str, tuple[str, dict[str, str]]]:
        """The next of these tags, whatever lies before it."""
        while True:
            yield from self.until("<")
            self.pos -= 1
            name, attributes = yield from self.tag(names)
            if attributes is not None:
                return name, attributes
            self.pos += 1

    def tag(self, names: Collection[str]) -> Generator[None, str, tuple[str, dict[str, str] | None]]:
        """The tag that begins here, read to its end; without attributes (and nothing read) when it is none of these."""
        longest = max(map(len, names))
        while len(name := self.match(NAME, self.pos + 1)) <= longest and self.pos + 1 + len(name) == len(self.buffer):
            yield from self.more()
        return (name, (yield from self.attributes())) if name in names else ("", None)

    def attributes(self) -> Generator[None, str, dict[str, str] | None]:
        """Read a tag to its >, which may stand in quotes before; None for what is no tag or too long for one."""
        length, quote = 1, ""
        while length <= LONGEST_HEAD:
            start = self.pos + length
            mark = HEAD_MARK.search(self.buffer, start) if not quote else None
            found = self.buffer.find(quote, start) if quote else mark.start() if mark else -1
            length = (len(self.buffer) if found < 0 else found + 1) - self.pos
            if found < 0:
                if length <= LONGEST_HEAD:
                    yield from self.more()
                continue
            char = self.buffer[found]
            if char == "<" and not quote:
                return None
            if char == ">" and not quote:
                return self.head(found + 1)
            quote = "" if quote else char
        return None

    def head(self, end: int) -> dict[str, str] | None:
        text = self.buffer[self.pos : end]
        if len(text) > LONGEST_HEAD or not HEAD.fullmatch(text):
            return None
        self.pos = end
        found = ATTRIBUTE.findall(text)
        return {name: unescape(value[1:-1], {"&quot;": '"', "&apos;": "'"}) for name, value in found}

    # Markdown.

    def to_markup(self) -> Feed:
        """Go to the next < outside of code."""
        while True:
            mark = MARK.search(self.buffer, self.pos)
            self.skip(mark.start() if mark else len(self.buffer))
            if mark is None:
                yield from self.more()
            elif mark.group() == "<":
                return
            elif mark.group() == "\n":
                self.pos += 1
                self.line = ""
            else:
                yield from self.pass_code(mark.group())

    def skip(self, end: int) -> None:
        if len(self.line) <= LONGEST_PREFIX:
            self.line += self.buffer[self.pos : end]
        self.pos = end

    def pass_code(self, char: str) -> Feed:
        """Pass over a fence, or over a span of code in a line (one that is not closed ends with its line)."""
        length = yield from self.take(char)
        begins = len(self.line) <= LONGEST_PREFIX and bool(BEFORE_FENCE.fullmatch(self.line))
        fence = length >= 3 and begins
        self.line += char
        if char == "`":
            fence = (yield from self.pass_span(length)) and fence
        if fence:
            yield from self.pass_fence(char, length)

    def pass_span(self, length: int) -> Generator[None, str, bool]:
        """True when the line ended without another backtick: after three or more that is a fence."""
        alone = True
        while (yield from self.to_code_mark()) == "`":
            alone = False
            if (yield from self.take("`")) == length:
                return False
        return alone

    def to_code_mark(self) -> Generator[None, str, str]:
        while not (mark := CODE_MARK.search(self.buffer, self.pos)):
            self.pos = len(self.buffer)
            yield from self.more()
        self.pos = mark.start()
        return mark.group()

    def pass_fence(self, char: str, length: int) -> Feed:
        while True:
            yield from self.until("\n")
            yield from self.take(" \t>")
            if (yield from self.take(char)) < length:
                continue
            yield from self.take(" \t\r")
            if self.buffer[self.pos] == "\n":
                return

    # Characters.

    def take(self, chars: str) -> Generator[None, str, int]:
        """Pass over these characters until another one comes; how many there were."""
        count = 0
        while True:
            passed = len(self.match(re.compile(f"[{chars}]*"), self.pos))
            self.pos += passed
            count += passed
            if self.pos < len(self.buffer):
                return count
            yield from self.more()

    def match(self, pattern: re.Pattern[str], start: int) -> str:
        found = pattern.match(self.buffer, start)
        return found.group() if found else ""

    def until(self, mark: str) -> Generator[None, str, str]:
        """The text up to a mark; the position is behind it."""
        pieces: list[str] = []
        while (found := self.buffer.find(mark, self.pos)) < 0:
            keep = max(self.pos, len(self.buffer) - len(mark) + 1)
            pieces.append(self.buffer[self.pos : keep])
            self.pos = keep
            yield from self.more()
        pieces.append(self.buffer[self.pos : found])
        self.pos = found + len(mark)
        return "".join(pieces)

    def more(self) -> Feed:
        """Wait for the next chunk; what was passed is forgotten."""
        text = yield
        self.offset += self.pos
        self.buffer = self.buffer[self.pos :] + text
        self.pos = 0


def trim(value: str) -> str:
    """Without the line breaks that only set a value apart from its tags."""
    return value.removeprefix("\n").removesuffix("\n")
