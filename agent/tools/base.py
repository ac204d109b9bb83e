"""A tool is one typed async function; what models are told of it, in JSON schema and in XML, follows from it."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import create_model

from agent.tools.arguments import Arguments, Parameters, Typed, Unfit

DEFAULT_TIMEOUT = 120.0

Function = Callable[..., Awaitable["ToolResult | str"]]


class BadArguments(Exception):
    """A call that its tool cannot take; the text tells the model what to mend."""


class ToolFailed(Exception):
    """A tool could not do what it was asked; the text is the result that the model reads."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call came to; `error` says that the tool itself broke, rather than could not do what it was asked."""

    output: str
    success: bool = True
    error: bool = False
    terminates: bool = False

    @property
    def status(self) -> str:
        if self.error:
            return "error"
        return "completed" if self.success else "failed"


@dataclass(frozen=True, slots=True)
class Tool:
    """One function that a model may call.

    `body` names the parameter that is the text between the XML tags; `terminates`: a call that succeeds ends the run;
    `repeatable`: a call whose result was lost with its worker is made again, any other is reported as interrupted.
    """

    name: str
    description: str
    function: Function
    arguments: Parameters
    body: str | None = None
    terminates: bool = False
    repeatable: bool = False
    timeout: float = DEFAULT_TIMEOUT

    @property
    def tag(self) -> str:
        """Its name as an XML tag."""
        return self.name.replace("_", "-")

    @property
    def schema(self) -> dict[str, Any]:
        """Its native form: a function of OpenAI's chat completions."""
        described = {"name": self.name, "description": self.description, "parameters": self.arguments.schema}
        return {"type": "function", "function": described}

    @property
    def example(self) -> str:
        """Its XML form, as a call with descriptions for values."""
        parameters = self.arguments.described.items()
        lines = [f'<parameter name="{name}">{words}</parameter>' for name, words in parameters]
        return "\n".join(["<function_calls>", f'<invoke name="{self.name}">', *lines, "</invoke>", "</function_calls>"])

    def read(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of a call, checked. Raises: BadArguments."""
        try:
            return self.arguments.check(given)
        except Unfit as unfit:
            raise BadArguments(explain(self, unfit)) from unfit

    async def run(self, context: Any, arguments: Mapping[str, Any]) -> ToolResult:
        """Raises: whatever the function raises, ToolFailed above all."""
        result = await self.function(context, **arguments)
        return result if isinstance(result, ToolResult) else ToolResult(result, terminates=self.terminates)


def tool(
    *,
    body: str | None = None,
    terminates: bool = False,
    repeatable: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
) -> Callable[[Function], Tool]:
    """Make a tool of an async function: its name, docstring and annotated parameters; the first one is the context."""

    def make(function: Function) -> Tool:
        name = getattr(function, "__name__", "")
        described = inspect.cleandoc(function.__doc__ or "")
        takes = Typed(arguments_of(function, name))
        return Tool(name, described, function, takes, body, terminates, repeatable, timeout)

    return make


def arguments_of(function: Function, name: str) -> type[Arguments]:
    hints = get_type_hints(function, include_extras=True)
    _, *parameters = inspect.signature(function).parameters.values()
    fields: dict[str, Any] = {
        each.name: (hints[each.name], ... if each.default is inspect.Parameter.empty else each.default)
        for each in parameters
    }
    return create_model(name, __base__=Arguments, **fields)


def explain(called: Tool, unfit: Unfit) -> str:
    """What is wrong with the arguments, one line each, and what the tool takes."""
    takes = ", ".join(called.arguments.described) or "no parameters"
    return "\n".join([f"The arguments of {called.name} are wrong:", *unfit.complaints, f"It takes: {takes}."])


@dataclass(frozen=True)
class Registry:
    """The tools of one run, by name; a tag is as good as the name."""

    tools: Mapping[str, Tool] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: Iterable[Tool]) -> "Registry":
        return cls({known.name: known for known in tools})

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.tools.values())

    def get(self, name: str) -> Tool | None:
        return self.tools.get(name.replace("-", "_"))

    @property
    def tags(self) -> frozenset[str]:
        """Every tag that begins a call."""
        return frozenset(name for known in self for name in (known.tag, known.name))

    @property
    def schemas(self) -> tuple[dict[str, Any], ...]:
        return tuple(known.schema for known in self)

    @property
    def examples(self) -> str:
        """All tools for the system prompt of a model that is to call them in XML."""
        return "\n\n".join(f"{known.name}: {known.description}\n{known.example}" for known in self)
