"""Kinds of request fields: each refuses, by name, what the stores could not keep."""

from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints

from services.fields import finite, not_blank, shallow, small_object, storable_text, web_address

Text = Annotated[str, AfterValidator(storable_text)]
Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), AfterValidator(storable_text)
]
Prompt = Annotated[Text, AfterValidator(not_blank)]
Kind = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
WebAddress = Annotated[
    str, StringConstraints(max_length=2048), AfterValidator(storable_text), AfterValidator(web_address)
]
Metadata = Annotated[dict[str, Any], AfterValidator(small_object)]
Content = Annotated[Any, AfterValidator(shallow), AfterValidator(finite)]
