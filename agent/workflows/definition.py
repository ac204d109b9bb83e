"""What a workflow is: its steps and how they follow each other."""

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from agent.workflows.configs import CONFIGS, MAX_RETRIES, StepConfig, StepId, Text, VariableName, Word
from services.fields import finite, of_64_bits, shallow, small_object, storable_text, texts

MAX_STEPS = 200
MAX_NEXT_STEPS = 50
MAX_TRIGGERS = 20
MAX_CONFIG_BYTES = 64 * 1024
MAX_EXECUTION_SECONDS = 24 * 3600

State = Literal["DRAFT", "ACTIVE", "PAUSED"]
VARIABLE_NAME = TypeAdapter[str](VariableName)
ACTING: frozenset[str] = frozenset({"AGENT", "TOOL", "MCP_TOOL", "WEBHOOK"})
"""Types of steps that do something outside of the execution."""


def plain_json(value: Any) -> Any:
    """JSON that the stores can keep."""
    for text in texts(of_64_bits(finite(shallow(value)))):
        storable_text(text)
    return value


Json = Annotated[dict[str, Any], AfterValidator(plain_json)]
NextSteps = Annotated[list[StepId], Field(max_length=MAX_NEXT_STEPS)]


class Step(BaseModel):
    """One step; what stands in `config` is up to its type. A type that there is not is told with the step's name."""

    id: StepId
    name: Annotated[Text, Field(max_length=200)] = ""
    description: Annotated[Text, Field(max_length=5_000)] = ""
    type: Annotated[str, StringConstraints(max_length=100), Field(json_schema_extra={"enum": list(CONFIGS)})]
    config: Json = Field(default_factory=dict)
    next_steps: NextSteps = Field(default_factory=list)
    error_handler: StepId | None = None

    @cached_property
    def told(self) -> StepConfig:
        """The config, read. Raises: pydantic.ValidationError; not after the definition was checked."""
        return CONFIGS[self.type].model_validate(self.config)

    @property
    def followers(self) -> tuple[str, ...]:
        """The steps that may come next, however this one ends."""
        return (*self.next_steps, *([self.error_handler] if self.error_handler else ()))

    @property
    def title(self) -> str:
        return self.name or self.id


class Trigger(BaseModel):
    """What may start a workflow; kept as it is for whoever understands its type.

    Of a WEBHOOK, `config.payload` names the variable that all that was sent is given to.
    """

    type: Word
    config: Annotated[dict[str, Any], AfterValidator(small_object)] = Field(default_factory=dict)

    @property
    def is_webhook(self) -> bool:
        return self.type.upper() == "WEBHOOK"

    @model_validator(mode="after")
    def name_a_variable(self) -> "Trigger":
        if self.is_webhook and "payload" in self.config:
            try:
                VARIABLE_NAME.validate_python(self.config["payload"])
            except ValidationError as error:
                raise ValueError("config.payload must be the name of a variable") from error
        return self


class Definition(BaseModel):
    """`max_execution_time` is in seconds of work: what is waited for is not counted. `max_retries` is for each step."""

    steps: list[Step] = Field(default_factory=list, max_length=MAX_STEPS)
    entry_point: StepId | None = Field(None, validation_alias=AliasChoices("entry_point", "entryPoint"))
    triggers: list[Trigger] = Field(default_factory=list, max_length=MAX_TRIGGERS)
    max_execution_time: int = Field(3600, ge=1, le=MAX_EXECUTION_SECONDS)
    max_retries: int = Field(3, ge=0, le=MAX_RETRIES)

    @cached_property
    def by_id(self) -> dict[str, Step]:
        return {step.id: step for step in self.steps}

    @property
    def types(self) -> set[str]:
        return {step.type for step in self.steps}
