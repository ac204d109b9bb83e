import pytest

from agent.tools.standard import STANDARD
from agent.xml_arguments import arguments_of
from agent.xml_calls import XmlCall

ASK = STANDARD.get("ask")


@pytest.mark.parametrize(
    ("given", "body", "arguments"),
    [
        ({"text": "a"}, None, {"text": "a"}),
        ({}, "So?", {"text": "So?"}),
        ({"attachments": "a"}, "So <b>what</b>?", {"attachments": "a", "text": "So <b>what</b>?"}),
        ({}, "\n<text>\nSo?\n</text>\n<attachments>a</attachments>\n", {"text": "So?", "attachments": "a"}),
        ({}, "<text>So?</text> and more", {"text": "<text>So?</text> and more"}),
        ({}, "<text>So?", {"text": "<text>So?"}),
        ({}, "<other>So?</other>", {"text": "<other>So?</other>"}),
        ({"text": "a"}, " \n", {"text": "a"}),
    ],
)
def test_a_tag_gives_attributes_and_its_body_as_text_or_elements(
    given: dict[str, str], body: str | None, arguments: dict[str, str]
) -> None:
    assert arguments_of(XmlCall("ask", given, body, 0), ASK) == arguments


def test_an_unknown_tool_is_given_what_was_written() -> None:
    assert arguments_of(XmlCall("fly", {"to": "moon"}, "now", 0), None) == {"to": "moon", "content": "now"}
