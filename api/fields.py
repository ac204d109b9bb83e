"""Kinds of request fields: each refuses, by name, what the stores could not keep."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, StringConstraints

from services.fields import finite, not_blank, shallow, small_object, storable_text, web_address

MAX_LINE_CHARS = 500


def short(value: Any) -> Any:
    """As it was sent: the space around it, which is cut off, counts as well."""
    if isinstance(value, str) and len(value) > MAX_LINE_CHARS:
        raise ValueError(f"must be at most {MAX_LINE_CHARS} characters")
    return value


Text = Annotated[str, AfterValidator(storable_text)]
Line = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_LINE_CHARS),
    BeforeValidator(short),
    AfterValidator(storable_text),
]
Prompt = Annotated[Text, AfterValidator(not_blank)]
Kind = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
WebAddress = Annotated[
    str, StringConstraints(max_length=2048), AfterValidator(storable_text), AfterValidator(web_address)
]
Metadata = Annotated[dict[str, Any], AfterValidator(small_object)]
Content = Annotated[Any, AfterValidator(shallow), AfterValidator(finite)]
