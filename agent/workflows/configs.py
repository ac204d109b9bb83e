"""What the steps of a workflow are told, one shape for each type of step."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, Field, StringConstraints, model_validator

from agent.workflows import expressions, placeholders
from agent.workflows.tool_names import TOOL_NAMES
from services.fields import storable_text

MAX_RETRIES = 10
MAX_WAIT_SECONDS = 30 * 24 * 3600
MAX_ITERATIONS = 1000
MAX_BRANCHES = 20
MAX_CONCURRENCY = 10
MAX_VARIABLES = 100
MAX_TEXT = 50_000


T = TypeVar("T")


def expression(text: str) -> str:
    return refusing(text, expressions.check)


def template(value: T) -> T:
    return refusing(value, placeholders.check)


def refusing(value: T, check: Callable[[T], None]) -> T:
    try:
        check(value)
    except expressions.BadExpression as error:
        raise ValueError(f"bad expression: {error}") from error
    return value


def web_template(text: str) -> str:
    """A URL; what an expression makes of it is judged when it is opened."""
    if not text.startswith(("http://", "https://", placeholders.OPENING)):
        raise ValueError("must begin with http:// or https://")
    return text


StepId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,100}$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
Word = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(storable_text)
]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT), AfterValidator(storable_text)]
Expression = Annotated[Text, AfterValidator(expression)]
TextTemplate = Annotated[Text, AfterValidator(template)]
Template = Annotated[Any, AfterValidator(template)]
UrlTemplate = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=4_000),
    AfterValidator(storable_text),
    AfterValidator(web_template),
    AfterValidator(template),
]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")]


class StepConfig(BaseModel):
    """What every step may be told.

    `retries`: how often it is tried again after a failure, with pauses that double from `retry_delay_seconds`; the
    workflow's `max_retries` unless it says so itself. `repeatable`: whether it may happen twice when nobody knows
    whether it happened; by default only what is known to do no harm.
    """

    retries: int | None = Field(None, ge=0, le=MAX_RETRIES)
    retry_delay_seconds: float = Field(1, ge=0, le=60, allow_inf_nan=False)
    repeatable: bool | None = None

    @property
    def children(self) -> tuple[str, ...]:
        """Steps that belong to this one rather than follow it."""
        return ()


class Variable(BaseModel):
    name: VariableName
    type: Literal["string", "number", "integer", "boolean", "array", "object", "any"] = "any"
    description: Text = ""
    required: bool = True
    default: Any = None

    @model_validator(mode="after")
    def default_must_fit(self) -> "Variable":
        if self.default is not None and not fits(self.default, self.type):
            raise ValueError(f"the default of {self.name} is no {self.type}")
        return self


def fits(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        return isinstance(value, int | float) and not isinstance(value, bool) and (kind == "number" or value % 1 == 0)
    types = {"string": str, "boolean": bool, "array": list, "object": dict}
    return kind == "any" or isinstance(value, types[kind])


class InputConfig(StepConfig):
    """The variables that an execution is given."""

    variables: list[Variable] = Field(default_factory=list, max_length=MAX_VARIABLES)

    @model_validator(mode="after")
    def names_must_differ(self) -> "InputConfig":
        names = [variable.name for variable in self.variables]
        if len(set(names)) < len(names):
            raise ValueError("two variables have the same name")
        return self


class AgentConfig(StepConfig):
    """A turn of the workflow's agent; `tools` are those that it may use of what it has, all when absent."""

    prompt: Annotated[TextTemplate, Field(min_length=1)]
    model_name: Word | None = None
    tools: list[Word] | None = Field(None, max_length=100)
    max_iterations: int | None = Field(None, ge=1, le=1000)


def known_tool(name: str) -> str:
    if name.replace("-", "_") not in TOOL_NAMES:
        raise ValueError(f"there is no tool {name} for a step; there are {', '.join(sorted(TOOL_NAMES))}")
    return name


class ToolConfig(StepConfig):
    tool: Annotated[Word, AfterValidator(known_tool)] = Field(validation_alias=AliasChoices("tool", "tool_name"))
    arguments: dict[str, Template] = Field(default_factory=dict, max_length=100)


class McpToolConfig(StepConfig):
    """A tool of the agent's MCP server `server`; without one `tool` is its whole name, `mcp_{server}_{tool}`."""

    server: Word | None = None
    tool: Word = Field(validation_alias=AliasChoices("tool", "tool_name"))
    arguments: dict[str, Template] = Field(default_factory=dict, max_length=100)


class ConditionConfig(StepConfig):
    """Goes to the first of `next_steps` when `expression` holds, else to the second, if there is one."""

    expression: Expression = Field(min_length=1)


class LoopConfig(StepConfig):
    """Does `body` for each item of the list `over`, or as long as `while` holds."""

    body: StepId
    over: Expression | None = None
    condition: Expression | None = Field(None, validation_alias=AliasChoices("while", "condition"))
    collect: Expression | None = None
    max_iterations: int = Field(100, ge=1, le=MAX_ITERATIONS)

    @model_validator(mode="after")
    def one_of_both(self) -> "LoopConfig":
        if (self.over is None) == (self.condition is None):
            raise ValueError("a loop needs either over or while")
        return self

    @property
    def children(self) -> tuple[str, ...]:
        return (self.body,)


class ParallelConfig(StepConfig):
    """Does all `branches`, so many at a time. `failure` `first`: the first one that fails cancels the others; `all`:
    the others are done first.
    """

    branches: list[StepId] = Field(min_length=1, max_length=MAX_BRANCHES)
    max_concurrency: int = Field(5, ge=1, le=MAX_CONCURRENCY)
    failure: Literal["first", "all"] = "first"

    @property
    def children(self) -> tuple[str, ...]:
        return tuple(self.branches)


class WaitConfig(StepConfig):
    """Waits so many seconds, or until a time (ISO 8601, or an expression that gives one)."""

    seconds: float | TextTemplate | None = Field(None, union_mode="left_to_right")
    until: datetime | TextTemplate | None = Field(None, union_mode="left_to_right")

    @model_validator(mode="after")
    def one_of_both(self) -> "WaitConfig":
        if (self.seconds is None) == (self.until is None):
            raise ValueError("a wait needs either seconds or until")
        if isinstance(self.seconds, float | int) and not 0 <= self.seconds <= MAX_WAIT_SECONDS:
            raise ValueError(f"seconds must be from 0 to {MAX_WAIT_SECONDS}")
        for given in (self.seconds, self.until):
            if isinstance(given, str) and placeholders.OPENING not in given:
                raise ValueError(f"{given!r} is neither a time nor an expression in {{{{ }}}}")
        return self


class WebhookConfig(StepConfig):
    url: UrlTemplate
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    headers: dict[HeaderName, TextTemplate] = Field(default_factory=dict, max_length=50)
    body: Template = None
    timeout_seconds: float = Field(30, gt=0, le=300, allow_inf_nan=False)


class TransformConfig(StepConfig):
    """`expression` makes the step's output, `set` gives variables new values; of both the output is made first."""

    expression: Expression | None = None
    set: dict[VariableName, Expression] = Field(default_factory=dict, max_length=MAX_VARIABLES)

    @model_validator(mode="after")
    def one_at_least(self) -> "TransformConfig":
        if self.expression is None and not self.set:
            raise ValueError("a transform needs an expression or variables to set")
        return self


CONFIGS: dict[str, type[StepConfig]] = {
    "INPUT": InputConfig,
    "AGENT": AgentConfig,
    "TOOL": ToolConfig,
    "MCP_TOOL": McpToolConfig,
    "CONDITION": ConditionConfig,
    "LOOP": LoopConfig,
    "PARALLEL": ParallelConfig,
    "WAIT": WaitConfig,
    "WEBHOOK": WebhookConfig,
    "TRANSFORM": TransformConfig,
}
